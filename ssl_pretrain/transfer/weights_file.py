"""Opening files of weights that somebody else made, without running what is in them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from ssl_pretrain.functional.geometry import Triple, as_triple

CONTAINERS = ("network_weights", "state_dict", "model")
"""Names under which a checkpoint keeps its tensors: ours and nnU-Net's, the usual one, and a less usual one."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""What DistributedDataParallel and torch.compile put into the names of parameters."""

NUMERIC_TYPES = "?bBhHiIlLqQefdgFDSU"
"""NumPy's type codes of numbers and text; arrays of arbitrary objects are not among them."""


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file.

    Attributes:
        file: where they come from.
        tensors: by name, without the names of wrappers; on the CPU. For a file of ours only what was pretrained.
        ours: whether the file says itself which of its tensors are pretrained.
        patch: voxels of the patch that the weights were trained with; None where the file does not say.
    """

    file: Path
    tensors: dict[str, Tensor]
    ours: bool
    patch: Triple | None = None


def read_weights(file: str | Path) -> WeightsFile:
    """Read the tensors of a checkpoint or a bare ``state_dict``; nothing in the file is executed.

    Args:
        file: written by ``torch.save``: our ``checkpoint_final.pth``, a checkpoint of nnU-Net (version 1 or 2), or any
            file with tensors under ``state_dict``, under ``model`` or at its top level.

    Raises:
        FileNotFoundError: no such file.
        ValueError: needs arbitrary code to be opened (refused), is no checkpoint, is truncated, or holds no tensors.
    """
    file = Path(file)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The file of pretrained weights {file} {what}. Name a file such as …/checkpoint_final.pth."
        )
    content = _open(file)
    tensors = _find_tensors(content)
    pretraining = content.get("pretraining") if isinstance(content, Mapping) else None
    ours = isinstance(pretraining, Mapping) and "pretrained_keys" in pretraining
    if isinstance(pretraining, Mapping) and ours:
        tensors = _only_pretrained(file, tensors, list(pretraining["pretrained_keys"]))
    if not tensors:
        raise ValueError(
            f"{file} holds no weights: there are no tensors at its top level nor under {', '.join(CONTAINERS)}."
        )
    return WeightsFile(file, _without_wrappers(tensors), ours, _patch_of(content))


def _patch_of(content: Any) -> Triple | None:
    """The patch size that a file of ours, or one of nnssl, names."""
    if not isinstance(content, Mapping):
        return None
    plan = content.get("nnssl_adaptation_plan")
    configurations = plan.get("pretrain_plan", {}).get("configurations", {}) if isinstance(plan, Mapping) else {}
    sizes = [entry.get("patch_size") for entry in configurations.values() if isinstance(entry, Mapping)]
    pretraining = content.get("pretraining")
    if isinstance(pretraining, Mapping):
        sizes.insert(0, pretraining.get("patch_size"))
    found = next((size for size in sizes if size), None)
    return as_triple(list(found), "patch_size in the file") if found else None


def plain_name(key: str) -> str:
    """Return a parameter's name without the parts that DistributedDataParallel and torch.compile put in."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _open(file: Path) -> Any:
    try:
        with _harmless_numpy(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # torch.load answers malformed files with KeyError, EOFError, struct.error and others
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise ValueError(
                f"{file} is refused: opening it would run {wanted[1].rstrip('.')}, and a file of weights must not run "
                "code. If you trust where it comes from, load it yourself and save its tensors alone: "
                "torch.save({'network_weights': network.state_dict()}, FILE)."
            ) from error
        raise ValueError(
            f"{file} cannot be opened as a checkpoint ({_first_line(error)}): it is truncated, or torch.save did not "
            "write it. Copy or download it again."
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


@contextmanager
def _harmless_numpy() -> Iterator[None]:
    """Let ``weights_only`` pass NumPy's numbers: every checkpoint of nnU-Net has them in its log."""
    before = get_safe_globals()
    # Not torch.serialization.safe_globals, which PyTorch 2.4 does not have yet.
    add_safe_globals(_numpy_globals())
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _numpy_globals() -> list[Any]:
    # NumPy 2 renamed numpy.core; a file has the name of the NumPy that wrote it, which need not be the one here.
    core = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    multiarray = import_module(f"{core}.multiarray")
    makers = (multiarray.scalar, multiarray._reconstruct)
    aliases = [_under_name(maker, f"numpy.{name}.multiarray") for maker in makers for name in ("core", "_core")]
    return [*aliases, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in NUMERIC_TYPES}]


def _under_name(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__ = module
    alias.__name__ = alias.__qualname__ = function.__name__
    return alias


def _find_tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            return _find_tensors(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor) and _is_plain(value)}


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _only_pretrained(file: Path, tensors: dict[str, Tensor], keys: list[Any]) -> dict[str, Tensor]:
    absent = [key for key in keys if key not in tensors]
    if absent or not keys:
        raise ValueError(
            f"{file} says that {len(keys)} tensors are pretrained, of which {len(absent)} are not in it "
            f"({', '.join(map(str, absent[:3]))}): the file is damaged. Export it again."
        )
    return {key: tensors[key] for key in keys}


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = plain_name(key)
        plain[key if name in plain else name] = value
    return plain
