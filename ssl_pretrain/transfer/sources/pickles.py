"""Opening what ``torch.save`` wrote without running what is in it.

Everything goes through ``weights_only=True`` and a list of harmless stand-ins. A file that names anything else is
refused, and the refusal lists all of it, found by reading the pickle and not by executing it.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch._weights_only_unpickler import _get_allowed_globals
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from ssl_pretrain.files import archive_fault
from ssl_pretrain.harmless import RefusalError, harmless_globals
from ssl_pretrain.transfer.sources.bounds import LARGEST_PICKLE, BombError, check_archive, check_pickle

LEGACY_PICKLES = 5
"""Pickles in a row at the beginning of a file that PyTorch before 1.6 wrote."""

MOST_OPERATIONS = 10**6
"""How far a refused pickle is read for what it names."""

NAMES_SHOWN, NAME_LENGTH = 20, 100


def open_pickle(file: Path) -> Any:
    """Return the content of a file that ``torch.save`` wrote; nothing in it is executed.

    Raises:
        ValueError: needs arbitrary code to be opened (refused, with the names of all of it), would become far more than
            it is, or is no checkpoint.
    """
    try:
        _check_bounds(file)
        with _harmless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, BombError):
        raise
    except Exception as error:  # torch.load answers malformed files with KeyError, EOFError, struct.error and others
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ValueError(
                f"{file} cannot be opened: it asks for more memory than there is. It is damaged, or too large for this "
                "machine: download it again, or use a larger one."
            ) from error
        wanted, complete = _wanted(file)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, RefusalError):
            wanted.append(str(error))
        elif named and not wanted:
            wanted.append(named[1].rstrip("."))
        if wanted:
            raise ValueError(
                f"{file} is refused: opening it would run {_listed(wanted, complete)}, and a file of weights must not "
                "run code. If you trust where it comes from, load it yourself and save its tensors alone: "
                "torch.save({'network_weights': network.state_dict()}, FILE)."
            ) from error
        raise ValueError(_not_a_checkpoint(file, error)) from error
    # PyTorch does not look at the checksums: a tensor with a flipped bit is one like any other.
    if (fault := archive_fault(file)) is not None:
        raise ValueError(f"{file} is damaged: {fault}. Copy or download it again.")
    return content


def unsafe_globals(file: Path) -> list[str]:
    """Dotted names of what opening a file would import beyond what is harmless; nothing is executed.

    Args:
        file: written by ``torch.save``, in whatever version, or by ``pickle``. Of a damaged one, the names before the
            damage; of one with more than :data:`MOST_OPERATIONS`, those among the first.
    """
    return _wanted(file)[0]


def first_line(error: Exception) -> str:
    """Kind of an error and the beginning of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {_printable(text[:120])}" if text else type(error).__name__


def _wanted(file: Path) -> tuple[list[str], bool]:
    """The names, and whether the whole file was read for them."""
    harmless = {*_get_allowed_globals(), *(f"{one.__module__}.{one.__qualname__}" for one in harmless_globals())}
    found: dict[str, None] = {}
    operations = 0
    # Whatever is wrong with the file, it is refused; this only says why.
    with suppress(Exception), _pickle_of(file) as stream:
        for _ in range(LEGACY_PICKLES):
            for name in _globals_of(stream):
                operations += 1
                if operations > MOST_OPERATIONS:
                    return list(found), False
                if name and (today := _python3_name(name)) not in harmless:
                    found[today] = None
    return list(found), True


def _check_bounds(file: Path) -> None:
    """Refuse what would unpack into far more than it is; raises anything where the file is damaged."""
    if _is_archive(file):
        with zipfile.ZipFile(file) as archive:
            check_archive(file, archive, _pickles_in(archive))
        return
    size = file.stat().st_size
    with file.open("rb") as stream:
        for _ in range(LEGACY_PICKLES):
            if stream.tell() < size:
                check_pickle(file, stream, size)


def _is_archive(file: Path) -> bool:
    """As PyTorch decides it, which does not look at the end of a file, where ``zipfile`` does."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


@contextmanager
def _pickle_of(file: Path) -> Iterator[IO[bytes]]:
    if not _is_archive(file):
        with file.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive, archive.open(_pickles_in(archive)[0]) as packed:
        yield BytesIO(packed.read(LARGEST_PICKLE))


def _pickles_in(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    # In any case of letters: PyTorch's reader does not tell them apart.
    return [entry for entry in archive.infolist() if f"/{entry.filename.lower()}".endswith("/data.pkl")]


def _globals_of(stream: IO[bytes]) -> Iterator[str]:
    """For each operation of one pickle the name that it imports, or nothing.

    Names that newer protocols take from the stack are followed through the memo.
    """
    texts = ["?", "?"]
    memo: dict[Any, str] = {}
    latest = "?"
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name == "MEMOIZE" or name.endswith("PUT"):
            memo[len(memo) if argument is None else argument] = latest
            yield ""
            continue
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif name == "STACK_GLOBAL":
            yield ".".join(texts)
        elif name.startswith("EXT"):
            yield f"copyreg.extension({argument})"
        else:
            yield ""
        latest = memo.get(argument, "?") if name.endswith("GET") else str(argument) if "UNICODE" in name else "?"
        if latest != "?":
            texts = [texts[-1], latest]


def _python3_name(name: str) -> str:
    """The name of today: pickles of the usual protocol 2 say ``__builtin__`` for ``builtins``."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def _listed(names: list[str], complete: bool) -> str:
    shown = [_printable(name[:NAME_LENGTH]) for name in names[:NAMES_SHOWN]]
    more = [f"{len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return " and ".join([", ".join(shown), *more, *([] if complete else ["possibly more"])])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _not_a_checkpoint(file: Path, error: Exception) -> str:
    if file.name.endswith(".model.pkl"):
        return (
            f"{file} cannot be opened as a checkpoint: it is nnU-Net v1's description of a training. The weights are "
            f"in {file.name.removesuffix('.pkl')}, which lies beside it; that file alone is needed."
        )
    return (
        f"{file} cannot be opened as a checkpoint ({first_line(error)}): it is truncated, or torch.save did not "
        "write it. Copy or download it again."
    )


@contextmanager
def _harmless() -> Iterator[None]:
    """Let ``weights_only`` pass what only holds values; every checkpoint of nnU-Net has NumPy's numbers in its log.

    And nothing else: what other libraries have allowed in this process must not stand in for the stand-ins.
    """
    before = get_safe_globals()
    # Not torch.serialization.safe_globals, which PyTorch 2.4 does not have yet.
    clear_safe_globals()
    add_safe_globals(harmless_globals())
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)
