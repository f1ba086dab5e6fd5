"""Random numbers that decide what is done to a crop: drawn and kept on the host, which has to know them."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import Window

ROUNDING = 1e-6
"""Voxels. ``4 / 7 * 161`` is 92 voxels, whichever side of it the floating-point number falls on."""


def whole_voxels(patch: Triple, share: float, up: bool = False) -> Triple:
    """A share of each axis in whole voxels, rounded down (or up) and at least 1."""
    d, h, w = (max(1, ceil(p * share - ROUNDING) if up else floor(p * share + ROUNDING)) for p in patch)
    return d, h, w


def draw_uniform(*shape: int, generator: np.random.Generator) -> Tensor:
    """Uniform numbers in [0, 1), float64, on the host."""
    return torch.from_numpy(generator.random(shape))


def draw_chosen(batch: int, p: float, generator: np.random.Generator) -> tuple[bool, ...]:
    """Which samples something happens to, each with probability ``p``."""
    return tuple((draw_uniform(batch, generator=generator) < p).tolist())


def draw_seeds(batch: int, generator: np.random.Generator) -> tuple[int, ...]:
    """A seed per sample, for what is too large to be a parameter: noise and permutations."""
    return tuple(generator.integers(2**62, size=batch).tolist())


def draw_windows(
    batch: int,
    count: int,
    patch: Triple,
    smallest: Triple,
    largest: Triple,
    generator: np.random.Generator,
    margin: int = 0,
) -> list[list[Window]]:
    """Boxes whose sides and places are uniform, every axis for itself.

    Args:
        batch: samples.
        count: boxes per sample.
        patch: voxels per axis.
        smallest: shortest side per axis, voxels.
        largest: longest side per axis, voxels.
        generator: owner of the randomness.
        margin: voxels that stay free at both ends of each axis; fewer where the longest side leaves no room for them.

    Raises:
        ValueError: the longest side is longer than the patch, or shorter than the shortest.
    """
    if any(not 1 <= s <= m <= p for s, m, p in zip(smallest, largest, patch, strict=True)):
        raise ValueError(
            f"Boxes of {smallest} to {largest} voxels do not fit a patch of {patch}: along every axis "
            "1 <= shortest <= longest <= patch must hold. Choose smaller sides or a larger patch."
        )
    size, low, high = (torch.tensor(t, dtype=torch.float64) for t in (patch, smallest, largest))
    free = torch.minimum(torch.tensor(float(margin)), ((size - high) / 2).floor())
    for_sides, for_starts = draw_uniform(2, batch, count, 3, generator=generator)
    sides = low + (for_sides * (high - low + 1)).floor()
    starts = free + (for_starts * (size - sides - 2 * free + 1)).floor()
    corners = torch.stack([starts, starts + sides], dim=3).long().tolist()
    return [[_window(box) for box in sample] for sample in corners]


def _window(box: list[list[int]]) -> Window:
    """First voxel and end per axis -> slices."""
    d, h, w = (slice(start, stop) for start, stop in box)
    return d, h, w
