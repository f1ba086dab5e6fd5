"""What the runs of a study left, and what it says together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_pretrain.study.arms import Arm
from ssl_pretrain.study.design import Size, StudyRun
from ssl_pretrain.study.statistics import (
    Scores,
    bootstrap_difference,
    collapsed_runs,
    foreground_mean,
    paired_difference,
)
from ssl_pretrain.study.study import AGAIN, FAILURE, LOG, RESULT, Study, read_result

LOG_LINES = 15

PerCase = Mapping[str, Mapping[str, float | None]]
"""Case -> label -> Dice; None where neither prediction nor truth has the label."""


def scores_of(per_case: PerCase) -> Scores:
    """As an array (cases, labels), cases in alphabetical order."""
    rows = [[math.nan if v is None else v for v in per_case[case].values()] for case in sorted(per_case)]
    return np.array(rows, dtype=float)


def mean_dice(per_case: PerCase) -> tuple[float, dict[str, float | None]]:
    """Mean Dice as nnU-Net's ``foreground_mean`` but without labels that no case has, and the mean of each label."""
    scores = scores_of(per_case)
    names = list(next(iter(per_case.values())))
    by_label = [float(foreground_mean(scores[:, [i]])) for i in range(len(names))]
    per_label = {name: None if math.isnan(v) else v for name, v in zip(names, by_label, strict=True)}
    return float(foreground_mean(scores)), per_label


@dataclass(frozen=True)
class Outcome:
    """A run and what became of it.

    Attributes:
        run: which one.
        status: ``done``, ``failed``, ``begun`` or ``waiting``.
        content: its result or failure.
    """

    run: StudyRun
    status: str
    content: Mapping[str, Any]

    @property
    def dice(self) -> float:
        """Mean Dice of a run that is done."""
        return float(self.content["dice"])

    def scores(self, label: str | None = None) -> Scores:
        """Dice (cases, labels) of a run that is done; of one label alone if it is named."""
        per_case: PerCase = self.content["per_case"]
        if label is None:
            return scores_of(per_case)
        return scores_of({case: {label: values[label]} for case, values in per_case.items()})


def outcomes(study: Study) -> list[Outcome]:
    """What became of every run."""
    return [_outcome(study, run) for run in study.runs]


def _outcome(study: Study, run: StudyRun) -> Outcome:
    folder = study.run_folder(run)
    if result := read_result(folder / RESULT):
        if set(result["per_case"]) != set(study.folds[run.fold]["validation"]):
            raise ValueError(f"{folder / RESULT} is not about the validation cases of fold {run.fold}. {AGAIN}")
        return Outcome(run, "done", result)
    log = folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    if failure := read_result(folder / FAILURE):
        return Outcome(run, "failed", {**failure, "log": str(log), "log_end": text[-LOG_LINES:]})
    return Outcome(run, "begun" if log.is_file() else "waiting", {})


@dataclass(frozen=True)
class Analysis:
    """What a study says so far, as rows of tables.

    Attributes:
        outcomes: of every run.
        collapsed: names of the runs that have collapsed.
        summary: a row for each amount of data and arm.
        differences: a row for each amount of data and pretrained arm.
        labels: the same for each label.
    """

    outcomes: list[Outcome]
    collapsed: set[str]
    summary: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    labels: list[dict[str, Any]]


def analyse(study: Study) -> Analysis:
    """Gather the runs and compare the arms."""
    found = outcomes(study)
    collapsed: set[str] = set()
    summary, differences, labels = [], [], []
    for size in study.sizes:
        here = [o for o in found if o.run.cases == size.counts[o.run.fold]]
        done = [o for o in here if o.status == "done"]
        collapsed |= collapsed_runs(
            {o.run.name: o.dice for o in done},
            {o.run.name: o.content["labels"] for o in done},
            study.settings.collapsed_below,
        )
        for arm in study.arms:
            summary.append(_summary(size, arm, [o for o in here if o.run.arm == arm.name], collapsed))
            if arm.baseline is None:
                continue
            pairs = _pairs(done, arm)
            differences.append(_difference(size, arm, pairs, collapsed))
            labels += [_label_difference(size, arm, pairs, name) for name in study.labels.values()]
    return Analysis(found, collapsed, summary, differences, labels)


Pair = tuple[Outcome, Outcome]


def _pairs(done: Sequence[Outcome], arm: Arm) -> list[Pair]:
    """Runs of an arm with those from scratch of the same fold, seed and cases."""
    scratch = {o.run.subset: o for o in done if o.run.arm == arm.baseline}
    return [(o, scratch[o.run.subset]) for o in done if o.run.arm == arm.name and o.run.subset in scratch]


def _summary(size: Size, arm: Arm, here: Sequence[Outcome], collapsed: set[str]) -> dict[str, Any]:
    values = [o.dice for o in here if o.status == "done"]
    return {
        "size": size.label,
        "cases": _cases(size),
        "arm": arm.name,
        "runs": len(values),
        "failed": sum(o.status == "failed" for o in here),
        "mean": statistics.fmean(values) if values else None,
        "median": statistics.median(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "collapsed": sum(o.run.name in collapsed for o in here),
    }


def _difference(size: Size, arm: Arm, pairs: Sequence[Pair], collapsed: set[str]) -> dict[str, Any]:
    learned = [pair for pair in pairs if not {o.run.name for o in pair} & collapsed]
    return {
        "size": size.label,
        "cases": _cases(size),
        "arm": arm.name,
        "baseline": arm.baseline,
        **compare(pairs),
        "pairs_without_collapsed": len(learned),
        "difference_without_collapsed": statistics.fmean(a.dice - b.dice for a, b in learned) if learned else None,
    }


def _label_difference(size: Size, arm: Arm, pairs: Sequence[Pair], label: str) -> dict[str, Any]:
    means = [[o.content["labels"].get(label) for o in side] for side in zip(*pairs, strict=True)] or [[], []]
    ours, theirs = ([v for v in side if v is not None] for side in means)
    return {
        "size": size.label,
        "label": label,
        "arm": arm.name,
        "mean": statistics.fmean(ours) if ours else None,
        "scratch": statistics.fmean(theirs) if theirs else None,
        **compare(pairs, label),
    }


def compare(pairs: Sequence[Pair], label: str | None = None) -> dict[str, Any]:
    """Mean difference of pairs, first minus second, with both intervals; None where there is none.

    A pair counts where both its runs have a value: in a fold without the label there is nothing to compare.

    Args:
        pairs: runs that are done, of the same fold, seed and cases.
        label: of that label alone.

    Returns:
        ``pairs``, ``difference``, the ends of the bootstrap interval (``low``, ``high``) and of the t interval
        (``t_low``, ``t_high``), and how often the first is ``better``.
    """
    sides = [(a.scores(label), b.scores(label)) for a, b in pairs]
    means = [tuple(float(foreground_mean(scores)) for scores in side) for side in sides]
    known = [i for i, values in enumerate(means) if not any(map(math.isnan, values))]
    found = paired_difference(*({i: means[i][side] for i in known} for side in (0, 1)))
    of_fold: dict[int, list[int]] = {}
    for i in known:
        of_fold.setdefault(pairs[i][0].run.fold, []).append(i)
    stacks = [[np.stack([sides[i][side] for i in here]) for here in of_fold.values()] for side in (0, 1)]
    interval = bootstrap_difference(*stacks)
    row = {
        "pairs": found.pairs,
        "difference": found.mean,
        "low": interval[0],
        "high": interval[1],
        "t_low": found.low,
        "t_high": found.high,
        "better": sum(means[i][0] > means[i][1] for i in known),
    }
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}


def _cases(size: Size) -> float:
    """Mean number of training cases over folds."""
    return statistics.fmean(size.counts.values())
