"""Which stages of an encoder work on packed cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal, get_args

from torch import nn

from ssl_pretrain.functional.geometry import Triple, as_triple, is_maskable
from ssl_pretrain.networks.base import FeatureMap, StagedEncoder
from ssl_pretrain.sparse.block_conv import geometry_of

log = logging.getLogger("ssl_pretrain")

Backend = Literal["auto", "masked", "blocks", "spconv"]
BACKENDS: tuple[str, ...] = get_args(Backend)

SMALLEST_PACKED_CELL = 8
"""Voxels. On two CPU cores a stage whose cells have 2³ voxels is faster packed, one with single voxels is not at 60 %
masked (``benchmarks/README.md``)."""


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


def rule_of_thumb(maps: Sequence[FeatureMap], cell: Triple, packable: int) -> int:
    """How many of the packable stages are faster packed on a CPU."""
    voxels = [prod(c // s for c, s in zip(cell, m.stride, strict=True)) for m in maps[:packable]]
    return sum(v >= SMALLEST_PACKED_CELL for v in voxels)


def fastest(seconds: Callable[[int], float], packable: int) -> int:
    """The number of packed stages with the shortest time; times are logged.

    Args:
        seconds: time of a forward and backward pass with so many packed stages.
        packable: most stages to try.
    """
    times = {packed: seconds(packed) for packed in range(packable + 1)}
    best = min(times, key=lambda packed: times[packed])
    table = ", ".join(f"{packed}: {1000 * t:.1f} ms" for packed, t in times.items())
    log.info("sparse=auto: encoder forward and backward by number of packed stages: %s; takes %d", table, best)
    return best


def _is_packable(layer: nn.Module, step: Triple) -> bool:
    """Whether a layer works on packed cells, in a stage that steps ``step`` voxels."""
    if isinstance(layer, nn.Conv3d):
        return geometry_of(layer) is not None and tuple(layer.stride) in ((1, 1, 1), step)
    if isinstance(layer, (nn.MaxPool3d, nn.AvgPool3d)):
        kernel, stride, padding = (_per_axis(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        return kernel == stride == step and padding == (0, 0, 0)
    return True


def _per_axis(value: int | Sequence[int]) -> Triple:
    """A layer's setting, one number or three, as three; zeros are fine."""
    d, h, w = [value] * 3 if isinstance(value, int) else value
    return d, h, w
