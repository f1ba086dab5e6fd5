"""The panels of a picture: what each column shows of one slice through a crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]
Draw = Callable[["Axes", "Plane"], "AxesImage | None"]

EMPTY_COLOUR, ERROR_MAP = "#e9e9e9", "inferno"
_MASK_COLOUR, _HARD_COLOUR, _DIFFICULTY_MAP = "#3f6ea8", "#00b7ff", "YlOrRd"


@dataclass(frozen=True)
class Panel:
    """A column of one channel.

    Attributes:
        heading: above its first row.
        draw: draws a plane of it, and returns what the colour bar explains, if anything.
        bar: whether there is room for a colour bar at its right.
        ticks: of the colour bar; None for matplotlib's.
    """

    heading: str
    draw: Draw
    bar: bool = False
    ticks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Crop:
    """One channel of a reconstruction; the volumes are ``(D, H, W)``, the grids ``(gd, gh, gw)``."""

    image: Floats
    masked_input: Floats
    reconstruction: Floats
    mask: Bools
    difficulty: Floats | None
    hard: Bools | None
    cell: Triple

    @cached_property
    def window(self) -> tuple[float, float]:
        """Grey values shown as black and white: robust, so that one bright vessel does not darken the rest."""
        return grey_window(self.image)

    @cached_property
    def error(self) -> Floats:
        """Absolute error of the reconstruction, NaN in visible cells."""
        masked = np.kron(self.mask, np.ones(self.cell, dtype=np.bool_))
        return np.where(masked, np.abs(self.reconstruction - self.image), np.nan)

    @cached_property
    def largest_error(self) -> float:
        """Where the colour bar ends: one value for all planes, so that they can be compared."""
        return largest_error(self.error)


@dataclass(frozen=True)
class Plane:
    """A slice through a crop: the axis it is normal to, the voxel on that axis, and the shape of voxels and cells."""

    axis: int
    voxel: int
    cell: Triple
    spacing: tuple[float, float, float]

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the volume that become rows and columns."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return rows, columns

    @property
    def cell_shape(self) -> tuple[int, int]:
        """Voxels per cell along rows and columns."""
        rows, columns = self.axes
        return self.cell[rows], self.cell[columns]

    @property
    def name(self) -> str:
        """What to write beside it."""
        return f"{('axial', 'coronal', 'sagittal')[self.axis]}, {'DHW'[self.axis]} = {self.voxel}"

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The plane of a volume ``(D, H, W)``."""
        plane: npt.NDArray[Any] = np.take(volume, self.voxel, axis=self.axis)
        return plane

    def of_grid(self, grid: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The plane of a grid ``(gd, gh, gw)``, one value per cell."""
        plane: npt.NDArray[Any] = np.take(grid, self.voxel // self.cell[self.axis], axis=self.axis)
        return plane

    def of_cells(self, grid: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The plane of a grid ``(gd, gh, gw)``, one value per voxel."""
        return np.kron(self.of_grid(grid), np.ones(self.cell_shape, dtype=grid.dtype))

    def show(self, axes: Axes, picture: npt.NDArray[Any], **options: Any) -> AxesImage:
        """Draw a plane; depth runs upwards because nnU-Net's readers number slices from the feet."""
        rows, columns = self.axes
        aspect = self.spacing[rows] / self.spacing[columns]
        origin: Literal["upper", "lower"] = "upper" if self.axis == 0 else "lower"
        return axes.imshow(picture, aspect=aspect, origin=origin, interpolation="nearest", **options)


def _input(crop: Crop, axes: Axes, plane: Plane) -> None:
    _grey(axes, crop.image, crop, plane)


def _masked_input(crop: Crop, axes: Axes, plane: Plane) -> None:
    _grey(axes, crop.masked_input, crop, plane)
    _veil(axes, plane.of_cells(crop.mask), plane, _MASK_COLOUR, 0.65)


def _reconstruction(crop: Crop, axes: Axes, plane: Plane) -> None:
    masked = plane.of_cells(crop.mask)
    shown = np.where(masked, plane.of(crop.reconstruction), plane.of(crop.image))
    low, high = crop.window
    plane.show(axes, shown, cmap="gray", vmin=low, vmax=high)
    _veil(axes, ~masked, plane, "black", 0.5)


def _error(crop: Crop, axes: Axes, plane: Plane) -> AxesImage:
    axes.set_facecolor(EMPTY_COLOUR)
    return plane.show(axes, plane.of(crop.error), cmap=ERROR_MAP, vmin=0, vmax=crop.largest_error)


def _difficulty(crop: Crop, axes: Axes, plane: Plane) -> AxesImage | None:
    low, high = crop.window
    # Black is shown as mid grey: colours laid over black could not be told apart.
    plane.show(axes, plane.of(crop.image), cmap="gray", vmin=2 * low - high, vmax=high)
    coloured = None
    if crop.difficulty is not None:
        low, high = _range(crop.difficulty, 0, 100)
        rated = plane.of_cells(crop.difficulty)
        coloured = plane.show(axes, rated, cmap=_DIFFICULTY_MAP, vmin=low, vmax=high, alpha=0.65)
    if crop.hard is not None:
        _outline(axes, plane.of_grid(crop.hard), plane.cell_shape)
    return coloured


def reconstruction_panels(crop: Crop) -> list[Panel]:
    """The columns of a reconstruction from left to right; the last one if cells were rated or called hard."""
    panels = [
        Panel("input", partial(_input, crop)),
        Panel("masked input", partial(_masked_input, crop)),
        Panel("reconstruction", partial(_reconstruction, crop)),
        Panel("absolute error", partial(_error, crop), bar=True),
    ]
    if crop.difficulty is not None or crop.hard is not None:
        heading = "difficulty" if crop.hard is None else "difficulty, hard cells outlined"
        panels.append(Panel(heading, partial(_difficulty, crop), bar=True))
    return panels


def grey_window(image: Floats) -> tuple[float, float]:
    """Grey values to show as black and white: the 0.5th and the 99.5th percentile."""
    return _range(image, 0.5, 99.5)


def largest_error(error: Floats) -> float:
    """Where the colours of an error end: its 99th percentile."""
    return _range(error, 0, 99)[1]


def _grey(axes: Axes, volume: Floats, crop: Crop, plane: Plane) -> None:
    low, high = crop.window
    plane.show(axes, plane.of(volume), cmap="gray", vmin=low, vmax=high)


def _veil(axes: Axes, where: Bools, plane: Plane, colour: str, opacity: float) -> None:
    """Tint some voxels of a plane."""
    from matplotlib.colors import to_rgb

    tint = np.zeros((*where.shape, 4))
    tint[..., :3] = to_rgb(colour)
    tint[..., 3] = opacity * where
    plane.show(axes, tint)


def _outline(axes: Axes, cells: Bools, cell_shape: tuple[int, int]) -> None:
    """Lines where a cell that is True meets one that is not, or the border of the picture."""
    from matplotlib.collections import LineCollection

    height, width = cell_shape
    around = np.pad(cells, 1)
    segments = []
    for row, column in np.argwhere(around[1:, 1:-1] != around[:-1, 1:-1]):
        y, x = row * height - 0.5, column * width - 0.5
        segments.append([(x, y), (x + width, y)])
    for row, column in np.argwhere(around[1:-1, 1:] != around[1:-1, :-1]):
        y, x = row * height - 0.5, column * width - 0.5
        segments.append([(x, y), (x, y + height)])
    axes.add_collection(LineCollection(segments, colors=_HARD_COLOUR, linewidths=2, capstyle="projecting"))


def _range(values: Floats, lowest: float, highest: float) -> tuple[float, float]:
    """Two percentiles of the finite values, pulled apart where they coincide."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (lowest, highest)) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
