"""Which stages of an encoder work on packed cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal, NamedTuple

from torch import nn

from ssl_pretrain.functional.geometry import Triple, as_triple, is_maskable
from ssl_pretrain.networks.base import FeatureMap, StagedEncoder
from ssl_pretrain.sparse.block_conv import geometry_of
from ssl_pretrain.sparse.layers import MaskedLayer

log = logging.getLogger("ssl_pretrain")

Backend = Literal["auto", "masked", "blocks", "spconv"]
PackedConvolution = Literal["blocks", "spconv"]


class Choice(NamedTuple):
    """How an encoder leaves masked voxels out.

    Attributes:
        packed_stages: stages, from the finest, that compute visible cells only; 0 is masked-dense.
        convolution: what computes convolutions there.
    """

    packed_stages: int
    convolution: PackedConvolution = "blocks"

    def __str__(self) -> str:
        return f"{self.convolution} in the first {self.packed_stages}" if self.packed_stages else "masked in all"


POINTWISE = (
    nn.Identity,
    nn.LeakyReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Dropout,
    nn.Dropout3d,
)
"""Layers that act on each voxel, or each channel, alone."""

SMALLEST_PACKED_CELL = 8
"""Voxels. On two CPU cores a stage whose cells have 2³ voxels is faster packed, one with single voxels is not at 60 %
masked (``benchmarks/README.md``)."""
SMALLEST_MASKED_SHARE = 0.4
"""With little masked, copying halos costs what skipping saves. A cautious bound: 60 % and more were measured."""


def packable_stages(encoder: nn.Module, maps: Sequence[FeatureMap], cell: Triple) -> tuple[int, str]:
    """How many stages, from the finest, can work on packed cells, and what keeps the next one from it.

    Args:
        encoder: converted; its stages yield ``maps``.
        maps: channels and cumulative strides, fine to coarse.
        cell: voxels of a mask cell per axis.
    """
    if not isinstance(encoder, StagedEncoder):
        return 0, "an encoder of your own runs as a whole, so its maps cannot change their layout between stages"
    before: Triple = (1, 1, 1)
    for i, (stage, feature_map) in enumerate(zip(encoder.stages, maps, strict=True)):
        if not is_maskable(feature_map.stride, cell):
            return i, f"stage {i} is coarser than the mask's cells"
        modules = [*stage.modules(), *(encoder.stem.modules() if i == 0 else ())]
        step = as_triple([now // then for now, then in zip(feature_map.stride, before, strict=True)], "stride")
        wrong = next((layer for layer in modules if not _is_packable(layer, step)), None)
        if wrong is not None:
            return i, f"stage {i} has {wrong}"
        before = feature_map.stride
    return len(maps), ""


def rule_of_thumb(maps: Sequence[FeatureMap], cell: Triple, packable: int, masked_share: float) -> int:
    """How many of the packable stages are faster packed on a CPU.

    Args:
        maps: channels and cumulative strides of the encoder's maps.
        cell: voxels of a mask cell per axis.
        packable: stages that can be packed.
        masked_share: share of the cells that is masked.
    """
    if masked_share < SMALLEST_MASKED_SHARE:
        return 0
    voxels = [prod(c // s for c, s in zip(cell, m.stride, strict=True)) for m in maps[:packable]]
    return sum(v >= SMALLEST_PACKED_CELL for v in voxels)


def fastest(seconds: Callable[[Choice], float], choices: Sequence[Choice]) -> Choice:
    """The choice with the shortest time; times are logged.

    Args:
        seconds: time of a forward and backward pass of the encoder.
        choices: what to try, at least one.
    """
    times = {choice: seconds(choice) for choice in choices}
    best = min(times, key=lambda choice: times[choice])
    table = ", ".join(f"{choice}: {1000 * t:.1f} ms" for choice, t in times.items())
    log.info("encoder forward and backward: %s; takes %s", table, best)
    return best


def _is_packable(layer: nn.Module, step: Triple) -> bool:
    """Whether a layer works on packed cells, in a stage that steps ``step`` voxels."""
    if isinstance(layer, nn.Conv3d):
        return geometry_of(layer) is not None and tuple(layer.stride) in ((1, 1, 1), step)
    if isinstance(layer, (nn.MaxPool3d, nn.AvgPool3d)):
        kernel, stride, padding = (_per_axis(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        dilation = _per_axis(getattr(layer, "dilation", 1))
        return kernel == stride == step and padding == (0, 0, 0) and dilation == (1, 1, 1)
    if isinstance(layer, nn.ConvTranspose3d):
        # A stage steps down or not at all; what goes up within it would leave its cells.
        return False
    is_leaf = next(layer.children(), None) is None
    # Containers compute what their layers compute. A layer without parameters that we do not know may look across the
    # faces of cells.
    return not is_leaf or isinstance(layer, (MaskedLayer, *POINTWISE))


def _per_axis(value: int | Sequence[int]) -> Triple:
    """A layer's setting, one number or three, as three; zeros are fine."""
    d, h, w = [value] * 3 if isinstance(value, int) else value
    return d, h, w
