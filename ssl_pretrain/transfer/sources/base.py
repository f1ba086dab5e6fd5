"""What the readers of all formats share: an opened file, and what a reader makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.transfer.images import Images
from ssl_pretrain.transfer.safetensors_file import ENTRIES

CONTAINERS = ("network_weights", "state_dict", "model")
"""Names under which a checkpoint keeps its tensors: ours and nnU-Net's, the usual one, and a less usual one."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""What DistributedDataParallel and torch.compile put into the names of parameters."""


DEPTH = 8
"""Containers within each other; a file may also hold one that contains itself."""


@dataclass(frozen=True)
class Opened:
    """A file after opening.

    Attributes:
        file: where it is.
        content: plain containers, numbers and tensors.
        tensors: its weights by name, without the names of wrappers.
    """

    file: Path
    content: Any
    tensors: dict[str, Tensor]

    def entry(self, name: str) -> Mapping[str, Any]:
        """A mapping at the top level of the file; an empty one where there is none."""
        value = self.content.get(name) if isinstance(self.content, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    def value(self, name: str) -> Any:
        """Anything at the top level of the file; None where there is nothing."""
        return self.content.get(name) if isinstance(self.content, Mapping) else None

    @property
    def about(self) -> dict[str, Any]:
        """What checkpoints of ours and of nnssl say besides their tensors, as far as it is there."""
        return {name: self.value(name) for name in ENTRIES if self.value(name) is not None}


@dataclass(frozen=True)
class Reading:
    """What a reader makes of a file.

    Attributes:
        origin: short name of the format, for reports.
        tensors: by the names of the network that they were made for.
        ours: whether the file says itself which of its tensors are pretrained.
        patch: voxels of the patch that the weights were trained with; None where the file does not say.
        metadata: what the file says of itself; plain containers, as in JSON.
        left_out: tensors that are not handed on although a network may have some of that name, with the reason.
        images: what the weights were trained on, where the format says so elsewhere than in ``metadata``.
    """

    origin: str
    tensors: dict[str, Tensor]
    ours: bool = False
    patch: Triple | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    images: Images | None = None


class WeightsFormat(Protocol):
    """A format: what its module has."""

    ORIGIN: str

    def recognise(self, opened: Opened) -> bool:
        """Whether a file is of this format."""

    def read(self, opened: Opened) -> Reading:
        """Turn a file of this format into plain tensors."""


def plain_name(key: str) -> str:
    """Return a parameter's name without the parts that DistributedDataParallel and torch.compile put in."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The weights in a file's content, by their names without those of wrappers.

    Args:
        content: a mapping with tensors at its top level or, up to :data:`DEPTH` deep, under one of :data:`CONTAINERS`.
    """
    plain: dict[str, Tensor] = {}
    for key, value in _innermost(content).items():
        if isinstance(value, Tensor) and not _oddity(value):
            name = plain_name(str(key))
            plain[str(key) if name in plain else name] = value
    return plain


def odd_tensors_of(content: Any) -> dict[str, str]:
    """The tensors where :func:`tensors_of` looks that it does not return, by their names, with what they are."""
    tensors = {str(key): value for key, value in _innermost(content).items() if isinstance(value, Tensor)}
    return {plain_name(key): oddity for key, value in tensors.items() if (oddity := _oddity(value))}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    # Each once, however many names it has.
    finite = {id(value): _is_finite(value) for value in {id(value): value for value in tensors.values()}.values()}
    return [name for name, value in tensors.items() if not finite[id(value)]]


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same tensors under other names."""
    return {rename(key): value for key, value in tensors.items()}


def any_begins(names: Iterable[str], beginning: str) -> bool:
    """Whether one of the names begins so."""
    return any(name.startswith(beginning) for name in names)


def patch_in(size: Any) -> Triple | None:
    """A patch size as a file states it; None if there is none, or none of a volume."""
    try:
        numbers = [int(n) for n in size]
    except (TypeError, ValueError, OverflowError):
        return None
    return as_triple(numbers, "patch_size in the file") if len(numbers) == 3 else None


def _innermost(content: Any) -> Mapping[Any, Any]:
    for _ in range(DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return content
        content = inner[0]
    return {}


def _oddity(value: Tensor) -> str:
    if value.is_meta:
        return "a meta tensor, which has no values"
    if value.layout != torch.strided:
        return "a sparse tensor, which no network takes: save it after to_dense()"
    return "a quantised tensor, which no network takes: save it after dequantize()" if value.is_quantized else ""


def _is_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()) or not value.numel():
        return True
    # There is no isfinite for numbers of eight bits.
    return bool(torch.isfinite(value.float() if value.dtype.itemsize == 1 else value).all())
