"""What the runs of a study say together, as rows of tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssl_pretrain.study.arms import groups_of
from ssl_pretrain.study.curves import Noted, noted_of
from ssl_pretrain.study.design import Size
from ssl_pretrain.study.outcomes import Outcome, Pair, at_size, compare, mean_cases, outcomes, pairs_of
from ssl_pretrain.study.statistics import collapsed_runs, holm
from ssl_pretrain.study.study import Study


@dataclass(frozen=True)
class Analysis:
    """What a study says so far, as rows of tables.

    Attributes:
        outcomes: of every run.
        collapsed: names of the runs that have collapsed.
        summary: a row for each amount of data and arm; the pretrainings of a group are one arm.
        differences: a row for each amount of data and pretrained arm.
        labels: the same for each label.
        noted: what was seen before the end of the runs.
    """

    outcomes: list[Outcome]
    collapsed: set[str]
    summary: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    noted: Noted


def analyse(study: Study) -> Analysis:
    """Gather the runs and compare the arms."""
    found = outcomes(study)
    collapsed: set[str] = set()
    summary, differences, labels = [], [], []
    for size in study.sizes:
        here = at_size(found, size)
        done = [o for o in here if o.status == "done"]
        collapsed |= collapsed_runs(
            {o.run.name: o.dice for o in done},
            {o.run.name: o.content["labels"] for o in done},
            study.settings.collapsed_below,
        )
        for name, arms in groups_of(study.arms).items():
            names = {arm.name for arm in arms}
            summary.append(_summary(size, name, [o for o in here if o.run.arm in names], collapsed))
            if (baseline := arms[0].baseline) is None:
                continue
            pairs = pairs_of(done, names, baseline)
            is_primary = (name, size.label) in study.primary
            differences.append({**_difference(size, name, baseline, pairs, collapsed), "primary": is_primary})
            labels += [_label_difference(size, name, pairs, label) for label in study.labels.values()]
    named = [row for row in differences if row["primary"]]
    # One whose runs are not done yet counts among those that are corrected for.
    corrected = holm([1.0 if row["p"] is None else row["p"] for row in named])
    for row, p in zip(named, corrected, strict=True):
        row["p_holm"] = None if row["p"] is None else p
    return Analysis(found, collapsed, summary, differences, labels, noted_of(study, found, collapsed))


def _summary(size: Size, arm: str, here: Sequence[Outcome], collapsed: set[str]) -> dict[str, Any]:
    values = [o.dice for o in here if o.status == "done"]
    return {
        "size": size.label,
        "cases": mean_cases(size),
        "arm": arm,
        "runs": len(values),
        "failed": sum(o.status == "failed" for o in here),
        "mean": statistics.fmean(values) if values else None,
        "median": statistics.median(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "collapsed": sum(o.run.name in collapsed for o in here),
    }


def _difference(size: Size, arm: str, baseline: str, pairs: Sequence[Pair], collapsed: set[str]) -> dict[str, Any]:
    learned = [pair for pair in pairs if not {o.run.name for o in pair} & collapsed]
    return {
        "size": size.label,
        "cases": mean_cases(size),
        "arm": arm,
        "baseline": baseline,
        **compare(pairs),
        "pairs_without_collapsed": len(learned),
        "difference_without_collapsed": statistics.fmean(a.dice - b.dice for a, b in learned) if learned else None,
    }


def _label_difference(size: Size, arm: str, pairs: Sequence[Pair], label: str) -> dict[str, Any]:
    means = [[o.content["labels"].get(label) for o in side] for side in zip(*pairs, strict=True)] or [[], []]
    ours, theirs = ([v for v in side if v is not None] for side in means)
    return {
        "size": size.label,
        "label": label,
        "arm": arm,
        "mean": statistics.fmean(ours) if ours else None,
        "scratch": statistics.fmean(theirs) if theirs else None,
        **compare(pairs, label),
    }
