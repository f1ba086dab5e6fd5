"""``progress.png``: loss, learning rate and epoch duration of a run, redrawn from ``metrics.csv`` after each epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_pretrain.report._figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("epoch", "train_loss", "val_loss", "lr", "masked_fraction", "images_per_second", "epoch_seconds")
"""What is read from ``metrics.csv``; other columns are left alone."""

_EMA_MOMENTUM = 0.9  # as nnU-Net smooths its Dice: the last ten epochs or so
_EMA_FROM = 10  # on fewer epochs the average is mostly lag
_FEW_EPOCHS = 30  # up to here single epochs are marked
_TRAIN, _VAL, _OTHER = "#7f9fc6", "#e8a15b", "#3b5b86"
_VAL_SMOOTH = "#c0471b"


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Read the metrics of a run, as far as they are there.

    Args:
        path: a CSV file with a header. Columns may be missing and cells empty, as in a run that has just begun or was
            stopped while it wrote.

    Returns:
        One list for each of :data:`COLUMNS`, all of one length, in order of epochs; NaN where there is no finite
        number. Rows of the same epoch are merged and the later value wins, so an epoch that was run again after
        resuming appears once. A row without an epoch counts from the one before it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No metrics at {path}: a run writes them at the end of its first epoch.")
    epochs: dict[int, dict[str, float]] = {}
    epoch = -1
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            values = {name: _number(row.get(name)) for name in COLUMNS}
            if all(math.isnan(value) for value in values.values()):
                continue
            epoch = epoch + 1 if math.isnan(values["epoch"]) else int(values["epoch"])
            known = {name: value for name, value in values.items() if not math.isnan(value)}
            epochs.setdefault(epoch, {}).update(known, epoch=float(epoch))
    rows = [epochs[number] for number in sorted(epochs)]
    return {name: [row.get(name, math.nan) for row in rows] for name in COLUMNS}


def draw_progress(metrics_csv: Path, target: Path) -> None:
    """Draw the curves of a run as three panels, one above the other, 900 × 1050 pixels.

    Args:
        metrics_csv: see :func:`read_metrics`; one row is enough, and without any the panels are empty.
        target: the PNG file, replaced as a whole.

    Raises:
        FileNotFoundError: ``metrics_csv`` does not exist.
        OSError: ``target`` cannot be written.
    """
    metrics = read_metrics(metrics_csv)
    figure = new_figure(9, 10.5)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    loss, rate, duration = figure.subplots(3, 1, sharex=True, height_ratios=[2.4, 1, 1])
    _draw_loss(loss, metrics)
    _line(rate, metrics, "lr", "learning rate", _OTHER)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _line(duration, metrics, "epoch_seconds", "epoch duration", _OTHER)
    duration.set_ylim(0, 1.15 * max((value for value in metrics["epoch_seconds"] if value > 0), default=1.0))
    for axes, label in ((loss, "loss"), (rate, "learning rate"), (duration, "time [s]")):
        _dress(axes, label)
    duration.set_xlabel("epoch")
    _set_epochs(duration, metrics["epoch"])
    figure.suptitle(_summary(metrics), fontsize=11)
    save_figure(figure, target, dpi=100)


def _number(text: str | None) -> float:
    """What a cell says, NaN when that is no finite number."""
    try:
        value = float(text or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _moving_average(values: list[float]) -> list[float]:
    """Exponential moving average, weights normalised so that the first epochs do not count more; NaN is passed over."""
    total = weight = 0.0
    smooth = []
    for value in values:
        if not math.isnan(value):
            total = _EMA_MOMENTUM * total + (1 - _EMA_MOMENTUM) * value
            weight = _EMA_MOMENTUM * weight + (1 - _EMA_MOMENTUM)
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _draw_loss(axes: Axes, metrics: dict[str, list[float]]) -> None:
    _line(axes, metrics, "train_loss", "training", _TRAIN)
    _line(axes, metrics, "val_loss", "validation", _VAL)
    if _count(metrics["val_loss"]) > _EMA_FROM:
        smooth = _moving_average(metrics["val_loss"])
        axes.plot(metrics["epoch"], smooth, color=_VAL_SMOOTH, linewidth=2.2, label="validation, moving average")
    losses = sorted(value for value in metrics["train_loss"] + metrics["val_loss"] if not math.isnan(value))
    limits = _readable_limits(losses)
    if limits is not None:
        axes.set_ylim(*limits)
        note = f"peaks up to {losses[-1]:.3g} are cut off"
        axes.text(0.5, 0.98, note, transform=axes.transAxes, ha="center", va="top", fontsize=9, color="#666666")


def _readable_limits(losses: list[float]) -> tuple[float, float] | None:
    """Limits of the axis where a few huge values would flatten the rest of the curve, None where none do."""
    if len(losses) < 2 * _FEW_EPOCHS:
        return None
    low, high = losses[0], losses[int(0.98 * len(losses))]
    spread = high - low
    if losses[-1] <= high + spread:
        return None
    return low - 0.05 * spread, high + 0.25 * spread


def _line(axes: Axes, metrics: dict[str, list[float]], column: str, label: str, colour: str) -> None:
    values = metrics[column]
    if not _count(values):
        return
    pairs = [(x, y) for x, y in zip(metrics["epoch"], values, strict=True) if not math.isnan(y)]
    marker = "o" if len(pairs) <= _FEW_EPOCHS else ""
    epochs, numbers = zip(*pairs, strict=True)
    axes.plot(epochs, numbers, color=colour, linewidth=1.1, marker=marker, markersize=4, label=label)


def _dress(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    else:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", va="center", color="#888888")


def _set_epochs(axes: Axes, epochs: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11, steps=[1, 2, 5, 10], min_n_ticks=1))
    first, last = (epochs[0], epochs[-1]) if epochs else (0.0, 1.0)
    margin = max(0.5, 0.01 * (last - first))
    axes.set_xlim(first - margin, last + margin)


def _summary(metrics: dict[str, list[float]]) -> str:
    """One line with the latest numbers, as far as there are any."""
    if not metrics["epoch"]:
        return "no epoch finished yet"
    parts = [f"epoch {metrics['epoch'][-1]:.0f}"]
    for column, form in (
        ("train_loss", "training {:.4g}"),
        ("val_loss", "validation {:.4g}"),
        ("masked_fraction", "{:.0%} masked"),
        ("images_per_second", "{:.3g} images/s"),
    ):
        value = metrics[column][-1]
        if not math.isnan(value):
            parts.append(form.format(value))
    return "  ·  ".join(parts)


def _count(values: list[float]) -> int:
    return sum(not math.isnan(value) for value in values)
