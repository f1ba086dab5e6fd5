"""Runs and what became of them, and pairs of them compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_pretrain.study.design import Size, StudyRun
from ssl_pretrain.study.statistics import (
    Scores,
    bootstrap_means,
    foreground_mean,
    interval,
    paired_difference,
    two_sided_p,
)
from ssl_pretrain.study.stored import Metrics
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


def dice_of(found: Mapping[str, Mapping[str, Metrics]], labels: Mapping[str, str]) -> dict[str, Any]:
    """Dice of every validation case and label, and their means, as a result of a run holds them.

    A label that no validation case has does not count, whatever a run predicts: nnU-Net gives it Dice 0 if one voxel
    of it was predicted and none if not, so two runs would be means over different labels.

    Args:
        found: case -> label's key in nnU-Net's ``summary.json`` -> what was found there.
        labels: keys -> names.

    Raises:
        ValueError: no case has a label.
    """
    there = {key for key in labels if any(entry[key].n_ref for entry in found.values())}
    per_case: dict[str, dict[str, float | None]] = {}
    for case, entry in found.items():
        dice = {key: entry[key].dice if key in there else math.nan for key in labels}
        # JSON has no NaN.
        per_case[case] = {labels[key]: None if math.isnan(value) else value for key, value in dice.items()}
    mean, per_label = mean_dice(per_case)
    if math.isnan(mean):
        raise ValueError("No validation case has a label: there is nothing to compare. Choose another fold.")
    return {"dice": mean, "labels": per_label, "per_case": per_case}


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

    def at(self, content: Mapping[str, Any]) -> Outcome:
        """The same run with what was found elsewhere in it: at a point of its curve, or by its probe."""
        return Outcome(self.run, self.status, content)


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


Pair = tuple[Outcome, Outcome]


def at_size(found: Sequence[Outcome], size: Size) -> list[Outcome]:
    """The runs with an amount of training data."""
    return [o for o in found if o.run.cases == size.counts[o.run.fold]]


def pairs_of(done: Sequence[Outcome], arms: Collection[str], baseline: str) -> list[Pair]:
    """Runs of arms with those from scratch of the same fold, seed and cases."""
    scratch = {o.run.subset: o for o in done if o.run.arm == baseline}
    return [(o, scratch[o.run.subset]) for o in done if o.run.arm in arms and o.run.subset in scratch]


def compare(pairs: Sequence[Pair], label: str | None = None) -> dict[str, Any]:
    """Mean difference of pairs, first minus second, with both intervals; None where there is none.

    A pair counts where both its runs have a value: in a fold without the label there is nothing to compare.

    Args:
        pairs: runs that are done, of the same fold, seed and cases; several pretrainings share those from scratch.
        label: of that label alone.

    Returns:
        ``pairs``, of how many ``pretrainings``, ``difference``, the ends of the bootstrap interval (``low``, ``high``)
        and of the t interval over fold and seed (``t_low``, ``t_high``), the larger ``p`` of both, and how often the
        first is ``better``.
    """
    sides = [(a.scores(label), b.scores(label)) for a, b in pairs]
    means = [tuple(float(foreground_mean(scores)) for scores in side) for side in sides]
    known = [i for i, values in enumerate(means) if not any(map(math.isnan, values))]
    of_seed: dict[tuple[int, int, int], list[int]] = {}
    for i in known:
        of_seed.setdefault(pairs[i][0].run.subset, []).append(i)
    # What pretrainings have in common with their seed is one observation.
    averaged = [
        {key: statistics.fmean(means[i][side] for i in rows) for key, rows in of_seed.items()} for side in (0, 1)
    ]
    found = paired_difference(*averaged)
    draws = bootstrap_means(stacked([(pairs[i][0].run, sides[i]) for i in known]))
    differences = draws[:, 0] - draws[:, 1] if len(draws) else np.empty(0)
    low, high = interval(differences)
    row = {
        "pairs": len(known),
        "pretrainings": len({pairs[i][0].run.arm for i in known}),
        "difference": found.mean,
        "low": low,
        "high": high,
        "t_low": found.low,
        "t_high": found.high,
        "p": max(two_sided_p(differences), found.p),
        "better": sum(means[i][0] > means[i][1] for i in known),
    }
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}


def stacked(runs: Sequence[tuple[StudyRun, Sequence[Scores]]]) -> list[Scores]:
    """Scores of runs as :func:`~.statistics.bootstrap_means` wants them, NaN where a pretraining lacks a run.

    Args:
        runs: each with as many scores (cases, labels) as the others, those of one fold of the same shape.
    """
    origins = list(dict.fromkeys(run.arm for run, _ in runs))
    found = []
    for fold in dict.fromkeys(run.fold for run, _ in runs):
        here = [(run, np.stack(list(scores))) for run, scores in runs if run.fold == fold]
        subsets = list(dict.fromkeys(run.subset for run, _ in here))
        values, *shape = here[0][1].shape
        stack = np.full((values, len(origins), len(subsets), *shape), math.nan)
        for run, scores in here:
            stack[:, origins.index(run.arm), subsets.index(run.subset)] = scores
        found.append(stack)
    return found


def mean_cases(size: Size) -> float:
    """Mean number of training cases over folds."""
    return statistics.fmean(size.counts.values())
