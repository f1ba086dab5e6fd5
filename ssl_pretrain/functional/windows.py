"""Boxes of voxels: what remains of them without others, and how a volume is walked through box by box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple

Window = tuple[slice, slice, slice]
"""A box of voxels, to index the last three axes of a volume with."""

CHUNK = 2**17
"""Voxels that are worked on at a time: what is needed for them stays in the processor's cache."""


def whole_window(patch: Triple) -> Window:
    """The window of all voxels of a patch."""
    d, h, w = (slice(0, size) for size in patch)
    return d, h, w


def without(window: Window, others: Sequence[Window]) -> list[Window]:
    """A window minus others, as windows that do not overlap."""
    pieces = [window]
    for other in others:
        pieces = [rest for piece in pieces for rest in _minus(piece, other)]
    return pieces


def disjoint(windows: Sequence[Window]) -> list[Window]:
    """Windows that do not overlap and cover the same voxels."""
    return [piece for i, window in enumerate(windows) for piece in without(window, windows[:i])]


def covering(windows: Sequence[Window]) -> list[Window]:
    """Few windows that do not overlap and hold all voxels of these, and some between them.

    Cut along the first axis wherever a window begins or ends; of those in a part, what spans them in the other axes.
    """
    ends = sorted({end for d, _, _ in windows for end in (d.start, d.stop)})
    parts = []
    for start, stop in pairwise(ends):
        inside = [(h, w) for d, h, w in windows if d.start <= start and stop <= d.stop]
        if inside:
            h, w = (
                slice(min(side.start for side in sides), max(side.stop for side in sides))
                for sides in zip(*inside, strict=True)
            )
            parts.append((slice(start, stop), h, w))
    return parts


def _minus(window: Window, other: Window) -> list[Window]:
    common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, other, strict=True)]
    if any(side.start >= side.stop for side in common):
        return [window]
    d, h, w = window
    in_d, in_h, in_w = common
    pieces: list[Window] = [
        (slice(d.start, in_d.start), h, w),
        (slice(in_d.stop, d.stop), h, w),
        (in_d, slice(h.start, in_h.start), w),
        (in_d, slice(in_h.stop, h.stop), w),
        (in_d, in_h, slice(w.start, in_w.start)),
        (in_d, in_h, slice(in_w.stop, w.stop)),
    ]
    return [piece for piece in pieces if all(side.start < side.stop for side in piece)]


def slabs(window: Window, device: torch.device) -> Iterator[Window]:
    """A window in parts along the first axis: of few voxels on the CPU, in one on a GPU, which has no use for that."""
    d, h, w = window
    planes = max(1, CHUNK // ((h.stop - h.start) * (w.stop - w.start))) if device.type == "cpu" else d.stop - d.start
    for start in range(d.start, d.stop, planes):
        yield slice(start, min(start + planes, d.stop)), h, w


def hand_over(parameters: Tensor, device: torch.device) -> Tensor:
    """Parameters of the host on a device, without waiting for it: from page-locked memory, where that is a GPU."""
    if device.type == "cuda":
        parameters = parameters.pin_memory()
    return parameters.to(device, non_blocking=True)
