"""Non-linear change of intensity along a random Bézier curve (Models Genesis), within the range of the crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_chosen, draw_uniform
from ssl_pretrain.functional.windows import Window, hand_over, slabs, whole_window

STEPS = 4096
"""Intervals of the table in which a curve is looked up; between its entries the curve is taken as straight."""


class IntensityCurves(NamedTuple):
    """Parameters of :func:`apply_intensity_`, on the host.

    Attributes:
        chosen: (B), which samples change.
        points: (B, C, 2, 2), the two inner control points of each channel's curve, (x, y) each, in the unit square.
        falling: (B, C) boolean, whether the curve runs from (0, 1) to (1, 0) instead of from (0, 0) to (1, 1).
    """

    chosen: tuple[bool, ...]
    points: Tensor
    falling: Tensor


def draw_intensity(
    batch: int, channels: int, generator: np.random.Generator, *, p: float = 0.9, falling_p: float = 0.5
) -> IntensityCurves:
    """Draw a curve per sample and channel.

    Args:
        batch: samples.
        channels: channels, each of which gets a curve of its own.
        generator: owner of the randomness.
        p: probability that a sample changes at all.
        falling_p: probability that a curve falls.
    """
    chosen = draw_chosen(batch, p, generator)
    points = draw_uniform(batch, channels, 2, 2, generator=generator)
    return IntensityCurves(chosen, points, draw_uniform(batch, channels, generator=generator) < falling_p)


def curve_table(points: Tensor, falling: Tensor, steps: int = STEPS) -> Tensor:
    """Values of cubic Bézier curves from (0, 0) to (1, 1) at ``steps + 1`` equally spaced places of [0, 1].

    With control points in the unit square both coordinates grow with the curve's parameter t, so the curve is a
    function. A falling one pairs x(t) with y(1 − t): what becomes of the published curve, whose points come in falling
    order, when only its abscissae are sorted.

    Args:
        points: (..., 2, 2), inner control points, (x, y) each.
        falling: boolean (...).
        steps: intervals of the table.

    Returns:
        (..., steps + 1), float64.
    """
    t = torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64)
    weights = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    x, y = (points.double().transpose(-1, -2) @ weights + t**3).unbind(-2)
    y = torch.where(falling[..., None], y.flip(-1), y)
    # Rounding must not make the abscissae fall where the curve stands upright.
    x = x.cummax(-1).values.contiguous()
    places = torch.linspace(0, 1, steps + 1, dtype=torch.float64).expand(*x.shape[:-1], -1).contiguous()
    right = torch.searchsorted(x, places).clamp(1, 2 * steps)
    x0, x1, y0, y1 = (v.gather(-1, i) for v in (x, y) for i in (right - 1, right))
    return y0 + (y1 - y0) * ((places - x0) / (x1 - x0).clamp_min(1e-300)).clamp(0, 1)


def value_ranges(images: Tensor) -> Tensor:
    """Minimum and maximum of each channel: (B, C, D, H, W) -> (B, C, 2)."""
    # Channel by channel: with an axis given, aminmax takes twenty times as long on a CPU.
    ends = [torch.stack(channel.aminmax()) for channel in images.flatten(0, 1)]
    return torch.stack(ends).view(*images.shape[:2], 2)


def apply_intensity_(
    images: Tensor,
    curves: IntensityCurves,
    ranges: Tensor | None = None,
    seen: Sequence[Sequence[Window]] | None = None,
) -> Tensor:
    """Send each channel's intensities through its curve, in place.

    The curve acts on the channel's own range: its minimum and maximum are 0 and 1 of the curve, and the result is
    mapped back. Nothing is clamped, and a channel of one value stays as it is.

    Args:
        images: (B, C, D, H, W), float32; changed.
        curves: parameters of as many samples and channels.
        ranges: (B, C, 2), see :func:`value_ranges`; None for those of ``images``.
        seen: for each sample, windows that do not overlap, outside of which nothing has to be done; None for all.

    Returns:
        ``images``.
    """
    d, h, w = images.shape[2:]
    windows = [[whole_window((d, h, w))]] * len(images) if seen is None else seen
    limits = value_ranges(images) if ranges is None else ranges
    tables = hand_over(curve_table(curves.points, curves.falling).to(images.dtype), images.device)
    for sample, limit, table, chosen, boxes in zip(images, limits, tables, curves.chosen, windows, strict=True):
        for channel in range(len(table) if chosen else 0):
            _look_up(sample[channel], limit[channel], table[channel], boxes)
    return images


def _look_up(volume: Tensor, limits: Tensor, table: Tensor, windows: Sequence[Window]) -> None:
    """Replace voxels (D, H, W), in place, by the values of a table over a range, mapped back to that range."""
    low, high = limits
    span = high - low
    steps = table.shape[0] - 1
    entries = low + span * torch.cat([table, table[-1:]])
    slopes = entries.diff(append=entries[-1:])
    # Of one value only: the first entry, which then is that value.
    scale = torch.where(span > 0, steps / span, 0.0)
    for window in windows:
        for part in (volume[slab] for slab in slabs(window, volume.device)):
            place = (part - low).mul_(scale)
            # Clamped for a voxel that is no number: it stays one, instead of ending the process on a GPU.
            left = place.int().clamp_(0, steps).view(-1)
            values, growth = (numbers.index_select(0, left).view(part.shape) for numbers in (entries, slopes))
            torch.addcmul(values, place.frac_(), growth, out=part)
