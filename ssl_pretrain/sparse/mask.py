"""The mask that the layers of one network share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import repeat_to
from ssl_pretrain.sparse.packing import Packing


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

    The expansion to a resolution is computed once per forward pass and shared by all layers of a stage. Within
    :meth:`packed_layout` the layers work on packed maps, which hold the visible cells only (:mod:`.packing`).

    Attributes:
        packed_conv: what convolves packed maps across the faces of cells, :mod:`.block_conv` or :mod:`.spconv_conv`.
    """

    def __init__(self) -> None:
        self.packed_conv: Literal["blocks", "spconv"] = "blocks"
        self._cells: Tensor | None = None
        self._count: int | None = None
        self._levels: dict[tuple[Triple, torch.dtype], Level] = {}
        self._packing: Packing | None = None
        self._is_packed = False

    @contextmanager
    def visible(self, cells: Tensor, count: int | None = None) -> Iterator[None]:
        """Let the layers see these cells.

        Args:
            cells: boolean (B, gd, gh, gw), True = visible.
            count: visible cells of every sample, where the caller knows it: counting them waits for the GPU. It is
                believed.

        Raises:
            ValueError: ``cells`` is not a boolean tensor with four axes.
            RuntimeError: a mask is set already; contexts do not nest.
        """
        if cells.dtype != torch.bool or cells.dim() != 4:
            raise ValueError(f"Visible cells must be boolean (B, gd, gh, gw), got {cells.dtype} {tuple(cells.shape)}.")
        if self._cells is not None:
            raise RuntimeError("A mask is already set on this network: one forward pass at a time.")
        self._cells, self._count = cells, count
        try:
            yield
        finally:
            self._cells, self._count, self._levels, self._packing = None, None, {}, None

    @property
    def is_packed(self) -> bool:
        """Whether the layers work on packed maps just now."""
        return self._is_packed

    @contextmanager
    def packed_layout(self, packed: bool = True) -> Iterator[None]:
        """Let the layers work on packed maps (or, with False, on whole volumes)."""
        before, self._is_packed = self._is_packed, packed
        try:
            yield
        finally:
            self._is_packed = before

    @contextmanager
    def _restored(self, state: dict[str, object]) -> Iterator[None]:
        before = dict(self.__dict__)
        self.__dict__.update(state)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def replay(self) -> Callable[[], AbstractContextManager[None]]:
        """Makes contexts that bring the present state back later, for a forward pass that is computed again."""
        state = dict(self.__dict__)
        return lambda: self._restored(state)

    @property
    def can_pack(self) -> bool:
        """Whether every sample has the same number of visible cells, at least one: only then they stack."""
        if self._count is None:
            counts = self._current().flatten(1).sum(1)
            low, high = int(counts.min()), int(counts.max())
            self._count = low if low == high else 0
        return self._count > 0

    @property
    def packing(self) -> Packing:
        """Where the visible cells of the current mask are.

        Raises:
            ValueError: samples with different numbers of visible cells.
        """
        if self._packing is None:
            if not self.can_pack or self._count is None:
                raise ValueError("The samples have different numbers of visible cells; these cannot be packed.")
            self._packing = Packing(self._current(), self._count)
        return self._packing

    def level(self, batch: int, shape: Triple, dtype: torch.dtype) -> Level | None:
        """The mask at a resolution, or None for an all-visible map: a packed one, or one coarser than the grid.

        Args:
            batch: samples of the map that asks; must be the mask's.
            shape: voxels of the map per axis.
            dtype: dtype of the map.

        Raises:
            RuntimeError: no mask is set, or it is for another batch size.
            ValueError: the map does not hold whole cells.
        """
        cells = self._current()
        if batch != cells.shape[0]:
            raise RuntimeError(f"The mask is for {cells.shape[0]} samples, the feature map has {batch}.")
        if self._is_packed or any(n < g for n, g in zip(shape, cells.shape[1:], strict=True)):
            return None
        key = (shape, dtype)
        if key not in self._levels:
            self._levels[key] = self._expand(cells, shape, dtype)
        return self._levels[key]

    def _current(self) -> Tensor:
        if self._cells is None:
            raise RuntimeError(
                "A masked layer ran without a mask. Wrap the forward pass in `with mask.visible(cells): ...`."
            )
        return self._cells

    @staticmethod
    def _expand(cells: Tensor, shape: Triple, dtype: torch.dtype) -> Level:
        visible = repeat_to(cells, shape).unsqueeze(1).to(dtype)
        voxels_per_cell = shape[0] * shape[1] * shape[2] // cells[0].numel()
        return Level(visible, cells.flatten(1).sum(1).float() * voxels_per_cell)
