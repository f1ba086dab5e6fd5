"""What runs noted on their way: Dice against steps, steps to scratch's final Dice, probes, how far weights moved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_pretrain.study.arms import groups_of
from ssl_pretrain.study.outcomes import Outcome, Pair, at_size, compare, mean_cases, pairs_of, stacked
from ssl_pretrain.study.statistics import (
    Array,
    Interval,
    area_under,
    bootstrap_means,
    foreground_mean,
    interval,
    steps_to,
)
from ssl_pretrain.study.study import Study

TARGETS = (1.0, 0.9)
"""Shares of scratch's final Dice to which steps are counted."""

NEVER = "not reached"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Noted:
    """What a study saw before the end of its runs, as rows of tables; each list is empty where nothing was asked for.

    Attributes:
        points: a row for each amount of data, arm and point of the curve.
        areas: a row for each amount of data and arm.
        reach: a row for each amount of data, arm and share of scratch's final Dice.
        probes: a row for each amount of data and arm.
        movement: a row for each amount of data, arm and step.
    """

    points: Rows
    areas: Rows
    reach: Rows
    probes: Rows
    movement: Rows


def noted_of(study: Study, found: Sequence[Outcome], collapsed: Collection[str]) -> Noted:
    """Gather what runs that are done have noted on their way.

    Args:
        study: whose runs.
        found: what became of them.
        collapsed: names of the runs that have collapsed.
    """
    noted = Noted([], [], [], [], [])
    for size in study.sizes:
        done = [o for o in at_size(found, size) if o.status == "done"]
        for name, arms in groups_of(study.arms).items():
            names, baseline = {arm.name for arm in arms}, arms[0].baseline
            own = [o for o in done if o.run.arm in names]
            keys = {"size": size.label, "cases": mean_cases(size), "arm": name}
            with_curve = [o for o in own if o.content.get("curve")]
            # A run from scratch is its own pair, so that all arms have the same columns.
            pairs = pairs_of(done, names, baseline) if baseline else [(o, o) for o in with_curve]
            pairs = [pair for pair in pairs if len({len(o.content.get("curve") or ()) for o in pair} | {0}) == 2]
            if pairs:
                points, area, reach = _curves(pairs)
                primary = {"primary": (name, size.label) in study.primary}
                noted.points.extend({**keys, **primary, **row} for row in points)
                noted.areas.append({**keys, **primary, **area, "runs": len(own)})
                noted.areas[-1]["collapsed"] = sum(o.run.name in collapsed for o in own)
                noted.reach.extend({**keys, **primary, **row} for row in reach)
            noted.probes.extend(_probe(keys, own, pairs_of(done, names, baseline) if baseline else []))
            noted.movement.extend({**keys, **row} for row in _movement(own))
    return noted


def _curves(pairs: Sequence[Pair]) -> tuple[Rows, dict[str, Any], Rows]:
    """Points, area and reach of an arm; its pairs are equally many points, after its own and after scratch's steps."""
    curves = [tuple([o.at(point) for point in o.content["curve"]] for o in pair) for pair in pairs]
    count = len(curves[0][0])
    steps, other_steps = (np.array([o.content["steps"] for o in side], dtype=float) for side in curves[0])
    means = np.array([[float(foreground_mean(o.scores())) for side in pair for o in side] for pair in curves])
    draws = bootstrap_means(stacked([(pair[0][0].run, [o.scores() for side in pair for o in side]) for pair in curves]))
    ours, theirs, drawn, their_draws = means[:, :count], means[:, count:], draws[:, :count], draws[:, count:]
    mean, their_mean = ours.mean(axis=0), theirs.mean(axis=0)
    is_scratch = all(a is b for a, b in pairs)
    nothing = np.empty(0)

    def beside_scratch(value: Any, other: Any, values: Array, others: Array) -> dict[str, Any]:
        apart = interval(nothing if is_scratch else values - others)
        return {"difference": None if is_scratch else float(value - other), **_ends("difference_", apart)}

    points = []
    for i, step in enumerate(steps):
        row = {"steps": int(step), "runs": len(pairs), "mean": float(mean[i]), **_ends("", interval(drawn[:, i]))}
        row["sd"] = statistics.stdev(map(float, ours[:, i])) if len(pairs) > 1 else None
        points.append({**row, **beside_scratch(mean[i], their_mean[i], drawn[:, i], their_draws[:, i])})
    area, other_area = area_under(steps, mean), area_under(other_steps, their_mean)
    areas, other_areas = area_under(steps, drawn), area_under(other_steps, their_draws)
    whole = {"area": float(area), **_ends("", interval(areas)), "sd": points[-1]["sd"]}
    whole |= beside_scratch(area, other_area, areas, other_areas)
    reach = []
    for share in TARGETS:
        target, targets = share * their_mean[-1], share * their_draws[:, -1]
        found, drawn_steps = steps_to(target[None], steps, mean[None])[0], steps_to(targets, steps, drawn)
        scratch = steps_to(target[None], other_steps, their_mean[None])[0]
        ratios = nothing if is_scratch else drawn_steps / steps_to(targets, other_steps, their_draws)
        row = {"share": share, "target": float(target), "first": int(steps[0]), "scratch_steps": float(scratch)}
        row |= {"steps": _said(found), **_ends("steps_", interval(drawn_steps))}
        row |= {"ratio": None if is_scratch else _said(found / scratch), **_ends("ratio_", interval(ratios))}
        reach.append(row)
    return points, whole, reach


def _probe(keys: dict[str, Any], own: Sequence[Outcome], pairs: Sequence[Pair]) -> Rows:
    found = [o.at(o.content["probe"]) for o in own if o.content.get("probe")]
    if not found:
        return []
    values = [o.dice for o in found]
    row = {
        "runs": len(found),
        "steps": found[0].content["steps"],
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }
    probed = [(a.at(a.content["probe"]), b.at(b.content["probe"])) for a, b in pairs if a.content.get("probe")]
    return [{**keys, **row, **(compare(probed) if pairs else {})}]


def _movement(own: Sequence[Outcome]) -> Rows:
    """Mean distance and cosine of each part over runs, after every number of steps at which all were looked at."""
    seen: dict[int, list[dict[str, dict[str, float | None]]]] = {}
    for entry in (entry for o in own for entry in o.content.get("movement") or ()):
        seen.setdefault(entry["steps"], []).append(entry["parts"])
    rows = []
    for steps, entries in sorted(seen.items()):
        row: dict[str, Any] = {"steps": steps, "runs": len(entries), "parts": {}}
        for part in entries[0]:
            known = {name: [e[part][name] for e in entries if part in e] for name in ("distance", "cosine")}
            values = {name: [v for v in all_of if v is not None] for name, all_of in known.items()}
            row["parts"][part] = {name: statistics.fmean(v) if v else None for name, v in values.items()}
        rows.append(row)
    return rows


def _ends(prefix: str, found: Interval) -> dict[str, Any]:
    """Ends of an interval as JSON holds them."""
    return {f"{prefix}low": _said(found.low), f"{prefix}high": _said(found.high)}


def _said(value: float) -> float | str | None:
    """A number as JSON holds it: infinite steps are never."""
    if math.isnan(value):
        return None
    return NEVER if math.isinf(value) else float(value)
