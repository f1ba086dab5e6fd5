"""The visible cells of a batch, packed: a sample's visible cells lie one after the other along the first axis.

A packed map is an ordinary tensor (B, C, n·d, h, w) for n visible cells of (d, h, w) voxels in each sample, in the
memory format ``channels_last_3d``. Every voxel of it is visible, so activations, normalisations, residual sums and
pooling within cells are the ordinary dense operations. Only a convolution that looks across the faces of a cell has to
know its neighbours; :meth:`Packing.haloed` brings them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple

ABSENT = -1


class Halo(NamedTuple):
    """Where the voxels of haloed cells are found among the rows of a packed or a whole map.

    Attributes:
        rows: (N·voxels,) int32 or int64, row of each voxel; 0 where there is none.
        absent: (N·voxels, 1), whether there is none: outside the patch, and in a packed map in a masked neighbour.
        shape: voxels per axis of a haloed cell.
    """

    rows: Tensor
    absent: Tensor
    shape: Triple


class Packing:
    """Where the visible cells of a batch are, and who their neighbours are.

    Built once per mask and shared by all layers; nothing in it waits for the GPU.

    Args:
        cells: boolean (B, gd, gh, gw), True = visible, with the same number of visible cells in every sample.
        count: that number.
    """

    def __init__(self, cells: Tensor, count: int) -> None:
        self.batch = cells.shape[0]
        self.count = count
        self.grid: Triple = (cells.shape[1], cells.shape[2], cells.shape[3])
        self.cells = cells
        # A stable sort keeps the visible cells in grid order, and unlike nonzero() its result has a known size.
        order = torch.argsort((~cells.flatten(1)).to(torch.uint8), dim=1, stable=True)
        self.index = order[:, :count]
        self._neighbours: Tensor | None = None
        self._halos: dict[tuple[Triple, Triple, Triple], Halo] = {}
        # What a backend keeps per mask, under keys of its own.
        self.cache: dict[object, object] = {}

    def cell_of(self, packed: Tensor) -> Triple:
        """Voxels per axis of a cell in a packed map."""
        _, _, d, h, w = packed.shape
        return d // self.count, h, w

    def pack(self, volume: Tensor) -> Tensor:
        """Keep the visible cells: (B, C, D, H, W) -> packed (B, C, n·d, h, w)."""
        result: Tensor = _Pack.apply(volume, self)  # type: ignore[no-untyped-call]
        return result

    def unpack(self, packed: Tensor) -> Tensor:
        """Put the cells back in their places, with 0 in masked ones: packed (B, C, n·d, h, w) -> (B, C, D, H, W)."""
        result: Tensor = _Unpack.apply(packed, self)  # type: ignore[no-untyped-call]
        return result

    def haloed(self, packed: Tensor, low: Triple, high: Triple) -> Tensor:
        """Each cell with voxels of its neighbours around it, 0 where a neighbour is masked or outside the patch.

        Args:
            packed: (B, C, n·d, h, w).
            low: voxels to add before the first one of each axis, 0 or 1.
            high: voxels to add after the last one.

        Returns:
            (B·n, C, d', h', w') in ``channels_last_3d``. No gradient flows through this.
        """
        halo = self._halo(self.cell_of(packed), low, high)
        rows = to_rows(packed).index_select(0, halo.rows)
        return from_rows(rows.masked_fill_(halo.absent, 0.0), self.batch * self.count, halo.shape)

    def windows(self, volume: Tensor, low: Triple, high: Triple) -> Tensor:
        """Each cell of a whole map with the voxels around it, whoever they belong to; 0 outside the patch.

        Args:
            volume: (B, C, D, H, W).
            low: voxels to add before the first one of each axis.
            high: voxels to add after the last one.

        Returns:
            (B·n, C, d', h', w') in ``channels_last_3d``.
        """
        size: Triple = (volume.shape[2], volume.shape[3], volume.shape[4])
        key = ("windows", size, low, high)
        if key not in self.cache:
            self.cache[key] = self._find_windows(size, low, high)
        rows, absent, shape = cast("Halo", self.cache[key])
        found = to_rows(volume).index_select(0, rows).masked_fill(absent, 0.0)
        return from_rows(found, self.batch * self.count, shape)

    def _find_windows(self, size: Triple, low: Triple, high: Triple) -> Halo:
        """For every voxel of every window its row among those of the volume."""
        sample, *corner = self.places()
        rows = sample.view(self.batch, self.count, 1, 1, 1)
        absent = torch.zeros_like(rows, dtype=torch.bool)
        shape = []
        for axis, (cells, voxels) in enumerate(zip(self.grid, size, strict=True)):
            cell = voxels // cells
            around = torch.arange(-low[axis], cell + high[axis], device=rows.device)
            ending = [1, 1, 1]
            ending[axis] = len(around)
            position = (corner[axis].unsqueeze(2) * cell + around).view(self.batch, self.count, *ending)
            rows = rows * voxels + position
            absent = absent | (position < 0) | (position >= voxels)
            shape.append(len(around))
        return Halo(rows.masked_fill(absent, 0).flatten(), absent.view(-1, 1), cast("Triple", tuple(shape)))

    def _halo(self, cell: Triple, low: Triple, high: Triple) -> Halo:
        key = (cell, low, high)
        if key not in self._halos:
            self._halos[key] = self._find(cell, low, high)
        return self._halos[key]

    def _find(self, cell: Triple, low: Triple, high: Triple) -> Halo:
        """For every voxel of every haloed cell: which neighbour it lies in, and where in there."""
        device = self.cells.device
        steps, places = [], []
        for size, before, after in zip(cell, low, high, strict=True):
            position = torch.arange(-before, size + after, device=device)
            steps.append(position.div(size, rounding_mode="floor") + 1)
            places.append(position.remainder(size))
        neighbour = (steps[0].view(-1, 1, 1) * 3 + steps[1].view(1, -1, 1)) * 3 + steps[2]
        place = (places[0].view(-1, 1, 1) * cell[1] + places[1].view(1, -1, 1)) * cell[2] + places[2]
        owner = self.neighbour_table().index_select(1, neighbour.flatten())
        absent = owner == ABSENT
        voxels = cell[0] * cell[1] * cell[2]
        rows = (owner * voxels + place.view(1, -1).to(torch.int32)).masked_fill_(absent, 0)
        return Halo(rows.flatten(), absent.view(-1, 1), cast("Triple", tuple(neighbour.shape)))

    def neighbour_table(self) -> Tensor:
        """(B·n, 27) int32: the packed number of each of a cell's neighbours (itself in the middle), or ABSENT."""
        if self._neighbours is None:
            cells = self.cells.flatten()
            number = (cells.cumsum(0, dtype=torch.int32) - 1).masked_fill(~cells, ABSENT)
            padded = functional.pad(number.view(self.cells.shape).unsqueeze(1), (1,) * 6, value=ABSENT)
            around = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
            table = around.reshape(self.batch, -1, 27)
            chosen = self.index.unsqueeze(2).expand(-1, -1, 27)
            self._neighbours = table.gather(1, chosen).view(-1, 27)
        return self._neighbours

    def places(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample and position on the grid of each packed cell, (B, n) each."""
        sample = torch.arange(self.batch, device=self.index.device).view(-1, 1).expand_as(self.index)
        _, gh, gw = self.grid
        return sample, self.index // (gh * gw), self.index // gw % gh, self.index % gw


class _Pack(torch.autograd.Function):
    """Gather of visible cells; its adjoint is the scatter."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return _pack(volume, packing)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _unpack(gradients[0], ctx.packing), None


class _Unpack(torch.autograd.Function):
    """Scatter of visible cells into zeros; its adjoint is the gather."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return _unpack(packed, packing)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _pack(gradients[0], ctx.packing), None


def to_rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B·D·H·W, C), without a copy for a map in ``channels_last_3d``."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def from_rows(rows: Tensor, samples: int, shape: Triple) -> Tensor:
    """(B·D·H·W, C) -> (B, C, D, H, W) in ``channels_last_3d``, without a copy."""
    return rows.view(samples, *shape, rows.shape[1]).permute(0, 4, 1, 2, 3)


def _pack(volume: Tensor, packing: Packing) -> Tensor:
    cells = _cells_view(volume, packing.grid)[packing.places()]
    _, _, d, h, w, c = cells.shape
    return cells.reshape(packing.batch, packing.count * d, h, w, c).permute(0, 4, 1, 2, 3)


def _unpack(packed: Tensor, packing: Packing) -> Tensor:
    d, h, w = packing.cell_of(packed)
    shape = [g * n for g, n in zip(packing.grid, (d, h, w), strict=True)]
    volume = packed.new_zeros(packing.batch, *shape, packed.shape[1]).permute(0, 4, 1, 2, 3)
    cells = to_rows(packed).view(packing.batch, packing.count, d, h, w, -1)
    _cells_view(volume, packing.grid)[packing.places()] = cells
    return volume


def _cells_view(volume: Tensor, grid: Triple) -> Tensor:
    """(B, C, D, H, W) -> a view (B, gd, gh, gw, d, h, w, C)."""
    b, c, *size = volume.shape
    (gd, d), (gh, h), (gw, w) = ((g, n // g) for g, n in zip(grid, size, strict=True))
    return volume.view(b, c, gd, d, gh, h, gw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
