"""Local pixel shuffling (Models Genesis): in ten thousand small boxes the voxels change places, all boxes at once.

The original takes the boxes one after the other: each permutes its voxels of the *original* image, and later boxes
cover earlier ones. So a voxel's value depends on the last box over it alone, and two steps suffice, neither of which
loops over boxes or voxels:

1. the last box over each voxel: the boxes' runs of voxels along the last axis are laid out at once, each as two
   stretches whose length is a power of two, long ones first; of two boxes the later one wins (a scatter by maximum),
   and stretches are halved until they are single voxels;
2. each voxel fetches its value from where the pattern of that box says: a single gather.

A *pattern* is a box's sides and the permutation of its voxels. As sorting six million random numbers would take longer
than all the rest, a crop has some hundred patterns, drawn afresh, each of which is laid at several places.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_chosen, draw_seeds, draw_uniform, whole_voxels
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import Window, hand_over, slabs, whole_window

MOST_ENTRIES = 2**28
"""Of the table of patterns: 1 GiB of indices, and far from where they would overflow."""

PLANES = 8
"""Planes that are gathered at a time: what is needed for them stays in the processor's cache."""


class Shuffling(NamedTuple):
    """Parameters of :func:`apply_shuffling`, on the host.

    Attributes:
        chosen: (B), which samples are shuffled.
        sides: (B, P, 3) int64, sides of each pattern in voxels, ascending along the last axis.
        corners: (B, R, P, 3) int64, first voxel of each box: round by round, the patterns in their order. Later boxes
            cover earlier ones.
        seeds: (B), of the permutations.
    """

    chosen: tuple[bool, ...]
    sides: Tensor
    corners: Tensor
    seeds: tuple[int, ...]


def check_patterns(patch: Triple, side: float, patterns: int) -> None:
    """Refuse patterns whose table would not fit into the memory.

    Raises:
        ValueError: names the table, its limit and the settings.
    """
    voxels = whole_voxels(patch, side)
    if patterns * prod(voxels) > MOST_ENTRIES:
        raise ValueError(
            f"{patterns} patterns of up to {voxels} voxels make a table of {patterns * prod(voxels)} entries, and "
            f"{MOST_ENTRIES} are allowed: choose a smaller shuffle_side or fewer shuffle_patterns."
        )


def draw_shuffling(
    batch: int,
    patch: Triple,
    generator: np.random.Generator,
    *,
    p: float = 0.5,
    side: float = 0.1,
    patterns: int = 250,
    rounds: int = 40,
) -> Shuffling:
    """Draw ``patterns × rounds`` boxes per sample, with sides U{1 .. side × patch} and uniform places.

    Args:
        batch: samples.
        patch: voxels per axis.
        generator: owner of the randomness.
        p: probability that a sample is shuffled.
        side: longest side as a share of the patch.
        patterns: boxes that differ in sides and permutation.
        rounds: places at which each of them is laid.

    Raises:
        ValueError: sides and patterns that make too large a table.
    """
    chosen = draw_chosen(batch, p, generator)
    check_patterns(patch, side, patterns)
    longest = torch.tensor(whole_voxels(patch, side))
    # One pattern in each of P equal strata of every axis: the sides are as uniform as those of ten thousand boxes.
    strata = draw_uniform(batch, patterns, 3, generator=generator).argsort(1)
    within = draw_uniform(batch, patterns, 3, generator=generator)
    sides = 1 + ((strata + within) / patterns * longest).long().clamp_max(longest - 1)
    sides = sides.take_along_dim(sides[:, :, 2:].argsort(1), 1)
    room = torch.tensor(patch) - sides + 1
    corners = (draw_uniform(batch, rounds, patterns, 3, generator=generator) * room[:, None]).long()
    return Shuffling(chosen, sides, corners, draw_seeds(batch, generator))


def apply_shuffling(images: Tensor, shuffling: Shuffling, seen: Sequence[Sequence[Window]] | None = None) -> Tensor:
    """Permute voxels within boxes; all channels alike.

    Args:
        images: (B, C, D, H, W); not changed.
        shuffling: parameters of as many samples, drawn for this patch.
        seen: for each sample, windows that do not overlap, outside of which nothing has to be done; None for all.
    """
    d, h, w = images.shape[2:]
    windows = [[whole_window((d, h, w))]] * len(images) if seen is None else seen
    result = images.clone(memory_format=torch.contiguous_format)
    for image, shuffled, chosen, sides, corners, seed, boxes in zip(images, result, *shuffling, windows, strict=True):
        if chosen:
            generator = torch.Generator(images.device).manual_seed(seed)
            _shuffle(image, shuffled, Boxes(sides, corners, (d, h, w)), boxes, generator)
    return result


class Boxes(NamedTuple):
    """Boxes of a sample, on the host.

    Attributes:
        sides: (P, 3) of each pattern.
        corners: (R, P, 3) of each box.
        shape: of the volume.
    """

    sides: Tensor
    corners: Tensor
    shape: Triple

    @property
    def strides(self) -> tuple[int, int, int]:
        """Entries per plane, row and voxel, in a list in which every pattern has room for the longest sides."""
        _, rows, columns = self.sides.amax(0).tolist()
        return rows * columns, columns, 1

    @property
    def room(self) -> int:
        """Entries of a pattern in that list."""
        return int(self.sides[:, 0].max()) * self.strides[0]

    @property
    def unmoved(self) -> int:
        """Entries at the beginning of that list for voxels that no box covers."""
        return sum(stride * (size - 1) for stride, size in zip(self.strides, self.shape, strict=True)) + 1


def _shuffle(
    image: Tensor, result: Tensor, boxes: Boxes, windows: Sequence[Window], generator: torch.Generator
) -> None:
    """Write the shuffled ``image`` (C, D, H, W) to the windows of ``result``."""
    device = image.device
    flat = image.reshape(len(image), -1)
    owners = _last_boxes(boxes, device).view(boxes.shape)
    bases = _bases(boxes, device)
    moves = _moves(boxes, generator)
    entries, voxels = (_places(boxes.shape, strides, device) for strides in (boxes.strides, _strides(boxes.shape)))
    for window in windows:
        for slab in slabs(window, device):
            owner = owners[slab]
            entry = bases.index_select(0, owner.reshape(-1)).view(owner.shape)
            _add_places(entry, entries, slab)
            source = moves.index_select(0, entry.view(-1)).view(owner.shape)
            _add_places(source, voxels, slab)
            for values, shuffled in zip(flat, result, strict=True):
                shuffled[slab] = values.index_select(0, source.view(-1)).view(owner.shape)


def _last_boxes(boxes: Boxes, device: torch.device) -> Tensor:
    """Number of the last box over each voxel of the flat volume, from 1; 0 where there is none. int32."""
    sides, corners, (depth, height, width) = boxes
    runs = sides[:, 0] * sides[:, 1]
    pattern, plane, row = _positions(hand_over(runs, device), hand_over(sides[:, 1], device), int(runs.sum()))
    # (runs, R): rows of neighbours are copied ten times as fast as columns.
    places = hand_over((corners * torch.tensor(_strides(boxes.shape))).sum(2).T.contiguous(), device)
    first = places.index_select(0, pattern).add_(((plane * height + row) * width)[:, None])
    numbers = torch.arange(1, 1 + places.numel(), dtype=torch.int32, device=device)
    number = numbers.view(corners.shape[:2]).T.contiguous().index_select(0, pattern)
    extent = hand_over(sides[:, 2], device).index_select(0, pattern)[:, None]
    owners = torch.zeros(depth * height * width, dtype=torch.int32, device=device)
    length = 1 << (int(sides[-1, 2]).bit_length() - 1)
    while length:
        # Patterns ascend along the last axis: those of lengths [length, 2 · length) are neighbours, as are their runs.
        low, longer, high = (int(runs[sides[:, 2] < bound].sum()) for bound in (length, length + 1, 2 * length))
        owners.scatter_reduce_(0, first[low:high].view(-1), number[low:high].view(-1), "amax")
        ends = first[longer:high] + (extent[longer:high] - length)
        owners.scatter_reduce_(0, ends.view(-1), number[longer:high].view(-1), "amax")
        length //= 2
        for part in torch.split(owners, PLANES * height * width) if length else ():
            part[length:] = torch.maximum(part[length:], part[:-length])
    return owners


def _bases(boxes: Boxes, device: torch.device) -> Tensor:
    """Where the list of moves has voxel 0 of the volume, were it in a box: (1 + boxes) int32; number 0 is no box.

    Voxel (z, y, x) of the volume is found ``z·plane + y·row + x`` entries further on.
    """
    starts = boxes.unmoved + boxes.room * torch.arange(len(boxes.sides))
    first = starts - (boxes.corners * torch.tensor(boxes.strides)).sum(2)
    return hand_over(torch.cat([torch.zeros(1, dtype=torch.int64), first.view(-1)]).int(), device)


def _moves(boxes: Boxes, generator: torch.Generator) -> Tensor:
    """How far away, in voxels of the flat volume, each voxel of each pattern gets its value from.

    int32: zeros for voxels in no box, then room for the longest sides for each pattern.
    """
    device = generator.device
    total = int(boxes.sides.prod(1).sum())
    sides = hand_over(boxes.sides, device)
    pattern, line, column = _positions(sides.prod(1), sides[:, 2].contiguous(), total)
    rows = sides[:, 1].contiguous().index_select(0, pattern)
    plane = line // rows
    line -= plane * rows
    _, height, width = boxes.shape
    offset = (plane * height + line) * width + column
    # Sorted by pattern first and at random within it: a random permutation of every pattern's voxels.
    keys = torch.randint(2**31, (total,), generator=generator, device=device).add_(pattern << 31)
    moves = (offset.index_select(0, keys.argsort()) - offset).int()
    per_plane, per_row, _ = boxes.strides
    listed = torch.zeros(boxes.unmoved + boxes.room * len(sides), dtype=torch.int32, device=device)
    entry = boxes.unmoved + pattern * boxes.room + plane * per_plane + line * per_row + column
    return listed.index_copy_(0, entry, moves)


def _places(shape: Triple, strides: Triple, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What each axis contributes to a voxel's place in a list of these strides; int32, to be added up."""
    d, h, w = (torch.arange(n, dtype=torch.int32, device=device) * s for n, s in zip(shape, strides, strict=True))
    return d, h, w


def _add_places(numbers: Tensor, places: tuple[Tensor, Tensor, Tensor], window: Window) -> None:
    """Add to the numbers of a window's voxels (d, h, w) what their places contribute."""
    d, h, w = (axis[side] for axis, side in zip(places, window, strict=True))
    numbers.add_(d[:, None, None] + (h[:, None] + w))


def _strides(shape: Triple) -> Triple:
    """Of a volume in C order."""
    return shape[1] * shape[2], shape[2], 1


def _positions(counts: Tensor, inner: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """For lists of ``counts`` elements put one after the other: which list, and the position in it by ``inner``.

    Three of (total,): list, position // inner, position % inner.
    """
    which = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)
    position = torch.arange(total, device=counts.device) - (counts.cumsum(0) - counts).index_select(0, which)
    length = inner.index_select(0, which)
    outer = position // length
    return which, outer, position - outer * length
