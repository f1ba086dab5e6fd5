"""Columns that a method names itself, for a picture of a crop in which no cells are masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ssl_pretrain.report._panels import EMPTY_COLOUR, ERROR_MAP, Floats, Panel, Plane, grey_window, largest_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

HUES = (0, 1, 2, 3, 4, 5, 6, 8, 9)
"""Of ``tab10`` without its grey, for the classes after 0, which is light grey."""
MANY_CLASSES_MAP = "turbo"
"""Where there are more classes than that."""
MOST_TICKS = 10


class Column(Protocol):
    """One column of a picture; any class with these attributes will do."""

    @property
    def heading(self) -> str:
        """Written above it."""

    @property
    def kind(self) -> str:
        """``image``: grey values; ``error``: values from 0 on; ``classes``: whole numbers from 0."""

    @property
    def values(self) -> npt.NDArray[Any] | torch.Tensor:
        """``(C, D, H, W)``; a column of a single channel stands beside every channel of the others."""

    @property
    def classes(self) -> int:
        """How many there are; of a column of that kind only."""


@dataclass(frozen=True)
class Channel:
    """What one channel of a column shows.

    Attributes:
        values: ``(D, H, W)``.
        window: grey values shown as black and white, the same for all images of a channel.
        classes: how many there are, in a column of classes.
    """

    values: Floats
    window: tuple[float, float]
    classes: int


def column_panels(columns: Sequence[Column], volumes: Sequence[Floats], channel: int) -> list[Panel]:
    """The panels of one channel; ``volumes`` are the values of the columns, as :func:`check_columns` wants them.

    Neighbouring columns of the same classes share the colour bar of the last one.
    """
    values = [volume[channel if len(volume) > 1 else 0] for volume in volumes]
    images = [array for column, array in zip(columns, values, strict=True) if column.kind == "image"]
    window = grey_window(images[0]) if images else (0.0, 1.0)
    panels = [
        PANELS[column.kind](column.heading, Channel(array, window, column.classes))
        for column, array in zip(columns, values, strict=True)
    ]
    for number, (one, other) in enumerate(pairwise(columns)):
        if one.kind == other.kind == "classes" and one.classes == other.classes:
            panels[number] = replace(panels[number], bar=False)
    return panels


def check_columns(columns: Sequence[Column], volumes: Sequence[Floats]) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: no columns, an unknown kind, shapes that differ, or a class that there is not.
    """
    if not columns:
        raise ValueError("A picture has no columns: name at least one.")
    shape, channels = volumes[0].shape[1:], max(len(volume) for volume in volumes)
    for column, volume in zip(columns, volumes, strict=True):
        if column.kind not in PANELS:
            raise ValueError(f"{column.heading}: the kind of a column is {' or '.join(PANELS)}, not {column.kind!r}.")
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


def image_panel(heading: str, channel: Channel) -> Panel:
    """Grey values in the window."""
    low, high = channel.window
    return Panel(heading, partial(_show, channel, {"cmap": "gray", "vmin": low, "vmax": high}))


def error_panel(heading: str, channel: Channel) -> Panel:
    """Values from 0 on; the colours end at the 99th percentile over the crop."""
    options = {"cmap": ERROR_MAP, "vmin": 0, "vmax": largest_error(channel.values)}
    return Panel(heading, partial(_show, channel, options), bar=True)


def class_panel(heading: str, channel: Channel) -> Panel:
    """Whole numbers from 0, each in a colour of its own."""
    count = channel.classes
    options = {"cmap": class_colours(count), "vmin": -0.5, "vmax": count - 0.5}
    ticks = tuple(range(0, count, -(-count // MOST_TICKS)))
    return Panel(heading, partial(_show, channel, options), bar=True, ticks=ticks)


PANELS: dict[str, Callable[[str, Channel], Panel]] = {
    "image": image_panel,
    "error": error_panel,
    "classes": class_panel,
}
"""Kinds of columns."""


def class_colours(count: int) -> Colormap:
    """A colour for each of as many classes."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, to_hex

    hues = [colormaps["tab10"](hue) for hue in HUES]
    if count - 1 > len(hues):
        hues = [colormaps[MANY_CLASSES_MAP](share) for share in np.linspace(0, 1, count - 1)]
    return ListedColormap([EMPTY_COLOUR, *(to_hex(hue) for hue in hues[: count - 1])])


def _show(channel: Channel, options: dict[str, Any], axes: Axes, plane: Plane) -> AxesImage:
    axes.set_facecolor(EMPTY_COLOUR)
    return plane.show(axes, plane.of(channel.values), **options)
