"""What a method sees and predicts, as columns of three orthogonal slices through a crop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ssl_pretrain.report._figure import Sheet, save_figure
from ssl_pretrain.report._panels import (
    KINDS,
    Bools,
    Drawable,
    Floats,
    Plane,
    Spacing,
    Triple,
    bools,
    draw_slices,
    floats,
    grey_window,
)

MOST_CHANNELS = 2
"""Channels that are drawn; more would make the picture too tall to read."""

MOST_TICKS = 10
"""Labels beside the colour bar of classes."""


def draw_picture(target: Path, columns: Sequence[Drawable], *, title: str, spacing: Spacing = (1.0, 1.0, 1.0)) -> None:
    """Draw the columns of one crop.

    Rows are the planes of :func:`choose_slices`, for each of the first two channels. Images share one grey window per
    channel, from the 0.5th to the 99.5th percentile of the first image. The colours of an error go from 0 to the 99th
    percentile over the crop. Classes have a colour each, 0 is light grey; neighbouring columns of the same classes
    share a colour bar. Ratings lie over the first image.

    Args:
        target: the PNG file, replaced as a whole.
        columns: from left to right.
        title: shown above, with a note if not all channels are drawn.
        spacing: of the voxels along D, H and W in mm, for the aspect ratio.

    Raises:
        ValueError: no columns, an unknown kind, shapes that differ, a class that there is not, or a grid that the crop
            is not whole cells of.
        OSError: ``target`` cannot be written.
    """
    volumes = [floats(column.values) for column in columns]
    _check(columns, volumes)
    shape: Triple = volumes[0].shape[1:]
    channels = max(len(volume) for volume in volumes)
    drawn = min(channels, MOST_CHANNELS)
    if channels > drawn:
        title += f"  (first {drawn} of {channels} channels)"

    marked = [column.outlined for column in columns] + [column.tinted for column in columns]
    voxels = choose_slices(shape, [bools(grid) for grid in marked if grid is not None])
    planes = [Plane(axis, voxel, spacing) for axis, voxel in enumerate(voxels)]
    bars = tuple(
        column.kind != "image"
        and not (after and column.kind == after.kind == "classes" and column.classes == after.classes)
        for column, after in zip(columns, [*columns[1:], None], strict=True)
    )
    sheet = Sheet(tuple(plane.extent(shape) for plane in planes), bars, drawn)
    figure = sheet.figure(title)
    for channel in range(drawn):
        values = [volume[channel if len(volume) > 1 else 0] for volume in volumes]
        first = next((v for column, v in zip(columns, values, strict=True) if column.kind == "image"), np.empty(0))
        window = grey_window(first)
        for number, column in enumerate(columns):
            rows = [sheet.add_axes(figure, channel, row, number) for row in range(len(planes))]
            rows[0].set_title(column.heading, fontsize=10, pad=4)
            coloured = draw_slices(rows, planes, column, values[number], first, window)
            if number == 0:
                for axes, plane in zip(rows, planes, strict=True):
                    axes.set_ylabel((f"channel {channel}\n" if drawn > 1 else "") + plane.name, fontsize=9)
            if bars[number]:
                ticks = range(0, column.classes, -(-column.classes // MOST_TICKS)) if column.classes else None
                bar = figure.colorbar(coloured, cax=figure.add_axes(sheet.colour_bar(channel, number)), ticks=ticks)
                bar.ax.tick_params(labelsize=8)
                bar.outline.set_visible(False)
    save_figure(figure, target, dpi=110)


def draw_neighbours(
    target: Path, rows: Sequence[Sequence[tuple[str, Tensor]]], *, title: str, spacing: Spacing = (1.0, 1.0, 1.0)
) -> None:
    """Draw crops and, at the right of each, those that are most like it.

    Of each crop the middle axial slice of the first channel is drawn, in a grey window of its own.

    Args:
        target: the PNG file, replaced as a whole.
        rows: lists of a caption and a crop ``(C, D, H, W)``: the query, then its neighbours.
        title: shown above, with a note if not all channels are drawn.
        spacing: of the voxels along D, H and W in mm, for the aspect ratio.

    Raises:
        ValueError: no crops, or crops that differ in shape.
        OSError: ``target`` cannot be written.
    """
    shapes = {tuple(crop.shape) for row in rows for _, crop in row}
    if len(shapes) != 1 or len(min(shapes)) != 4:
        raise ValueError(f"The crops have shapes {sorted(shapes)}: all must have the same, (C, D, H, W).")
    channels, depth, height, width = shapes.pop()
    if channels > 1:
        title += f"  (first of {channels} channels)"
    plane = Plane(0, depth // 2, spacing)
    sheet = Sheet((plane.extent((depth, height, width)),), (False,) * max(len(row) for row in rows), len(rows))
    figure = sheet.figure(title)
    for number, row in enumerate(rows):
        for column, (caption, crop) in enumerate(row):
            axes = sheet.add_axes(figure, number, 0, column)
            axes.set_title(caption, fontsize=9, pad=4)
            image = floats(crop[0])
            low, high = grey_window(image)
            plane.show(axes, plane.of(image), cmap="gray", vmin=low, vmax=high)
    save_figure(figure, target, dpi=110)


def choose_slices(shape: Triple, wanted: Sequence[Bools] = ()) -> Triple:
    """The voxel on each axis at which a crop is cut.

    All three planes pass through the middle of one cell: of the first grid with any cell that is True, the one nearest
    to the centre of the crop; of equally near ones, the first in array order. Without any, the middle voxel is cut.

    Args:
        shape: voxels of the crop along D, H and W.
        wanted: grids ``(gd, gh, gw)``, each of whole cells of the crop; those before are preferred.

    Returns:
        Indices along D, H and W.
    """
    whole = np.ones((1, 1, 1), np.bool_)
    grid = next(grid for grid in [*wanted, whole] if grid.any())
    cell = np.array(shape) // grid.shape
    cells = np.argwhere(grid)
    offsets = (cells + 0.5 - np.array(grid.shape) / 2) * cell
    nearest = cells[np.argmin(np.sum(offsets**2, axis=1))]
    depth, height, width = (nearest * cell + cell // 2).tolist()
    return depth, height, width


def _check(columns: Sequence[Drawable], volumes: Sequence[Floats]) -> None:
    if not columns:
        raise ValueError("A picture has no columns: name at least one.")
    shape, channels = volumes[0].shape[1:], max(len(volume) for volume in volumes)
    for column, volume in zip(columns, volumes, strict=True):
        if column.kind not in KINDS:
            raise ValueError(f"{column.heading}: the kind of a column is {' or '.join(KINDS)}, not {column.kind!r}.")
        if volume.ndim != 4 or 0 in volume.shape:
            raise ValueError(f"{column.heading} has shape {volume.shape}: one crop (C, D, H, W) is drawn at a time.")
        if volume.shape[1:] != shape or len(volume) not in (1, channels):
            raise ValueError(
                f"{column.heading} has shape {volume.shape}: all columns must have {channels} channels, or a single "
                f"one, of {shape} voxels."
            )
        if column.kind == "classes" and not (volume.min() >= 0 and volume.max() < column.classes):
            raise ValueError(
                f"{column.heading} has values from {volume.min():g} to {volume.max():g}: a column of {column.classes} "
                f"classes holds 0 to {column.classes - 1}."
            )
        for name in ("tinted", "dimmed", "outlined"):
            grid = getattr(column, name)
            if grid is None:
                continue
            cells = tuple(grid.shape)
            if len(cells) != 3 or any(not count or size % count for size, count in zip(shape, cells, strict=True)):
                raise ValueError(
                    f"{column.heading}: {name} has shape {cells}, but a crop of {shape} voxels is not made of whole "
                    f"cells of such a grid (gd, gh, gw)."
                )
