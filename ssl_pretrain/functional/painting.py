"""In-painting and out-painting (Models Genesis): boxes, or all but boxes, become noise of the crop's own range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_seeds, draw_uniform, draw_windows, whole_voxels
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.intensity import value_ranges
from ssl_pretrain.functional.windows import Window, covering, disjoint, slabs, whole_window, without

Kind = Literal["none", "in", "out"]


class Painting(NamedTuple):
    """Parameters of :func:`apply_painting_`, on the host.

    Attributes:
        kinds: (B), ``in``: the windows become noise; ``out``: all but the windows does; ``none``: nothing does.
        windows: (B) lists of boxes; empty where the kind is ``none``.
        seeds: (B), of the noise.
    """

    kinds: tuple[Kind, ...]
    windows: tuple[tuple[Window, ...], ...]
    seeds: tuple[int, ...]


def draw_painting(
    batch: int,
    patch: Triple,
    generator: np.random.Generator,
    *,
    p: float = 0.9,
    inside_p: float = 0.2,
    windows: int = 5,
    next_p: float = 0.95,
    inside_sides: tuple[float, float] = (1 / 6, 1 / 3),
    outside_sides: tuple[float, float] = (3 / 7, 4 / 7),
    margin: int = 3,
) -> Painting:
    """Draw for each sample whether it is painted, how, and where.

    Args:
        batch: samples.
        patch: voxels per axis.
        generator: owner of the randomness.
        p: probability that a sample is painted at all.
        inside_p: probability that a painted sample is in-painted.
        windows: largest number of windows.
        next_p: probability that another window follows; the first window of out-painting is always there.
        inside_sides: shortest and longest side of a window of in-painting, as shares of the patch (rounded down).
        outside_sides: the same for out-painting (rounded up).
        margin: voxels between a window and the border of the patch, where there is room.
    """
    painted, inside = draw_uniform(2, batch, generator=generator)
    going_on = (draw_uniform(batch, windows, generator=generator) < next_p).long()
    seeds = draw_seeds(batch, generator)
    inner_sides = whole_voxels(patch, inside_sides[0]), whole_voxels(patch, inside_sides[1])
    outer_sides = whole_voxels(patch, outside_sides[0], up=True), whole_voxels(patch, outside_sides[1], up=True)
    inner = draw_windows(batch, windows, patch, *inner_sides, generator, margin)
    outer = draw_windows(batch, windows, patch, *outer_sides, generator, margin)
    kinds: list[Kind] = []
    chosen: list[tuple[Window, ...]] = []
    for sample in range(batch):
        kind: Kind = "none" if painted[sample] >= p else "in" if inside[sample] < inside_p else "out"
        if kind == "out":
            going_on[sample, 0] = 1
        count = int(going_on[sample].cumprod(0).sum())
        kinds.append(kind)
        chosen.append(tuple({"none": [], "in": inner[sample], "out": outer[sample]}[kind][:count]))
    return Painting(tuple(kinds), tuple(chosen), seeds)


def seen_windows(painting: Painting, patch: Triple) -> list[list[Window]]:
    """For each sample, windows that do not overlap and hold every voxel that out-painting leaves as it is.

    What is done to the others, before they become noise, is done in vain.
    """
    return [
        covering(windows) if kind == "out" else [whole_window(patch)]
        for kind, windows in zip(painting.kinds, painting.windows, strict=True)
    ]


def apply_painting_(images: Tensor, painting: Painting, ranges: Tensor | None = None) -> Tensor:
    """Paint noise inside or outside of the windows, in place: U(minimum, maximum) of the channel, voxel by voxel.

    Args:
        images: (B, C, D, H, W), float32; changed.
        painting: parameters of as many samples.
        ranges: (B, C, 2), see :func:`~ssl_pretrain.functional.intensity.value_ranges`; None for those of ``images``.

    Returns:
        ``images``.
    """
    d, h, w = images.shape[2:]
    whole = whole_window((d, h, w))
    for image, limits, kind, windows, seed in zip(
        images, value_ranges(images) if ranges is None else ranges, *painting, strict=True
    ):
        noise = _Noise(seed, images.device)
        hidden = without(whole, windows) if kind == "out" else disjoint(windows)
        for channel, (low, high) in zip(image, limits, strict=True):
            for part in (channel[slab] for window in hidden for slab in slabs(window, images.device)):
                torch.add(low, noise.draw(part.shape).mul_(high - low), out=part)
    return images


class _Noise:
    """Uniform numbers in [0, 1), float32, on a device. On the CPU NumPy makes them, in two thirds of PyTorch's time."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.host = np.random.default_rng(seed)
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(self.host.random(tuple(shape), dtype=np.float32))
        return torch.rand(*shape, generator=self.generator, device=self.device)
