"""``study.png``: Dice against the number of training cases, with every run as a dot."""

from __future__ import annotations

import statistics
from pathlib import Path

from ssl_pretrain.report._figure import new_figure, save_figure
from ssl_pretrain.study.results import Analysis
from ssl_pretrain.study.study import Study
from ssl_pretrain.study.tables import size_lines

COLOURS = ("#555555", "#3b6fb6", "#d9822b", "#3f9b5c", "#b04a8f", "#8a6d3b", "#c0392b", "#2a9d9d", "#7a5cc0", "#a0a03a")
SPREAD = 0.35
"""Share of the way to the next amount of data over which the arms stand side by side."""


def draw_study(study: Study, analysis: Analysis, target: Path) -> None:
    """Draw the runs that are done: a column of dots for each arm at each amount of data, a line through its medians.

    Runs that have collapsed are crosses. Amounts of data have equal distances: they are a handful of chosen numbers.

    Args:
        study: what was run.
        analysis: what became of it.
        target: the PNG file, replaced as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    figure = new_figure(max(6.8, 2.9 + 1.5 * len(study.sizes)), 4.6)
    axes = figure.add_subplot()
    for i, arm in enumerate(study.arms):
        offset = SPREAD * ((i + 0.5) / len(study.arms) - 0.5) * 2
        colour = COLOURS[i % len(COLOURS)]
        medians = [row["median"] for row in analysis.summary if row["arm"] == arm.name]
        known = [(x + offset, median) for x, median in enumerate(medians) if median is not None]
        # A dash at each median: with one amount of data there is no line.
        (line,) = axes.plot([x for x, _ in known], [y for _, y in known], color=colour, linewidth=1.4, label=arm.name)
        line.set(marker="_", markersize=15, markeredgewidth=1.8)
        for collapsed, marker in ((False, "o"), (True, "x")):
            dots = [
                (x + offset, o.dice)
                for x, size in enumerate(study.sizes)
                for o in analysis.outcomes
                if o.status == "done" and o.run.arm == arm.name and o.run.cases == size.counts[o.run.fold]
                if (o.run.name in analysis.collapsed) == collapsed
            ]
            if dots:
                axes.scatter(
                    [x for x, _ in dots],
                    [y for _, y in dots],
                    s=22,
                    color=colour,
                    marker=marker,
                    alpha=0.75,
                    linewidths=1.2,
                )
    means = [statistics.fmean(size.counts.values()) for size in study.sizes]
    names = [size_lines(size.label, mean) for size, mean in zip(study.sizes, means, strict=True)]
    axes.set_xticks(range(len(names)), ["\n".join(lines) for lines in names])
    axes.set_xlim(-0.6, len(study.sizes) - 0.4)
    axes.set_xlabel("training cases")
    axes.set_ylabel("Dice, validation cases")
    axes.set_title(f"{study.dataset}: every run; line: median; cross: collapsed", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    # Beside the axes: dots may be anywhere in them.
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    figure.tight_layout()
    save_figure(figure, target, dpi=130)
