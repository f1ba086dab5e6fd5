"""The mask that the layers of one network share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import repeat_to


class Level(NamedTuple):
    """The mask at one resolution.

    Attributes:
        visible: (B, 1, D, H, W) of the layer's dtype, 1 where visible and 0 where masked.
        voxels: (B,) visible voxels of each sample, float32.
    """

    visible: Tensor
    voxels: Tensor


class SparseMask:
    """Which cells of the current batch the layers of a network may see.

    One object belongs to one network; a deep copy of the network (an EMA teacher) has its own. It is set for the
    duration of a forward pass::

        with mask.visible(cells):   # (B, gd, gh, gw) boolean, True = visible
            maps = encoder(image)

    The expansion to a resolution is computed once per forward pass and shared by all layers of a stage.
    """

    def __init__(self) -> None:
        self._cells: Tensor | None = None
        self._levels: dict[tuple[Triple, torch.dtype], Level] = {}

    @contextmanager
    def visible(self, cells: Tensor) -> Iterator[None]:
        """Let the layers see these cells: boolean (B, gd, gh, gw), True = visible.

        Raises:
            ValueError: ``cells`` is not a boolean tensor with four axes.
            RuntimeError: a mask is set already; contexts do not nest.
        """
        if cells.dtype != torch.bool or cells.dim() != 4:
            raise ValueError(f"Visible cells must be boolean (B, gd, gh, gw), got {cells.dtype} {tuple(cells.shape)}.")
        if self._cells is not None:
            raise RuntimeError("A mask is already set on this network: one forward pass at a time.")
        self._cells = cells
        try:
            yield
        finally:
            self._cells = None
            self._levels = {}

    def level(self, batch: int, shape: Triple, dtype: torch.dtype) -> Level | None:
        """The mask at a resolution, or None where the map is coarser than the grid in some axis and so all visible.

        Args:
            batch: samples of the map that asks; must be the mask's.
            shape: voxels of the map per axis.
            dtype: dtype of the map.

        Raises:
            RuntimeError: no mask is set, or it is for another batch size.
            ValueError: the map does not hold whole cells.
        """
        if self._cells is None:
            raise RuntimeError(
                "A masked layer ran without a mask. Wrap the forward pass in `with mask.visible(cells): ...`."
            )
        if batch != self._cells.shape[0]:
            raise RuntimeError(f"The mask is for {self._cells.shape[0]} samples, the feature map has {batch}.")
        if any(n < g for n, g in zip(shape, self._cells.shape[1:], strict=True)):
            return None
        key = (shape, dtype)
        if key not in self._levels:
            self._levels[key] = self._expand(self._cells, shape, dtype)
        return self._levels[key]

    @staticmethod
    def _expand(cells: Tensor, shape: Triple, dtype: torch.dtype) -> Level:
        visible = repeat_to(cells, shape).unsqueeze(1).to(dtype)
        voxels_per_cell = shape[0] * shape[1] * shape[2] // cells[0].numel()
        return Level(visible, cells.flatten(1).sum(1).float() * voxels_per_cell)
