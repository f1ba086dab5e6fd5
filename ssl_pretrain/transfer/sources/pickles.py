"""Opening what ``torch.save`` wrote without running what is in it.

Everything goes through ``weights_only=True`` and a list of harmless classes. A file that names anything else is
refused, and the refusal lists all of it, found by reading the pickle and not by executing it.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch
from torch._weights_only_unpickler import _get_allowed_globals
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

NUMERIC_TYPES = "?bBhHiIlLqQefdgFDSU"
"""NumPy's type codes of numbers and text; arrays of arbitrary objects are not among them."""

CONTAINER_TYPES = (dict, list, frozenset, slice, range, argparse.Namespace)
"""Classes of other people's checkpoints that only hold values: logs, and the arguments of a run."""

LEGACY_PICKLES = 5
"""Pickles in a row at the beginning of a file that PyTorch before 1.6 wrote."""


def open_pickle(file: Path) -> Any:
    """Return the content of a file that ``torch.save`` wrote; nothing in it is executed.

    Raises:
        ValueError: needs arbitrary code to be opened (refused, with the names of all of it), or is no checkpoint.
    """
    try:
        with _harmless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # torch.load answers malformed files with KeyError, EOFError, struct.error and others
        wanted = unsafe_globals(file)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted or named:
            names = ", ".join(wanted) if wanted else str(named and named[1].rstrip("."))
            raise ValueError(
                f"{file} is refused: opening it would run {names}, and a file of weights must not run "
                "code. If you trust where it comes from, load it yourself and save its tensors alone: "
                "torch.save({'network_weights': network.state_dict()}, FILE)."
            ) from error
        raise ValueError(_not_a_checkpoint(file, error)) from error


def unsafe_globals(file: Path) -> list[str]:
    """Dotted names of what opening a file would import beyond what is harmless; nothing is executed.

    Args:
        file: written by ``torch.save``, in whatever version, or by ``pickle``. Of a damaged one, the names before the
            damage.
    """
    with _harmless():
        harmless = {*_get_allowed_globals(), *(f"{one.__module__}.{one.__qualname__}" for one in _harmless_globals())}
    names = (_python3_name(name) for name in _all_globals(file))
    return list(dict.fromkeys(name for name in names if name not in harmless))


def _all_globals(file: Path) -> list[str]:
    found: list[str] = []
    for stream in _streams(file):
        # Whatever is wrong with the file, it is refused; this only says why.
        with stream, suppress(Exception):
            for _ in range(LEGACY_PICKLES):
                for name in _globals_of(stream):
                    found.append(name)
    return found


def _streams(file: Path) -> list[IO[bytes]]:
    if not zipfile.is_zipfile(file):
        return [file.open("rb")]
    with zipfile.ZipFile(file) as archive, suppress(zipfile.BadZipFile):
        return [BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]
    return []


def _globals_of(stream: IO[bytes]) -> Iterator[str]:
    """Names of one pickle, in order; those that newer protocols take from the stack are followed through the memo."""
    texts = ["?", "?"]
    memo: dict[Any, str] = {}
    latest = "?"
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name == "MEMOIZE" or name.endswith("PUT"):
            memo[len(memo) if argument is None else argument] = latest
            continue
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif name.startswith("EXT"):
            yield f"copyreg.extension({argument})"
        latest = memo.get(argument, "?") if name.endswith("GET") else str(argument) if "UNICODE" in name else "?"
        if latest != "?":
            texts.append(latest)


def _python3_name(name: str) -> str:
    """The name of today: pickles of the usual protocol 2 say ``__builtin__`` for ``builtins``."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def _not_a_checkpoint(file: Path, error: Exception) -> str:
    if file.name.endswith(".model.pkl"):
        return (
            f"{file} cannot be opened as a checkpoint: it is nnU-Net v1's description of a training. The weights are "
            f"in {file.name.removesuffix('.pkl')}, which lies beside it; that file alone is needed."
        )
    return (
        f"{file} cannot be opened as a checkpoint ({_first_line(error)}): it is truncated, or torch.save did not "
        "write it. Copy or download it again."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


@contextmanager
def _harmless() -> Iterator[None]:
    """Let ``weights_only`` pass what only holds values; every checkpoint of nnU-Net has NumPy's numbers in its log."""
    before = get_safe_globals()
    # Not torch.serialization.safe_globals, which PyTorch 2.4 does not have yet.
    add_safe_globals(_harmless_globals())
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _harmless_globals() -> list[Any]:
    # PyTorch fills plain dictionaries only.
    defaults = _under_name(lambda *_: {}, "collections", "defaultdict")
    return [*_numpy_globals(), *_path_globals(), *CONTAINER_TYPES, defaults]


def _numpy_globals() -> list[Any]:
    # NumPy 2 renamed numpy.core; a file has the name of the NumPy that wrote it, which need not be the one here.
    core = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    multiarray = import_module(f"{core}.multiarray")
    makers = (multiarray.scalar, multiarray._reconstruct)
    aliases = [
        _under_name(maker, f"numpy.{name}.multiarray", maker.__name__) for maker in makers for name in ("core", "_core")
    ]
    return [*aliases, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in NUMERIC_TYPES}]


def _path_globals() -> list[Any]:
    # Paths of another system cannot be made here, and nobody needs more of them than the text.
    kinds = {"Posix": PurePosixPath, "Windows": PureWindowsPath}
    return [
        _under_name(kind, module, f"{prefix}{system}Path")
        for system, kind in kinds.items()
        for prefix in ("", "Pure")
        for module in ("pathlib", "pathlib._local")
    ]


def _under_name(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__ = module
    alias.__name__ = alias.__qualname__ = name
    return alias
