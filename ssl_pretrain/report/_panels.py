"""The panels of a picture: what a column shows of one slice through one channel of a crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
Window = tuple[float, float]

KINDS = ("image", "error", "classes", "rating")
EMPTY_COLOUR, _TINT, _OUTLINE = "#e9e9e9", "#3f6ea8", "#00b7ff"
HUES = (0, 1, 2, 3, 4, 5, 6, 8, 9)
"""Of ``tab10`` without its grey, for the classes after 0, which is light grey."""
MANY_CLASSES_MAP = "turbo"
"""Where there are more classes than that."""


class Drawable(Protocol):
    """One column of a picture; any class with these attributes will do."""

    @property
    def heading(self) -> str:
        """Text above the column."""

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`. Errors and ratings are NaN where there is none."""

    @property
    def values(self) -> Tensor:
        """Volumes ``(C, D, H, W)``; a column of a single channel stands beside every channel of the others."""

    @property
    def classes(self) -> int:
        """Number of classes, in a column of that kind."""

    @property
    def tinted(self) -> Tensor | None:
        """Cells under a coloured veil, bool ``(gd, gh, gw)``."""

    @property
    def dimmed(self) -> Tensor | None:
        """Cells that are drawn darker, bool ``(gd, gh, gw)``."""

    @property
    def outlined(self) -> Tensor | None:
        """Cells with a line around them, bool ``(gd, gh, gw)``."""


@dataclass(frozen=True)
class Plane:
    """A slice through a crop: the axis it is normal to, the voxel on that axis, and mm per voxel along D, H and W."""

    axis: int
    voxel: int
    spacing: Spacing

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the volume that become rows and columns."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return rows, columns

    @property
    def name(self) -> str:
        """What to write beside it."""
        return f"{('axial', 'coronal', 'sagittal')[self.axis]}, {'DHW'[self.axis]} = {self.voxel}"

    def extent(self, shape: Triple) -> tuple[float, float]:
        """Height and width in mm, in a crop of ``shape``."""
        rows, columns = self.axes
        return shape[rows] * self.spacing[rows], shape[columns] * self.spacing[columns]

    def of(self, volume: Floats) -> Floats:
        """The plane of a volume ``(D, H, W)``."""
        plane: Floats = np.take(volume, self.voxel, axis=self.axis)
        return plane

    def of_cells(self, grid: Bools, shape: Sequence[int]) -> tuple[Bools, tuple[int, int]]:
        """The plane of a grid ``(gd, gh, gw)`` over a crop of ``shape``, and voxels per cell along its two axes."""
        cell = [size // cells for size, cells in zip(shape, grid.shape, strict=True)]
        rows, columns = self.axes
        plane: Bools = np.take(grid, self.voxel // cell[self.axis], axis=self.axis)
        return plane, (cell[rows], cell[columns])

    def show(self, axes: Axes, picture: Floats, **options: Any) -> AxesImage:
        """Draw a plane; depth runs upwards because nnU-Net's readers number slices from the feet."""
        rows, columns = self.axes
        aspect = self.spacing[rows] / self.spacing[columns]
        origin: Literal["upper", "lower"] = "upper" if self.axis == 0 else "lower"
        return axes.imshow(picture, aspect=aspect, origin=origin, interpolation="nearest", **options)


def draw_slices(
    rows: Sequence[Axes], planes: Sequence[Plane], column: Drawable, values: Floats, first: Floats, window: Window
) -> AxesImage:
    """Draw the slices through one channel of a column.

    Args:
        rows: where to draw each plane.
        planes: the slices.
        column: its kind and its cells.
        values: ``(D, H, W)``, the channel of the column.
        first: ``(D, H, W)``, that of the first image, on which ratings lie; empty where there is no image.
        window: grey values shown as black and white.

    Returns:
        What a colour bar explains.
    """
    from matplotlib.colors import to_rgb

    options = _colours(column, values, window)
    for axes, plane in zip(rows, planes, strict=True):
        axes.set_facecolor(EMPTY_COLOUR)
        if column.kind == "rating" and first.size:
            # Black is shown as mid grey: colours laid over black could not be told apart.
            plane.show(axes, plane.of(first), cmap="gray", vmin=2 * window[0] - window[1], vmax=window[1])
        shown = plane.show(axes, plane.of(values), **options)
        for grid, colour, opacity in ((column.tinted, _TINT, 0.65), (column.dimmed, "black", 0.5)):
            if grid is not None:
                cells, cell = plane.of_cells(bools(grid), values.shape)
                veil = np.empty((*cells.shape, 4))
                veil[..., :3], veil[..., 3] = to_rgb(colour), opacity * cells
                plane.show(axes, veil.repeat(cell[0], 0).repeat(cell[1], 1))
        if column.outlined is not None:
            _outline(axes, *plane.of_cells(bools(column.outlined), values.shape))
    return shown


def class_colours(count: int) -> Colormap:
    """A colour for each of as many classes."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, to_hex

    hues = [colormaps["tab10"](hue) for hue in HUES]
    if count - 1 > len(hues):
        hues = [colormaps[MANY_CLASSES_MAP](share) for share in np.linspace(0, 1, count - 1)]
    return ListedColormap([EMPTY_COLOUR, *(to_hex(hue) for hue in hues[: count - 1])])


def grey_window(image: Floats) -> Window:
    """Grey values shown as black and white: robust, so that one bright vessel does not darken the rest."""
    return _percentiles(image, 0.5, 99.5)


def floats(values: Tensor) -> Floats:
    """The values on the host."""
    array: Floats = values.detach().cpu().float().numpy()
    return array


def bools(cells: Tensor) -> Bools:
    """The cells on the host."""
    array: Bools = cells.detach().cpu().bool().numpy()
    return array


def _colours(column: Drawable, values: Floats, window: Window) -> dict[str, Any]:
    """Colours of a column, the same for all planes, so that they can be compared."""
    if column.kind == "image":
        return {"cmap": "gray", "vmin": window[0], "vmax": window[1]}
    if column.kind == "error":
        return {"cmap": "inferno", "vmin": 0, "vmax": _percentiles(values, 0, 99)[1]}
    if column.kind == "classes":
        return {"cmap": class_colours(column.classes), "vmin": -0.5, "vmax": column.classes - 0.5}
    low, high = _percentiles(values, 0, 100)
    return {"cmap": "YlOrRd", "vmin": low, "vmax": high, "alpha": 0.65}


def _outline(axes: Axes, cells: Bools, cell: tuple[int, int]) -> None:
    """Lines where a cell that is True meets one that is not, or the border of the picture."""
    from matplotlib.collections import LineCollection

    height, width = cell
    around = np.pad(cells, 1)
    segments = []
    for row, column in np.argwhere(around[1:, 1:-1] != around[:-1, 1:-1]):
        y, x = row * height - 0.5, column * width - 0.5
        segments.append([(x, y), (x + width, y)])
    for row, column in np.argwhere(around[1:-1, 1:] != around[1:-1, :-1]):
        y, x = row * height - 0.5, column * width - 0.5
        segments.append([(x, y), (x, y + height)])
    axes.add_collection(LineCollection(segments, colors=_OUTLINE, linewidths=2, capstyle="projecting"))


def _percentiles(values: Floats, lowest: float, highest: float) -> Window:
    """Two percentiles of the finite values, pulled apart where they coincide."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (lowest, highest)) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
