"""What a method sees and predicts, as one picture of three orthogonal slices through a crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ssl_pretrain.report._columns import Column, check_columns, column_panels
from ssl_pretrain.report._figure import Sheet, new_figure, save_figure
from ssl_pretrain.report._panels import Bools, Crop, Floats, Panel, Plane, Triple, reconstruction_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any] | torch.Tensor

MOST_CHANNELS = 2
"""Channels that are drawn; more would make the picture too tall to read."""


def draw_picture(
    target: Path, arrays: Mapping[str, Any], *, title: str, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> None:
    """Draw what a method shows: ``columns`` of its own, or the arrays of a reconstruction.

    Args:
        target: the PNG file, replaced as a whole.
        arrays: arguments of :func:`draw_columns` or of :func:`draw_reconstruction`.
        title: shown above.
        spacing: of the voxels along D, H and W in mm, for the aspect ratio.

    Raises:
        ValueError: shapes do not fit together.
        OSError: ``target`` cannot be written.
    """
    draw = draw_columns if "columns" in arrays else draw_reconstruction
    draw(target, **arrays, title=title, spacing=spacing)


def choose_slices(mask: Array, cell: Triple, hard: Array | None = None) -> Triple:
    """The voxel on each axis at which the crop is cut.

    All three planes pass through the middle of one cell: the masked cell nearest to the centre of the crop, or the
    nearest hard cell if there is one; of equally near ones, the first in array order.

    Args:
        mask: ``(gd, gh, gw)``, True means masked. Without any masked cell, the cell nearest to the centre is cut.
        cell: voxels per cell and axis.
        hard: ``(gd, gh, gw)`` or None.

    Returns:
        Indices along D, H and W.
    """
    wanted = _bools(mask)
    if hard is not None and _bools(hard).any():
        wanted = _bools(hard)
    if not wanted.any():
        wanted = np.ones_like(wanted)
    cells = np.argwhere(wanted)
    offsets = (cells + 0.5 - np.array(wanted.shape) / 2) * np.array(cell)
    nearest = cells[np.argmin(np.sum(offsets**2, axis=1))]
    depth, height, width = (int(index * size + size // 2) for index, size in zip(nearest, cell, strict=True))
    return depth, height, width


def draw_reconstruction(
    target: Path,
    *,
    image: Array,
    masked_input: Array,
    reconstruction: Array,
    mask: Array,
    difficulty: Array | None = None,
    hard: Array | None = None,
    cell: Triple,
    title: str,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """Draw input, masked input, reconstruction, error and, where given, difficulty of one crop.

    Rows are the planes of :func:`choose_slices`, for each of the first two channels. The first three columns share one
    grey window, from the 0.5th to the 99.5th percentile of the input. The reconstruction is shown in the masked cells,
    with the input dimmed around it; the error is the absolute difference in the masked cells, and its colours end at
    the 99th percentile over the crop.

    Args:
        target: the PNG file, replaced as a whole.
        image: ``(C, D, H, W)``, what the network should have seen.
        masked_input: ``(C, D, H, W)``, what it saw.
        reconstruction: ``(C, D, H, W)``, what it made of it, in the units of ``image``.
        mask: bool ``(gd, gh, gw)``, True means masked.
        difficulty: ``(gd, gh, gw)``, NaN where a cell was not rated, or None.
        hard: bool ``(gd, gh, gw)``, cells masked because they were hardest, or None.
        cell: voxels per cell and axis; the grid times the cell is the crop.
        title: shown above, with a note if not all channels are drawn.
        spacing: of the voxels along D, H and W in mm, for the aspect ratio.

    Raises:
        ValueError: shapes do not fit together.
        OSError: ``target`` cannot be written.
    """
    volumes = {"image": image, "masked_input": masked_input, "reconstruction": reconstruction}
    arrays = {name: _floats(volume) for name, volume in volumes.items()}
    grids = (_bools(mask), None if difficulty is None else _floats(difficulty), None if hard is None else _bools(hard))
    _check(arrays, dict(zip(("mask", "difficulty", "hard"), grids, strict=True)), cell)

    seen, shown, made = arrays.values()
    crops = [Crop(seen[channel], shown[channel], made[channel], *grids, cell) for channel in _drawn(len(seen))]
    blocks = [reconstruction_panels(crop) for crop in crops]
    voxels = choose_slices(mask, cell, hard)
    planes = [Plane(axis, voxel, cell, spacing) for axis, voxel in enumerate(voxels)]
    save_figure(_draw(blocks, planes, crops[0].image.shape, title + _note(len(seen))), target, dpi=110)


def draw_columns(
    target: Path,
    *,
    columns: Sequence[Column],
    title: str,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """Draw the columns that a method names, of a crop in which no cells are masked.

    Rows are the planes through the centre of the crop, for each of the first two channels. Images share one grey
    window per channel, from the 0.5th to the 99.5th percentile of the first image. The colours of an error go from 0
    to the 99th percentile over the crop. Classes have a colour each, 0 is light grey.

    Args:
        target: the PNG file, replaced as a whole.
        columns: from left to right.
        title: shown above, with a note if not all channels are drawn.
        spacing: of the voxels along D, H and W in mm, for the aspect ratio.

    Raises:
        ValueError: no columns, an unknown kind, shapes that differ, or a class that there is not.
        OSError: ``target`` cannot be written.
    """
    volumes = [_floats(column.values) for column in columns]
    check_columns(columns, volumes)
    channels = max(len(volume) for volume in volumes)
    shape: Triple = volumes[0].shape[1:]
    planes = [Plane(axis, size // 2, shape, spacing) for axis, size in enumerate(shape)]
    blocks = [column_panels(columns, volumes, channel) for channel in _drawn(channels)]
    save_figure(_draw(blocks, planes, shape, title + _note(channels)), target, dpi=110)


def _drawn(channels: int) -> range:
    return range(min(channels, MOST_CHANNELS))


def _note(channels: int) -> str:
    drawn = len(_drawn(channels))
    return f"  (first {drawn} of {channels} channels)" if channels > drawn else ""


def _draw(blocks: Sequence[Sequence[Panel]], planes: Sequence[Plane], shape: Sequence[int], title: str) -> Figure:
    extent = np.array(shape) * np.array(planes[0].spacing)
    contents = tuple(
        (float(extent[rows]), float(extent[columns])) for rows, columns in (plane.axes for plane in planes)
    )
    sheet = Sheet(contents, tuple(panel.bar for panel in blocks[0]), len(blocks))
    figure = new_figure(*sheet.size)
    figure.text(0.5, 1 - 0.5 * sheet.top / sheet.size[1], title, ha="center", va="center", fontsize=12)
    for channel, panels in enumerate(blocks):
        for column, panel in enumerate(panels):
            _draw_column(figure, sheet, channel, column, panel, planes)
    return figure


def _draw_column(
    figure: Figure, sheet: Sheet, channel: int, column: int, panel: Panel, planes: Sequence[Plane]
) -> None:
    prefix = f"channel {channel}\n" if sheet.blocks > 1 else ""
    coloured = None
    for row, plane in enumerate(planes):
        axes = figure.add_axes(sheet.panel(channel, row, column))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        coloured = panel.draw(axes, plane)
        if row == 0:
            axes.set_title(panel.heading, fontsize=10, pad=4)
        if column == 0:
            axes.set_ylabel(prefix + plane.name, fontsize=9)
    if panel.bar and coloured is not None:
        bar = figure.colorbar(coloured, cax=figure.add_axes(sheet.colour_bar(channel, column)), ticks=panel.ticks)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _floats(values: Array) -> Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float().numpy()
    floats: Floats = np.asarray(values, dtype=np.float32)
    return floats


def _bools(values: Array) -> Bools:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    bools: Bools = np.asarray(values, dtype=np.bool_)
    return bools


def _check(volumes: dict[str, Floats], grids: dict[str, Any], cell: Triple) -> None:
    shape = volumes["image"].shape
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"image has shape {shape}: one crop of shape (C, D, H, W) is drawn at a time.")
    for name, volume in volumes.items():
        if volume.shape != shape:
            raise ValueError(f"{name} has shape {volume.shape} but image has {shape}: they must be equal.")
    grid = tuple(size // edge for size, edge in zip(shape[1:], cell, strict=True))
    if any(size % edge for size, edge in zip(shape[1:], cell, strict=True)):
        raise ValueError(f"A crop of {shape[1:]} voxels is not made of whole cells of {cell}: pass the method's cell.")
    for name, values in grids.items():
        if values is not None and values.shape != grid:
            raise ValueError(
                f"{name} has shape {values.shape}: {shape[1:]} voxels in cells of {cell} make a grid of {grid}."
            )
