"""A volume as its cells and back."""

from __future__ import annotations

from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, grid_of


def to_cells(volume: Tensor, cell: Triple) -> Tensor:
    """(B, C, D, H, W) -> (B, L, V): the voxels of all channels of one cell in one row, channels last.

    ``L`` runs over the grid in C order; ``V`` is ``cell voxels × C``.
    """
    b, c, *size = volume.shape
    gd, gh, gw = grid_of((size[0], size[1], size[2]), cell)
    split = volume.reshape(b, c, gd, cell[0], gh, cell[1], gw, cell[2])
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, gd * gh * gw, -1)


def from_cells(cells: Tensor, cell: Triple, grid: Triple) -> Tensor:
    """(B, L, V) -> (B, C, D, H, W); the inverse of :func:`to_cells`."""
    b = cells.shape[0]
    split = cells.reshape(b, *grid, *cell, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return split.reshape(b, -1, *(g * c for g, c in zip(grid, cell, strict=True)))
