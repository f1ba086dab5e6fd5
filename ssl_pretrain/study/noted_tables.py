"""Tables of what the runs of a study noted on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ssl_pretrain.study.cells import Rows, amount, comparison_cells, dice, ends, markdown_table, number, signed
from ssl_pretrain.study.curves import NEVER, Noted

AREAS = (
    *("training data", "arm", "runs", "area", "95 % bootstrap", "- scratch", "95 % bootstrap of that"),
    *("SD at the end", "collapsed"),
)
REACH = (
    "training data",
    "arm",
    "to",
    "Dice",
    "steps",
    "95 % bootstrap",
    "of scratch's steps",
    "95 % bootstrap of that",
)
POINTS = (
    *("training data", "arm", "steps", "runs", "Dice", "95 % bootstrap", "SD", "- scratch"),
    "95 % bootstrap of that",
)
PROBES = (*("training data", "arm", "runs", "Dice", "SD", "- scratch", "95 % bootstrap", "95 % t", "better"),)
MOVED = ("training data", "arm", "steps", "part", "distance", "cosine")

CURVES_EXPLAINED = (
    "Dice at a point of a curve is that of all validation cases, as at the end but never with mirrored images. *area* "
    "is the mean of the curve between its first and its last point. *steps* are those after which the mean curve first "
    "reaches 100 % and 90 % of the mean Dice of scratch at the end, on straight lines between the points; *of "
    "scratch's steps* is their share of those that scratch's own mean curve takes. ≤ stands where the first point is "
    "there already. Each draw of a bootstrap has its own target and its own curves; where more than one in forty never "
    f"reaches the target, the interval ends with *{NEVER}*."
)
MOVED_EXPLAINED = (
    "*distance* is the length of the change, in lengths of the weights at the start, *cosine* that of the angle "
    "between the weights and their start; both are means over runs. *rest* is all but the encoder, heads included."
)


def console_tables(noted: Noted) -> list[tuple[Sequence[str], Rows]]:
    """Headers and rows of the tables that fit a console; none where nothing was asked for."""
    tables = [
        (AREAS, _area_rows(noted.areas)),
        (REACH, reach_rows(noted.reach)),
        (PROBES, _probe_rows(noted.probes)),
    ]
    return [(headers, rows) for headers, rows in tables if rows]


def noted_markdown(noted: Noted, probe_steps: int) -> list[str]:
    """Paragraphs of ``study.md``: curves, probe, movement.

    Args:
        noted: of the study.
        probe_steps: for which heads were trained.
    """
    parts = []
    if noted.areas:
        parts += [
            "## Learning curves",
            markdown_table(AREAS, _area_rows(noted.areas)),
            markdown_table(REACH, reach_rows(noted.reach)),
            CURVES_EXPLAINED,
            "![Dice against optimiser steps](curves.png)",
            markdown_table(POINTS, _point_rows(noted.points)),
        ]
    if noted.probes:
        parts += [
            "## Frozen encoder",
            markdown_table(PROBES, _probe_rows(noted.probes)),
            f"A linear head on the frozen encoder, {probe_steps} steps of AdamW; that of scratch is random.",
        ]
    if noted.movement:
        parts += [
            "## How far the weights moved",
            markdown_table(MOVED, _movement_rows(noted.movement)),
            MOVED_EXPLAINED,
        ]
    return parts


def _area_rows(areas: Sequence[Mapping[str, Any]]) -> Rows:
    """Cells of :data:`AREAS`."""
    return [
        [
            *(amount(r), r["arm"], r["runs"], dice(r["area"]), ends(r["low"], r["high"], dice)),
            *(signed(r["difference"]), ends(r["difference_low"], r["difference_high"])),
            *(dice(r["sd"]), f"{r['collapsed']} of {r['runs']}"),
        ]
        for r in areas
    ]


def reach_rows(reach: Sequence[Mapping[str, Any]]) -> Rows:
    """Cells of :data:`REACH`."""
    rows = []
    for r in reach:
        steps = partial(_steps, first=r["first"])
        bound = "≤ " if r["ratio"] is not None and r["steps"] == r["first"] else ""
        share = partial(number, form=".2f")
        rows.append(
            [
                *(amount(r), r["arm"], f"{100 * r['share']:.0f} % of scratch", dice(r["target"]), steps(r["steps"])),
                *(ends(r["steps_low"], r["steps_high"], steps), bound + share(r["ratio"])),
                ends(r["ratio_low"], r["ratio_high"], share),
            ]
        )
    return rows


def _steps(value: float | str | None, first: float) -> str:
    """A number of steps; the first point is a bound, because nobody has looked earlier."""
    return ("≤ " if isinstance(value, (int, float)) and value <= first else "") + number(value, ".0f")


def _probe_rows(probes: Sequence[Mapping[str, Any]]) -> Rows:
    """Cells of :data:`PROBES`."""
    return [
        [
            *(amount(r), r["arm"], r["runs"], dice(r["mean"]), dice(r["sd"])),
            *(comparison_cells(r)[1:] if "difference" in r else ["-"] * 4),
        ]
        for r in probes
    ]


def _point_rows(points: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [
            *(amount(r), r["arm"], r["steps"], r["runs"], dice(r["mean"]), ends(r["low"], r["high"], dice)),
            *(dice(r["sd"]), signed(r["difference"]), ends(r["difference_low"], r["difference_high"])),
        ]
        for r in points
    ]


def _movement_rows(movement: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [amount(r), r["arm"], r["steps"], part, number(moved["distance"], ".4f"), number(moved["cosine"], ".4f")]
        for r in movement
        for part, moved in r["parts"].items()
    ]
