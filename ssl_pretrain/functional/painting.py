"""In-painting and out-painting (Models Genesis): boxes, or all but boxes, become noise of the crop's own range."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import Window, draw_seeds, draw_uniform, draw_windows, whole_voxels
from ssl_pretrain.functional.geometry import Triple

Kind = Literal["none", "in", "out"]


class Painting(NamedTuple):
    """Parameters of :func:`apply_painting`, on the host.

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
    generator: torch.Generator,
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


def apply_painting(images: Tensor, painting: Painting) -> Tensor:
    """Paint noise inside or outside of the windows: U(minimum, maximum) of the sample's channel, voxel by voxel.

    Args:
        images: (B, C, D, H, W), float32; not changed.
        painting: parameters of as many samples.
    """
    result = torch.empty_like(images)
    generator = torch.Generator(images.device)
    for image, painted, kind, windows, seed in zip(images, result, *painting, strict=True):
        generator.manual_seed(seed)
        if kind == "out":
            _fill_with_noise(painted, image, generator)
        else:
            painted.copy_(image)
        for window in windows:
            if kind == "out":
                painted[(..., *window)] = image[(..., *window)]
            else:
                _fill_with_noise(painted[(..., *window)], image, generator)
    return result


def _fill_with_noise(part: Tensor, image: Tensor, generator: torch.Generator) -> None:
    """Overwrite a part of a volume by noise, uniform over the range of each channel of ``image``."""
    for channel, whole in zip(part, image, strict=True):
        low, high = whole.aminmax()
        noise = torch.rand(channel.shape, generator=generator, device=channel.device, dtype=channel.dtype)
        channel.copy_(noise.mul_(high - low).add_(low))
