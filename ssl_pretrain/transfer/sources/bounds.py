"""How large a file of weights may become: refused are those that unpack into far more than they are.

A few bytes can ask for any amount of memory and time: an archive packs a gigabyte of zeros into a megabyte, and sixty
tuples, each of which holds the one before twice, are walked through for ever by whatever hashes or prints them. So
what a file would become is computed from its table of contents and from the instructions of its pickle, of which
nothing is executed.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from torch import Tensor

LARGEST_PICKLE = 64 * 2**20
"""Bytes; tensors lie outside of the pickle, of which even a thousand layers with their optimizer are a few MB."""

MOST_TIMES, SLACK = 2, LARGEST_PICKLE
"""How many times its size a file may unpack into, and bytes on top: weights do not pack well."""

FEWEST_OPERATIONS, BYTES_PER_OPERATION = 300_000, 30
"""Instructions of a pickle that are always allowed, and bytes of tensors for each one more.

nnU-Net logs the Dice of each class and epoch: 1.6 million instructions for a hundred classes and a thousand epochs,
beside 250 MB of weights.
"""

MOST_OBJECTS = 5 * 10**6
"""Objects that a walk through the content may meet, each as often as it is met."""

DEEPEST = 200
"""Objects within each other; a checkpoint has about twenty."""

MOST_TENSORS, LONGEST_NAME = 20_000, 1000
"""Tensors of a file, and characters of their names; nnU-Net's largest network has about a thousand."""


class BombError(ValueError):
    """A file that would become too much; nothing of it was unpacked."""


def refusal(file: Path, what: str) -> BombError:
    """What to raise for a file of which ``what`` is too much."""
    return BombError(
        f"{file} is refused: {what}. It is damaged or malicious: download it again from a place that you trust."
    )


def check_archive(file: Path, archive: zipfile.ZipFile, pickles: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would unpack into far more than it is.

    Args:
        file: that is the archive.
        archive: opened.
        pickles: its entries that are unpickled.

    Raises:
        BombError: says what is too large.
    """
    entries = archive.infolist()
    other = sum(entry.file_size for entry in entries if not _is_tensor(entry.filename))
    if other > LARGEST_PICKLE:
        raise refusal(
            file,
            f"besides its tensors it would unpack into {other / 2**20:.0f} MB, and checkpoints have at most "
            f"{LARGEST_PICKLE // 2**20} MB there",
        )
    everything, size = sum(entry.file_size for entry in entries), file.stat().st_size
    if everything > MOST_TIMES * size + SLACK:
        raise refusal(file, f"its {size / 2**20:.1f} MB would unpack into {everything / 2**20:.0f} MB")
    for entry in pickles:
        check_pickle(file, BytesIO(content_of(archive, entry)), size - entry.compress_size)


def content_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Bytes of an entry; of one that has no checksum (``torch.serialization.set_crc32_options``) as they are."""
    if not entry.CRC and entry.file_size:
        del entry.CRC  # Python then compares with nothing
    return archive.read(entry)


def check_pickle(file: Path, stream: IO[bytes], tensors: int) -> None:
    """Refuse a pickle that would become far more objects than it has instructions, or has too many of these.

    Args:
        file: for messages.
        stream: at the beginning of the pickle; read to its end.
        tensors: bytes of the file that are not the pickle.

    Raises:
        BombError: says what is too much.
        Exception: it is damaged; any of those that a wrong index, name or instruction leads to.
    """
    most = FEWEST_OPERATIONS + max(0, tensors) // BYTES_PER_OPERATION
    made: list[_Made] = []
    damage: Exception | None = None
    try:
        _follow(pickletools.genops(stream), made, most)
    except _TooMuchError as error:
        raise refusal(file, str(error)) from error
    except Exception as error:
        # What lies before the damage would be executed.
        damage = error
    _check_objects(file, made)
    if damage is not None:
        raise damage


def check_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse views that repeat a few numbers: written out or converted, they would fill any memory.

    Raises:
        BombError: the tensors would take far more memory than the file has, or are too many.
    """
    longest = max(map(len, tensors), default=0)
    if len(tensors) > MOST_TENSORS or longest > LONGEST_NAME:
        raise refusal(file, f"it has {len(tensors)} tensors with names of up to {longest} characters")
    places = {
        (one.untyped_storage().data_ptr(), one.storage_offset(), one.shape, one.stride(), one.dtype): one.nbytes
        for one in tensors.values()
    }
    total, size = sum(places.values()), file.stat().st_size
    if total > MOST_TIMES * size + SLACK:
        raise refusal(file, f"its {size / 2**20:.1f} MB would become {total / 2**20:.0f} MB of tensors")


class _TooMuchError(Exception):
    """The text says of what."""


class _Made:
    """An object that a pickle makes, with what it is made of; whatever else is itself: a text, a number, a name."""

    __slots__ = ("inner",)

    def __init__(self, inner: list[Any]) -> None:
        self.inner = inner


def _follow(operations: Iterable[tuple[Any, Any, Any]], made: list[_Made], most: int) -> None:
    """Follow what the instructions of a pickle do to its stack, and collect the objects that they would make."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for number, (operation, argument, _) in enumerate(operations):
        if number >= most:
            raise _TooMuchError(f"it has more than {most} instructions beside its tensors")
        name = operation.name
        does, takes = _effect(operation)
        if does == "push":
            stack.append(argument)
        elif does == "put":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif does == "get":
            stack.append(memo[argument])
        elif does == "mark":
            marks.append(len(stack))
        elif does == "repeat":
            stack.append(stack[-1])
        elif does != "nothing":
            start = marks.pop() if takes is None else len(stack) - takes
            taken = stack[start:]
            del stack[start:]
            if does == "add":
                stack[-1].inner.extend(taken)
            elif does == "make":
                if name == "REDUCE":
                    _check_call(*taken)
                made.append(_Made(taken))
                stack.append(made[-1])


@cache
def _effect(operation: Any) -> tuple[str, int | None]:
    """What an instruction does to the stack, and how many objects it takes from there; None for all after a mark."""
    name, before = operation.name, operation.stack_before
    takes = None if pickletools.markobject in before else len(before) - (name in _ADDING)
    if name == "MEMOIZE" or name.endswith("PUT"):
        return "put", 0
    if name.endswith("GET"):
        return "get", 0
    if name in ("MARK", "DUP"):
        return {"MARK": "mark", "DUP": "repeat"}[name], 0
    if name in _ADDING:
        return "add", takes
    if not operation.stack_after:
        return ("drop" if before else "nothing"), takes
    return ("make" if before or name.startswith("EMPTY") else "push"), takes


_ADDING = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
"""Instructions that change the object on top of the stack."""


def _check_call(function: Any, arguments: Any) -> None:
    """Refuse calls that PyTorch allows and that make much of little."""
    given = arguments.inner if isinstance(arguments, _Made) else []
    if function == _ENCODE and (len(given) != 2 or given[1] not in ("latin1", "latin-1")):
        # Bytes are pickled as text in Latin-1; others of Python's codecs take time by the square of the length.
        raise _TooMuchError("it encodes text in another way than pickles of bytes do")
    if function in _BYTEARRAY and given:
        encoded = isinstance(given[0], _Made) and given[0].inner[:1] == [_ENCODE]
        if not encoded and not isinstance(given[0], (str, bytes)):
            raise _TooMuchError("it asks for an array of bytes that it does not have")


_ENCODE, _BYTEARRAY = "_codecs encode", ("__builtin__ bytearray", "builtins bytearray")


def _check_objects(file: Path, made: list[_Made]) -> None:
    """Refuse what is walked through for ever: count objects as often as they are met, and how deep they lie."""
    found: dict[_Made, tuple[int, int]] = {}
    under_way: set[_Made] = set()
    for first in made:
        waiting = [first]
        while waiting:
            one = waiting[-1]
            if one in found:
                waiting.pop()
                continue
            inner = [item for item in one.inner if isinstance(item, _Made)]
            unknown = [item for item in inner if item not in found]
            if unknown and one in under_way:
                raise refusal(file, "it has an object that contains itself")
            if unknown:
                under_way.add(one)
                waiting += unknown
                continue
            objects = 1 + len(one.inner) - len(inner) + sum(found[item][0] for item in inner)
            depth = 1 + max((found[item][1] for item in inner), default=0)
            if objects > MOST_OBJECTS or depth > DEEPEST:
                what = f"{DEEPEST} objects within each other" if depth > DEEPEST else f"{MOST_OBJECTS} objects"
                raise refusal(file, f"it would become more than {what}")
            found[one] = objects, depth
            under_way.discard(one)
            waiting.pop()


def _is_tensor(name: str) -> bool:
    *folder, number = name.lower().split("/")
    return folder[-1:] == ["data"] and number.isdecimal()
