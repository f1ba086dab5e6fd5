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

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_chosen, draw_seeds, draw_uniform, whole_voxels
from ssl_pretrain.functional.geometry import Triple

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


def draw_shuffling(
    batch: int,
    patch: Triple,
    generator: torch.Generator,
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
    """
    chosen = draw_chosen(batch, p, generator)
    longest = torch.tensor(whole_voxels(patch, side))
    # One pattern in each of P equal strata of every axis: the sides are as uniform as those of ten thousand boxes.
    strata = draw_uniform(batch, patterns, 3, generator=generator).argsort(1)
    within = draw_uniform(batch, patterns, 3, generator=generator)
    sides = 1 + ((strata + within) / patterns * longest).long().clamp_max(longest - 1)
    sides = sides.take_along_dim(sides[:, :, 2:].argsort(1), 1)
    room = torch.tensor(patch) - sides + 1
    corners = (draw_uniform(batch, rounds, patterns, 3, generator=generator) * room[:, None]).long()
    return Shuffling(chosen, sides, corners, draw_seeds(batch, generator))


def apply_shuffling(images: Tensor, shuffling: Shuffling) -> Tensor:
    """Permute voxels within boxes; all channels alike.

    Args:
        images: (B, C, D, H, W); not changed.
        shuffling: parameters of as many samples, drawn for this patch.
    """
    result = images.clone()
    generator = torch.Generator(images.device)
    for image, shuffled, chosen, sides, corners, seed in zip(images, result, *shuffling, strict=True):
        if chosen:
            _shuffle(image, shuffled, sides, corners, generator.manual_seed(seed))
    return result


def _shuffle(image: Tensor, result: Tensor, sides: Tensor, corners: Tensor, generator: torch.Generator) -> None:
    """Write the shuffled ``image`` (C, D, H, W) to ``result``."""
    _, d, h, w = image.shape
    flat = image.reshape(len(image), -1)
    owners = _last_boxes(sides, corners, (d, h, w), image.device)
    tables = _box_tables(sides, corners, w, image.device)
    moves = _moves(sides, (d, h, w), generator)
    rows, columns = (torch.arange(n, dtype=torch.int32, device=image.device) for n in (h, w))
    for start in range(0, d, PLANES):
        stop = min(start + PLANES, d)
        voxels = torch.arange(start * h * w, stop * h * w, dtype=torch.int32, device=image.device)
        planes = torch.arange(start, stop, dtype=torch.int32, device=image.device)
        owner = owners[start * h * w : stop * h * w]
        first, per_plane, per_row = (table.index_select(0, owner).view(-1, h, w) for table in tables)
        entry = first.add_(per_plane.mul_(planes[:, None, None])).add_(per_row.mul_(rows[:, None])).add_(columns)
        source = voxels.add_(moves.index_select(0, entry.view(-1)))
        for values, shuffled in zip(flat, result[:, start:stop], strict=True):
            shuffled.copy_(values.index_select(0, source).view(-1, h, w))


def _last_boxes(sides: Tensor, corners: Tensor, shape: Triple, device: torch.device) -> Tensor:
    """Number of the last box over each voxel of the flat volume, from 1; 0 where there is none. int32."""
    depth, height, width = shape
    runs = sides[:, 0] * sides[:, 1]
    pattern, plane, row = _positions(runs.to(device), sides[:, 1].to(device), int(runs.sum()))
    places = (corners * torch.tensor([height * width, width, 1])).sum(2).to(device)
    first = places.index_select(1, pattern).add_((plane * height + row) * width)
    extent = sides[:, 2].to(device).index_select(0, pattern)
    boxes = torch.arange(1, 1 + corners.shape[0] * corners.shape[1], dtype=torch.int32, device=device)
    number = boxes.view(-1, corners.shape[1]).index_select(1, pattern)
    owners = torch.zeros(depth * height * width, dtype=torch.int32, device=device)
    length = 1 << (int(sides[-1, 2]).bit_length() - 1)
    while length:
        # Patterns ascend along the last axis: those of lengths [length, 2 · length) are neighbours, as are their runs.
        low, high = (int(runs[sides[:, 2] < bound].sum()) for bound in (length, 2 * length))
        ids = number[:, low:high].reshape(-1)
        for end in (first[:, low:high], first[:, low:high] + (extent[low:high] - length)):
            owners.scatter_reduce_(0, end.reshape(-1), ids, "amax")
        length //= 2
        for part in torch.split(owners, PLANES * height * width) if length else ():
            part[length:] = torch.maximum(part[length:], part[:-length])
    return owners


def _box_tables(sides: Tensor, corners: Tensor, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where a box's voxel (z, y, x) of the volume stands in the list of moves: at ``first + z·plane + y·row + x``.

    Three of (1 + boxes) int32. Number 0 is no box: its voxels stand at ``x``, where nobody moves.
    """
    volume = sides.prod(1)
    strides = torch.stack([sides[:, 1] * sides[:, 2], sides[:, 2], torch.ones_like(volume)], dim=1)
    first = width + volume.cumsum(0) - volume - (corners * strides).sum(2)
    columns = (first, strides[:, 0].expand_as(first), strides[:, 1].expand_as(first))
    none = torch.zeros(1, dtype=torch.int64)
    a, b, c = (torch.cat([none, column.reshape(-1)]).int().to(device) for column in columns)
    return a, b, c


def _moves(sides: Tensor, shape: Triple, generator: torch.Generator) -> Tensor:
    """How far away, in voxels of the flat volume, each voxel of each pattern gets its value from.

    int32: W zeros for voxels in no box, then the patterns one after the other, each in C order.
    """
    _, height, width = shape
    total = int(sides.prod(1).sum())
    extent = sides.to(generator.device)
    pattern, line, column = _positions(extent.prod(1), extent[:, 2].contiguous(), total)
    rows = extent[:, 1].contiguous().index_select(0, pattern)
    plane = line // rows
    offset = (plane * height + line - plane * rows) * width + column
    # Sorted by pattern first and at random within it: a random permutation of every pattern's voxels.
    keys = torch.randint(2**31, (total,), generator=generator, device=generator.device).add_(pattern << 31)
    moves = offset.index_select(0, keys.argsort()) - offset
    return torch.cat([moves.new_zeros(width), moves]).int()


def _positions(counts: Tensor, inner: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """For lists of ``counts`` elements put one after the other: which list, and the position in it by ``inner``.

    Three of (total,): list, position // inner, position % inner.
    """
    which = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)
    position = torch.arange(total, device=counts.device) - (counts.cumsum(0) - counts).index_select(0, which)
    length = inner.index_select(0, which)
    outer = position // length
    return which, outer, position - outer * length
