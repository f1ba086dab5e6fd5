"""What pickles of others may name: stand-ins that only hold values, and a reader that knows nothing else.

``weights_only`` lets a file call whatever is allowed, with arguments of the file's making. Some classes that look
harmless are not: ``numpy.ndarray`` called with a buffer reads any place in memory. So none of them is allowed itself;
what stands in for it takes what an honest file gives it, and refuses everything else.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

CODE = re.compile(r"[biu][1248]|f[248]|c(8|16)|[mM]8|[SU]\d{1,6}")
"""NumPy's codes of numbers and text; arbitrary objects and records are not among them."""

DTYPE_STATE = 5
"""Entries of a dtype's state that matter: version, byte order, and three that only records have."""


class RefusalError(ValueError):
    """A file calls something in a way in which no honest one does; the text is the call."""


class DtypeStandIn:
    """Stands in for ``numpy.dtype``, whose own ``__setstate__`` believes what it is told."""

    __module__, __qualname__ = "numpy", "dtype"

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not CODE.fullmatch(code):
            text = repr(code) if isinstance(code, str) else "…"
            objects = " for an array of objects" if isinstance(code, str) and code.startswith("O") else ""
            raise RefusalError(f"numpy.dtype({text:.20}){objects}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, *record = state[:DTYPE_STATE]
        if order not in ("<", ">", "=", "|") or any(record):
            raise RefusalError("numpy.dtype.__setstate__(…)")
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stands in for ``numpy.ndarray``: a sequence, whose memory is that of the bytes in the file."""

    __module__, __qualname__ = "numpy", "ndarray"

    array: Any = ()

    def __init__(self, *_: Any) -> None:
        # Only ever the first argument of _reconstruct.
        raise RefusalError("numpy.ndarray(…)")

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not (whole and type(kind) is DtypeStandIn and type(raw) is bytes and kind.dtype.itemsize):
            raise RefusalError("numpy.ndarray.__setstate__(…)")
        if prod(shape) * kind.dtype.itemsize != len(raw):
            raise RefusalError(f"numpy.ndarray.__setstate__(…) with {len(raw)} bytes for a shape of {shape!r:.60}")
        flat = np.frombuffer(raw, kind.dtype) if raw else np.zeros(0, kind.dtype)
        self.array = flat.reshape(shape, order="F" if fortran is True else "C")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


class Arguments:
    """Stands in for ``argparse.Namespace``."""

    __module__, __qualname__ = "argparse", "Namespace"

    def __init__(self) -> None:
        """Without arguments, as unpickling does it."""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(dict(state))


def harmless_globals() -> list[Any]:
    """All of them, each with the module and the name of what it stands in for."""
    numpy = [
        _under_name(function, f"numpy.{core}.multiarray", name)
        # NumPy 2 renamed numpy.core; a file has the name of the NumPy that wrote it, which need not be the one here.
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    ]
    # Factories of a defaultdict, which PyTorch does not fill: it becomes a plain dictionary.
    empty = [_under_name(_empty(kind), "builtins", kind.__name__) for kind in (dict, list, bytes)]
    filled = [_under_name(function, "builtins", function.__name__[1:]) for function in (_frozenset, _range, _slice)]
    defaults = _under_name(lambda *_: {}, "collections", "defaultdict")
    return [*numpy, *empty, *filled, defaults, *_path_globals(), DtypeStandIn, Array, Arguments]


def read_pickle(file: Path) -> Any:
    """Content of a file that ``pickle`` wrote, made of plain containers, numbers, text, and arrays that are read-only.

    Raises:
        OSError: it cannot be read.
        RefusalError: it names something else; the text is the name.
        Exception: it is damaged; any of those that a wrong index, name or instruction leads to.
    """
    with file.open("rb") as stream:
        return _with_arrays(_Reader(stream).load(), {})


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _by_name().get((module, name))
        if found is None:
            raise RefusalError(f"{module}.{name}")
        return found


@cache
def _by_name() -> dict[tuple[str, str], Any]:
    """What stands in for a name in a plain pickle, where PyTorch's own reader allows nothing besides."""
    known = {(one.__module__, one.__qualname__): one for one in harmless_globals()}
    known |= {("numpy.core.numeric", "_frombuffer"): _from_buffer, ("numpy._core.numeric", "_frombuffer"): _from_buffer}
    known |= {("collections", "OrderedDict"): OrderedDict, ("_codecs", "encode"): _encode}
    known |= {("builtins", "set"): lambda *items: set(_frozenset(*items)), ("builtins", "bytearray"): _bytearray}
    return known | {("__builtin__", name): one for (module, name), one in known.items() if module == "builtins"}


def _with_arrays(value: Any, known: dict[int, Any]) -> Any:
    """The same with arrays in the place of what stood in for them, each container once however often it occurs."""
    kind = type(value)
    if kind is Array:
        return value.array
    if kind not in (dict, OrderedDict, list, tuple):
        return value
    if id(value) not in known:
        if isinstance(value, dict):
            known[id(value)] = kind((key, _with_arrays(inner, known)) for key, inner in value.items())
        else:
            known[id(value)] = kind(_with_arrays(inner, known) for inner in value)
    return known[id(value)]


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any, *_: Any) -> Array:
    """As pickles of protocol 5 make an array."""
    made = Array.__new__(Array)
    made.__setstate__((1, shape, kind, order == "F", bytes(raw) if isinstance(raw, bytearray) else raw))
    return made


def _encode(text: Any, codec: Any) -> bytes:
    # As pickles of protocol 2 make bytes.
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        raise RefusalError("_codecs.encode(…)")
    return text.encode("latin-1")


def _bytearray(*given: Any) -> bytearray:
    if given and type(given[0]) is str:
        return bytearray(_encode(*given))
    if any(type(part) is not bytes for part in given):
        raise RefusalError("builtins.bytearray(…)")
    return bytearray(*given)


def _path_globals() -> list[Any]:
    # Paths of another system cannot be made here, and nobody needs more of them than the text.
    kinds = {"Posix": PurePosixPath, "Windows": PureWindowsPath}
    return [
        _under_name(_path(kind), module, f"{prefix}{system}Path")
        for system, kind in kinds.items()
        for prefix in ("", "Pure")
        for module in ("pathlib", "pathlib._local")
    ]


def _reconstruct(kind: Any, *_: Any) -> Array:
    if kind is not Array:
        raise RefusalError("numpy._core.multiarray._reconstruct(…)")
    return Array.__new__(Array)


def _scalar(kind: Any, raw: Any) -> Any:
    if type(kind) is not DtypeStandIn or type(raw) is not bytes or len(raw) != kind.dtype.itemsize:
        raise RefusalError("numpy._core.multiarray.scalar(…)")
    return np.frombuffer(raw, kind.dtype)[0] if raw else kind.dtype.type()


def _empty(kind: type[Any]) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        if args:
            raise RefusalError(f"builtins.{kind.__name__}(…)")
        return kind()

    return make


def _frozenset(items: Any = ()) -> frozenset[Any]:
    if type(items) not in (list, tuple):
        raise RefusalError("builtins.frozenset(…)")
    return frozenset(items)


def _slice(*bounds: Any) -> slice:
    if any(type(bound) not in (int, type(None)) for bound in bounds):
        raise RefusalError("builtins.slice(…)")
    return slice(*bounds)


def _range(*bounds: Any) -> slice:
    # A range of 10^10 numbers takes no memory; a set of them does. Nothing runs through a slice.
    return _slice(*bounds)


def _path(kind: type[PurePath]) -> Callable[..., Any]:
    def make(*parts: Any) -> Any:
        if any(type(part) is not str for part in parts):
            raise RefusalError(f"pathlib.{kind.__name__}(…)")
        return kind(*parts)

    return make


def _under_name(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__ = module
    alias.__name__ = alias.__qualname__ = name
    return alias
