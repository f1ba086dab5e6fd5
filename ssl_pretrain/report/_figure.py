"""Figures without pyplot: nothing global changes, no display is needed, and a reader never sees half a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ssl_pretrain.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]
"""Left, bottom, width and height as fractions of the figure."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` × ``height`` inches that draws on the Agg canvas."""
    # matplotlib takes half a second to import, and most users of the library never draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, target: Path, dpi: int) -> None:
    """Write a PNG beside ``target`` and rename it; missing folders are made.

    Raises:
        OSError: the file cannot be written or replaced, for instance because another program holds it on Windows.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, "wb", lambda handle: figure.savefig(handle, dpi=dpi, format="png"))


@dataclass(frozen=True)
class Sheet:
    """Where the panels of a picture lie: blocks one below the other, each of rows and columns of panels.

    Every column has one width, every row the height that its content asks for.
    """

    contents: tuple[tuple[float, float], ...]
    """Height and width of what each row shows, in any one unit."""
    bars: tuple[bool, ...]
    """For each column whether there is a colour bar, as tall as the block, at its right."""
    blocks: int

    panel_width: ClassVar[float] = 2.3  # all in inches
    thinnest: ClassVar[float] = 0.6
    tallest: ClassVar[float] = 4.5
    left: ClassVar[float] = 0.45
    top: ClassVar[float] = 0.45
    titles: ClassVar[float] = 0.3
    gap: ClassVar[float] = 0.07
    bar: ClassVar[float] = 0.1
    bar_labels: ClassVar[float] = 0.55

    @property
    def row_heights(self) -> list[float]:
        """Of the panels, in inches: all rows at one scale, within what stays readable."""
        scale = self.panel_width / max(width for _, width in self.contents)
        return [min(max(height * scale, self.thinnest), self.tallest) for height, _ in self.contents]

    @property
    def block_height(self) -> float:
        """Of a block without its column titles, in inches."""
        return sum(self.row_heights) + self.gap * (len(self.contents) - 1)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure in inches."""
        height = self.top + self.blocks * (self.titles + self.block_height + self.gap)
        return self._column_left(len(self.bars)), height

    def figure(self, title: str) -> Figure:
        """An empty figure of this size under a title."""
        figure = new_figure(*self.size)
        figure.text(0.5, 1 - 0.5 * self.top / self.size[1], title, ha="center", va="center", fontsize=12)
        return figure

    def add_axes(self, figure: Figure, block: int, row: int, column: int) -> Axes:
        """One panel of the figure, without ticks or frame."""
        below = sum(self.row_heights[row + 1 :]) + self.gap * (len(self.contents) - 1 - row)
        bottom = self._block_bottom(block) + below
        box = self._box(self._column_left(column), bottom, self.panel_width, self.row_heights[row])
        axes = figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def colour_bar(self, block: int, column: int) -> Box:
        """Of the colour bar that belongs to a column, as tall as the block."""
        left = self._column_left(column) + self.panel_width + self.gap
        return self._box(left, self._block_bottom(block), self.bar, self.block_height)

    def _column_left(self, column: int) -> float:
        bars = sum(self.bars[:column]) * (self.bar + self.bar_labels)
        return self.left + column * (self.panel_width + self.gap) + bars

    def _block_bottom(self, block: int) -> float:
        return self.gap + (self.blocks - 1 - block) * (self.titles + self.block_height + self.gap)

    def _box(self, left: float, bottom: float, width: float, height: float) -> Box:
        total_width, total_height = self.size
        return left / total_width, bottom / total_height, width / total_width, height / total_height
