"""``study.png``: Dice against the training cases, every run a dot; ``curves.png``: Dice against optimiser steps."""

from __future__ import annotations

import statistics
from pathlib import Path

from ssl_pretrain.report._figure import new_figure, save_figure
from ssl_pretrain.study.arms import groups_of
from ssl_pretrain.study.cells import size_lines
from ssl_pretrain.study.results import Analysis
from ssl_pretrain.study.study import Study
from ssl_pretrain.study.tables import EXPLORATORY

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
    groups = groups_of(study.arms)
    for i, (name, arms) in enumerate(groups.items()):
        offset = SPREAD * ((i + 0.5) / len(groups) - 0.5) * 2
        colour = COLOURS[i % len(COLOURS)]
        medians = [row["median"] for row in analysis.summary if row["arm"] == name]
        known = [(x + offset, median) for x, median in enumerate(medians) if median is not None]
        # A dash at each median: with one amount of data there is no line.
        (line,) = axes.plot([x for x, _ in known], [y for _, y in known], color=colour, linewidth=1.4, label=name)
        line.set(marker="_", markersize=15, markeredgewidth=1.8)
        names = {arm.name for arm in arms}
        for x, median in known:
            if (name, study.sizes[round(x - offset)].label) in study.primary:
                axes.annotate("*", (x, median), (0, -14), textcoords="offset points", color=colour, ha="center")
        for collapsed, marker in ((False, "o"), (True, "x")):
            dots = [
                (x + offset, o.dice)
                for x, size in enumerate(study.sizes)
                for o in analysis.outcomes
                if o.status == "done" and o.run.arm in names and o.run.cases == size.counts[o.run.fold]
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
    ticks = [size_lines(size.label, mean) for size, mean in zip(study.sizes, means, strict=True)]
    axes.set_xticks(range(len(ticks)), ["\n".join(lines) for lines in ticks])
    axes.set_xlim(-0.6, len(study.sizes) - 0.4)
    axes.set_xlabel("training cases")
    axes.set_ylabel("Dice, validation cases")
    star = "; *: primary, all else exploratory" if study.primary else ""
    axes.set_title(f"{study.dataset}: every run; line: median; cross: collapsed{star}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    # Beside the axes: dots may be anywhere in them.
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    figure.tight_layout()
    save_figure(figure, target, dpi=130)


def draw_curves(study: Study, analysis: Analysis, target: Path) -> None:
    """Draw mean Dice against optimiser steps with its bootstrap interval, a panel for each amount of data.

    Args:
        study: what was run.
        analysis: what became of it; with points of curves.
        target: the PNG file, replaced as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    figure = new_figure(max(6.8, 1.8 + 3.6 * len(study.sizes)), 4.2)
    panels = figure.subplots(1, len(study.sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, study.sizes, strict=True):
        for j, name in enumerate(groups_of(study.arms)):
            rows = [r for r in analysis.noted.points if (r["size"], r["arm"]) == (size.label, name)]
            if not rows:
                continue
            explores = bool(study.primary) and not rows[0]["primary"] and rows[0]["difference"] is not None
            label, colour = f"{name} ({EXPLORATORY})" if explores else name, COLOURS[j % len(COLOURS)]
            steps = [r["steps"] for r in rows]
            form = f"o{'--' if explores else '-'}"
            axes.plot(steps, [r["mean"] for r in rows], form, color=colour, linewidth=1.4, markersize=3, label=label)
            if all(r["low"] is not None for r in rows):
                axes.fill_between(steps, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, alpha=0.12)
        axes.set_xscale("log")
        axes.set_xlabel("optimiser steps")
        axes.set_title(" ".join(size_lines(size.label, statistics.fmean(size.counts.values()))), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    panels[0].set_ylabel("Dice, validation cases")
    figure.suptitle(f"{study.dataset}: mean Dice and 95 % bootstrap", fontsize=10)
    figure.tight_layout()
    save_figure(figure, target, dpi=130)
