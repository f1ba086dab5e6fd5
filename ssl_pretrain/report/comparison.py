"""Curves of runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssl_pretrain.report._figure import new_figure, save_figure

Curves = Mapping[str, Sequence[float]]


def draw_curves(target: Path, panels: Mapping[str, Curves]) -> None:
    """One panel per group of curves, side by side, as a PNG.

    Args:
        target: the PNG file, replaced as a whole.
        panels: title of the panel -> name of the curve -> one value per epoch.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.2 * len(panels), 3.4)
    for i, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, values in curves.items():
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, target, dpi=110)
