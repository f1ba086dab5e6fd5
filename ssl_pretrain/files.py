"""Reading files that others wrote with one line about what is wrong, and writing so that nobody sees half of a file."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import IO, Any, TypeVar, overload

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

log = logging.getLogger("ssl_pretrain")

T = TypeVar("T")

LOCK = "lock"
"""File in a folder that one process at a time works in."""

LEFT = re.compile(r".+\.(?:(?P<host>[\w-]+)-)?(?P<process>\d+)\.tmp")
"""Name of a file that was being written; older versions left out the host."""

DEEPEST_JSON = 100
"""Levels of nesting; what nnU-Net and we write has at most ten."""

LONGEST_NAME = 250
"""Bytes; file systems allow 255, and the ending comes on top."""

RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


@overload
def read_json(file: Path, *, remedy: str = "", not_finite: bool = False) -> dict[str, Any]: ...


@overload
def read_json(file: Path, kind: type[T], *, remedy: str = "", not_finite: bool = False) -> T: ...


def read_json(file: Path, kind: Any = dict[str, Any], *, remedy: str = "", not_finite: bool = False) -> Any:
    """Content of a JSON file, checked against a type.

    Args:
        file: in UTF-8, with or without a byte order mark.
        kind: what it must hold: anything that pydantic validates, e.g. ``list[str]`` or a model.
        remedy: a sentence that ends every message, e.g. the command that makes the file again.
        not_finite: whether NaN and infinity are allowed; nnU-Net writes them for labels that a case does not have.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: not JSON, nested too deep, a number that no computer word holds, or not of the type; names the file
            and the place in it.
    """
    ending = f" {remedy}" if remedy else ""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist.{ending}")
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{file} is encoded in UTF-16. JSON is UTF-8: save it again as UTF-8.{ending}")
    try:
        content = json.loads(
            raw.decode("utf-8-sig"),
            parse_int=_whole_number,
            parse_float=lambda text: _finite(text, not_finite),
            parse_constant=lambda text: _finite(text, not_finite),
        )
        _check_depth(content)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not text in UTF-8 (byte {error.start}). Save it again as UTF-8.{ending}"
        ) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{file} is not valid JSON: {what}.{ending}") from error
    return validated(content, kind, file, remedy=remedy)


def validated(content: Any, kind: type[T], file: Path, *, remedy: str = "") -> T:
    """What a file holds, as a type.

    Raises:
        ValueError: it is not of that type; names the file, the place in it, what came and what is expected.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"])) or "the whole file"
        came = "" if first["type"] == "missing" else f", got {_shown(first['input'])}"
        more = f" (and {len(others)} more)" if others else ""
        ending = f" {remedy}" if remedy else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{file}: {place}: {message}{came}{more}.{ending}") from error


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object in a ``-config`` file, or in the ``config.json`` of a run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object; names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"Configuration file {file} does not exist (-config).")
    return read_json(file)


def _whole_number(text: str) -> int:
    # Of 64 bits; longer ones overflow wherever they are used, and Python converts millions of digits for minutes.
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise ValueError(f"the number {text[:24]}{'…' if len(text) > 24 else ''} is too large")
    return int(text)


def _finite(text: str, not_finite: bool) -> float:
    number = float(text)
    if not (math.isfinite(number) or not_finite):
        raise ValueError(f"the number {text[:24]} is not finite")
    return number


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level:
        if depth >= DEEPEST_JSON:
            raise RecursionError
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        depth += 1


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_name(name: Any, what: str, file: Path | None = None) -> str:
    """A name that becomes a part of a path, if it can be one: it must not lead anywhere else.

    Args:
        name: from a file or from the command line.
        what: what it is the name of, in the words of the file or of the command.
        file: that it stands in; None for the command line.

    Returns:
        The name.

    Raises:
        ValueError: no text, empty, ``.`` or ``..``, with a separator of any system, a drive or a control character,
            too long, or a device on Windows; names the value and the file.
    """
    if not isinstance(name, str):
        fault = "is no text"
    elif name in ("", ".", ".."):
        fault = "is no name of a file or folder"
    elif re.search(r"[/\\]", name) or PureWindowsPath(name).drive:
        fault = "leads to another folder"
    elif re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
        fault = "has characters that no name of a file can have"
    elif len(name.encode()) > LONGEST_NAME:
        fault = f"is longer than {LONGEST_NAME} bytes"
    elif RESERVED.fullmatch(name):
        fault = "is a device on Windows"
    else:
        return name
    where = f"{file}: " if file else ""
    raise ValueError(f"{where}{what} {_shown(name)} {fault}, and it becomes a part of paths. Give a plain name.")


def check_plan_names(plans: Mapping[str, Any], file: Path) -> None:
    """Refuse plans in which a name that nnU-Net makes a path of leads elsewhere.

    Args:
        plans: content of a plans file; what is missing or of a wrong type is left to others.
        file: for messages.

    Raises:
        ValueError: see :func:`check_name`.
    """
    for entry in ("dataset_name", "plans_name"):
        if entry in plans:
            check_name(plans[entry], entry, file)
    configurations = plans.get("configurations")
    for name, configuration in configurations.items() if isinstance(configurations, Mapping) else ():
        check_name(name, "configuration", file)
        for entry in ("data_identifier", "previous_stage", "next_stage"):
            # A configuration may have several next stages.
            values = configuration.get(entry) if isinstance(configuration, Mapping) else None
            for value in values if isinstance(values, list) else [values]:
                if value is not None:
                    check_name(value, f"configurations.{name}.{entry}", file)


def check_case_names(names: Iterable[Any], file: Path) -> None:
    """Refuse names of cases that lead elsewhere: nnU-Net makes paths of them.

    Raises:
        ValueError: see :func:`check_name`.
    """
    for name in names:
        check_name(name, "case", file)


def save_atomic(content: Any, path: Path, keep: Path | None = None) -> None:
    """``torch.save`` beside the target, then rename: whatever happens, ``path`` is the old file or the new one.

    Args:
        content: what to save.
        path: the file.
        keep: where the old file goes; None to replace it.

    Raises:
        OSError: the file cannot be written (no space left, no permission); names it, and what is left as it was.
    """
    import torch  # takes seconds, and most of what uses this module needs none of it

    write_atomic(path, "wb", lambda handle: torch.save(content, handle), keep)


def write_json(content: Any, path: Path) -> None:
    """JSON beside the target, then rename.

    Raises:
        OSError: as :func:`save_atomic`.
    """
    write_atomic(path, "w", lambda handle: handle.write(json.dumps(content, indent=2) + "\n"))


def write_atomic(path: Path, mode: str, write: Callable[[IO[Any]], object], keep: Path | None = None) -> None:
    """Let ``write`` fill a file beside ``path``, flush it to disk, rename it; the old file goes to ``keep``.

    Raises:
        OSError: as :func:`save_atomic`.
    """
    beside = written_beside(path)
    try:
        with beside.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, RuntimeError):
            # PyTorch's writer reports a full disk so, in words that do not say it.
            free = shutil.disk_usage(path.parent).free / 2**20
            reason = f"{reason.splitlines()[0]} ({free:.0f} MB are free)"
        # A read-only file system refuses that, too, whether there is something or not.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        kept = f"The previous {path.name} is intact." if path.exists() else "No earlier file was there."
        raise OSError(f"Could not write {path}: {reason}. {kept} Free some space or choose another folder.") from error


def written_beside(path: Path) -> Path:
    """The file that this process fills before it becomes ``path``.

    With the names of host and process: several may write the same file at once, also from several nodes.
    """
    return path.with_name(f"{path.name}.{_host()}-{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing into a folder; what a living one of this host writes stays.

    Args:
        folder: nobody on another host works in it: see :func:`locked`.
    """
    for file in folder.glob("*.tmp"):
        match = LEFT.fullmatch(file.name)
        if match and not (match["host"] in (None, _host()) and _lives(int(match["process"]))):
            log.info("removing %s, which a process that is gone was writing", file)
            file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of it when this process ends, however it ends.

    Raises:
        BusyError: another process is at it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"Another process is at work in {folder}. Wait for its end, or choose another folder (-o)."
        ) from error
    except NotImplementedError:
        log.warning("The disk of %s has no locks: see to it yourself that one process at a time works there.", folder)
    try:
        yield
    finally:
        lock.release()


class BusyError(OSError):
    """Another process works in a folder."""


def archive_fault(file: Path) -> str | None:
    """Which part of a file that ``torch.save`` wrote is damaged, by the checksums in it; None if none is.

    Also None for what has no checksums: a file that is no ZIP archive, or one that was saved without them
    (``torch.serialization.set_crc32_options``).
    """
    if not zipfile.is_zipfile(file):
        return None
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            # torch.save compresses nothing, so that what is read here is no more than what lies on the disk.
            stored = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
            if not any(entry.CRC for entry in stored):
                return None
            if sum(entry.file_size for entry in stored) > size:
                return "its parts are longer than the file"
            for entry in stored:
                try:
                    with archive.open(entry) as content:
                        while content.read(2**20):
                            pass
                except (zipfile.BadZipFile, EOFError):
                    return f"{entry.filename[:80]!a} is not what it was when it was written"
    except PermissionError:
        raise
    except Exception as error:  # zipfile answers malformed files with NotImplementedError, struct.error and others
        return f"its table of contents is wrong ({type(error).__name__})"
    return None


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # Of another user, or a number that is none: whatever it is, it is not ours to remove.
        return True
    return True


def write_or_spare(path: Path, spare: Path | None, write: Callable[[Path], object], advice: str) -> Path:
    """Write a file that a run can do without; where its own folder cannot be written to, into a spare one, and say so.

    Args:
        path: where it belongs.
        spare: folder where it goes instead; made if need be. None for nowhere.
        write: makes the file of the name that it is given.
        advice: a sentence that ends the warning: who will miss the file, and what to do.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written, neither here nor there.
    """
    try:
        write(path)
    except OSError as error:
        if spare is None:
            raise
        spare.mkdir(parents=True, exist_ok=True)
        write(spare / path.name)
        reason = getattr(error.__cause__, "strerror", None) or error
        log.warning("%s cannot be written (%s): it is in %s. %s", path, reason, spare, advice)
        return spare / path.name
    return path
