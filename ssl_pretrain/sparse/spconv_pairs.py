"""Which rows of packed maps meet at which position of a kernel, as spconv wants to be told."""

from __future__ import annotations

from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.sparse.block_conv import Geometry
from ssl_pretrain.sparse.packing import ABSENT, Packing


class Pairs(NamedTuple):
    """Which rows meet at each of the K positions of a kernel.

    Attributes:
        inputs: (K, N') int32, the row of the input that an output row reads there, or ABSENT.
        outputs: (K, N) int32, the row of the output that reads an input row there, or ABSENT.
    """

    inputs: Tensor
    outputs: Tensor


def find_pairs(packing: Packing, cell: Triple, kernel: Triple, geometry: Geometry) -> Pairs:
    """The pairs of a convolution: output ``o`` reads input ``o·s − p + k`` at position ``k`` of the kernel.

    Args:
        packing: of the mask.
        cell: voxels of an input cell per axis.
        kernel: voxels of the kernel per axis.
        geometry: of the convolution.
    """
    device = packing.cells.device
    coarse = cast("Triple", tuple(n // s for n, s in zip(cell, geometry.stride, strict=True)))
    reads, readers = [], []
    for fine, few, k, s, p in zip(cell, coarse, kernel, geometry.stride, geometry.padding, strict=True):
        position = torch.arange(k, device=device).view(-1, 1)
        reads.append(_Axis(torch.arange(few, device=device) * s - p + position, fine, 1))
        readers.append(_Axis(torch.arange(fine, device=device) + p - position, few, s))
    return Pairs(_rows(packing, reads, cell), _rows(packing, readers, coarse))


class _Axis:
    """Along one axis: for each kernel position (k) and voxel of a cell (n), what it meets.

    Attributes:
        step: (k, n), 0, 1 or 2: in the cell before, in the same or in the next one.
        place: (k, n), where in that cell.
        between: (k, n), 0 where there is a voxel; others lie between the steps of a stride.
    """

    def __init__(self, position: Tensor, size: int, stride: int) -> None:
        self.between = position.remainder(stride)
        voxel = position.div(stride, rounding_mode="floor")
        self.step = voxel.div(size, rounding_mode="floor") + 1
        self.place = voxel.remainder(size)


def _rows(packing: Packing, axes: list[_Axis], cell: Triple) -> Tensor:
    """(K, rows) int32: the row in a map with cells of that size, or ABSENT."""
    neighbour = _combined([a.step for a in axes], (9, 3, 1))
    place = _combined([a.place for a in axes], (cell[1] * cell[2], cell[2], 1)).to(torch.int32)
    between = _combined([a.between for a in axes], (1, 1, 1)) > 0
    table = packing.neighbour_table()
    cells = torch.arange(table.shape[0], device=table.device).view(1, -1, 1)
    owner = table[cells, neighbour.unsqueeze(1)]
    rows = owner * prod(cell) + place.unsqueeze(1)
    return rows.masked_fill_((owner == ABSENT) | between.unsqueeze(1), ABSENT).flatten(1).contiguous()


def _combined(axes: list[Tensor], factors: Triple) -> Tensor:
    """Three tables (k, n) -> their weighted sum (K, voxels of a cell), the last axis running fastest in both."""
    d, h, w = (a * factor for a, factor in zip(axes, factors, strict=True))
    total = (
        d.view(d.shape[0], 1, 1, d.shape[1], 1, 1)
        + h.view(1, h.shape[0], 1, 1, h.shape[1], 1)
        + w.view(1, 1, w.shape[0], 1, 1, w.shape[1])
    )
    return total.reshape(d.shape[0] * h.shape[0] * w.shape[0], -1)
