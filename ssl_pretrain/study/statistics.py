"""What numbers of repeated runs say: means with errors, paired differences, bootstrap intervals, collapsed runs."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

Scores = Array
"""Dice of runs on the validation cases of a fold, (runs, cases, labels); NaN where a case has no such label."""

RESAMPLES = 10_000
FOUND_NOTHING = 0.01
"""Mean Dice below which a run, or a label of it, counts as not learned at all."""
USUALLY_FOUND = 0.1
"""Median Dice of a label over all runs from which on losing it is a collapse, not a label that is hard."""

Key = TypeVar("Key", bound=Hashable)

_CHUNK = 200  # resamples at once: what fits into the cache, and never more than some hundred MB


class Interval(NamedTuple):
    """Ends of an interval; NaN where there is none.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: float
    high: float


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval (t distribution).

    Attributes:
        mean: of ``ours - theirs``.
        low: lower end; NaN for fewer than two pairs.
        high: upper end.
        pairs: how many.
        p: of the two-sided t test of mean 0; NaN for fewer than two pairs.
    """

    mean: float
    low: float
    high: float
    pairs: int
    p: float


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; NaN for the error of fewer than two values."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> Difference:
    """Difference over what both sides have: key (a seed, say) -> value on either side."""
    from scipy.stats import t  # type: ignore[import-untyped]

    keys = [key for key in ours if key in theirs]
    mean, error = mean_and_error([ours[key] - theirs[key] for key in keys])
    if len(keys) < 2:
        return Difference(mean, math.nan, math.nan, len(keys), math.nan)
    half = error * float(t.ppf(0.975, len(keys) - 1))
    p = 2 * float(t.sf(abs(mean) / error, len(keys) - 1)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, len(keys), p)


def holm(p: Sequence[float]) -> list[float]:
    """p values that hold for all of several comparisons together (Holm 1979, Scandinavian Journal of Statistics 6)."""
    order = np.argsort(p)
    steps = np.array(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in found]


def foreground_mean(scores: Scores) -> Scores:
    """Mean over labels of the mean over cases, as nnU-Net averages: (…, cases, labels) -> (…).

    Cases without a label do not count for it, labels that no case has do not count at all; NaN where nothing is left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing, which are NaN as they should be
        mean: Scores = np.nanmean(np.nanmean(scores, axis=-2), axis=-1)
    return mean


def resample_counts(rng: np.random.Generator, size: int, resamples: int) -> npt.NDArray[np.int64]:
    """How often each of ``size`` things is drawn when ``size`` are drawn with replacement: (resamples, size)."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples)


def bootstrap_means(scores: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means over runs for other pretrainings, other seeds of fine-tuning and other patients than there were.

    Three things are resampled with replacement, all at once: pretrainings, runs of all folds, and the validation cases
    of each fold. A run stands for all that its seed and fold decide: training cases, order of the crops, and the run
    from scratch that pretrained ones are compared with. All pretrainings share these, so runs are drawn once for all of
    them: were they drawn anew within each pretraining, one run from scratch would count as many. See Owen & Eckles
    (2012), Bootstrapping data arrays of arbitrary order, Annals of Applied Statistics 6(3). One pretraining cannot be
    resampled: what another would give is then not in the draws.

    Args:
        scores: of each fold (values, pretrainings, runs, cases, labels). Values are what is averaged side by side: the
            two sides of a comparison, or the points of a curve. A run that has NaN as the mean of one of its values
            for a draw of cases, or was never run, counts as not drawn.
        resamples: draws.
        seed: of the draws.

    Returns:
        (draws, values); draws in which no run is left are left out, and there are none for fewer than two runs: one run
        says nothing about the next one.
    """
    values, origins = scores[0].shape[:2] if scores else (0, 0)
    runs = sum(fold.shape[2] for fold in scores)
    if runs < 2:
        return np.empty((0, values))
    rng = np.random.default_rng(seed)
    drawn_runs = resample_counts(rng, runs, resamples)
    drawn_cases = [resample_counts(rng, fold.shape[3], resamples) for fold in scores]
    drawn_origins = resample_counts(rng, origins, resamples)
    total, known, first = np.zeros((resamples, values)), np.zeros(resamples), 0
    for fold, cases in zip(scores, drawn_cases, strict=True):
        here = drawn_runs[:, first : first + fold.shape[2]]
        first += fold.shape[2]
        for start in range(0, resamples, _CHUNK):
            part = slice(start, start + _CHUNK)
            means = _weighted_means(fold.reshape(-1, *fold.shape[3:]), cases[part]).reshape(-1, *fold.shape[:3])
            there = np.isfinite(means.sum(axis=1))
            weights = drawn_origins[part, :, None] * here[part, None] * there
            total[part] += (weights[:, None] * np.where(there[:, None], means, 0.0)).sum(axis=(2, 3))
            known[part] += weights.sum(axis=(1, 2))
    return total[known > 0] / known[known > 0, None]


def interval(draws: Array, level: float = 0.95) -> Interval:
    """Percentile interval of draws; its ends are draws themselves where some are infinite, NaN where there is none."""
    if not len(draws):
        return Interval(math.nan, math.nan)
    edge = 50 * (1 - level)
    method = "linear" if np.isfinite(draws).all() else "inverted_cdf"
    low, high = np.percentile(draws, [edge, 100 - edge], method=method)  # type: ignore[call-overload]
    return Interval(float(low), float(high))


def two_sided_p(draws: Array) -> float:
    """The p that belongs to the percentile interval: twice the share of the draws beyond 0; NaN where there is none.

    With one draw more on either side, because as many draws as there are never show a p of 0.
    """
    if not len(draws):
        return math.nan
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(draws) + 1))


def steps_to(target: Array, steps: Array, curves: Array) -> Array:
    """Steps after which curves first reach a target, on straight lines between their points.

    Args:
        target: (curves,).
        steps: (points,), ascending.
        curves: (curves, points).

    Returns:
        (curves,): the first point's steps for a curve that begins at the target or above it, where the true number is
        lower; infinity for one that never reaches it.
    """
    reached = curves >= target[:, None]
    at = np.maximum(reached.argmax(axis=1), 1 if len(steps) > 1 else 0)
    rows = np.arange(len(curves))
    before, after = curves[rows, at - 1], curves[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = steps[at - 1] + (target - before) / (after - before) * (steps[at] - steps[at - 1])
    found = np.where(reached[:, 0], steps[0], found)
    return np.where(reached.any(axis=1), found, math.inf)


def area_under(steps: Array, curves: Array) -> Array:
    """Mean height of curves between their first and last point, on straight lines between them: (..., points) -> (...).

    That is the area under a curve, divided by its width; of a single point its height.
    """
    if len(steps) == 1:
        return curves[..., 0]
    heights = (curves[..., 1:] + curves[..., :-1]) / 2
    area: Array = (heights * np.diff(steps)).sum(axis=-1) / (steps[-1] - steps[0])
    return area


def _weighted_means(scores: Scores, counts: npt.NDArray[np.int64]) -> Scores:
    """:func:`foreground_mean` of each run for each draw of cases: (draws, runs)."""
    weights = counts.astype(float)
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sums = np.tensordot(weights, np.where(known, scores, 0.0), axes=(1, 1))
        means: Scores = np.nanmean(sums / np.tensordot(weights, known.astype(float), axes=(1, 1)), axis=-1)
    return means


def collapsed_runs(
    means: Mapping[Key, float], labels: Mapping[Key, Mapping[str, float | None]], share: float
) -> set[Key]:
    """Runs that did not learn the task, among runs of one amount of training data, whatever their start.

    A run has collapsed if its mean Dice is below ``share`` of the best run's or below :data:`FOUND_NOTHING`, or if
    the Dice of a label is below :data:`FOUND_NOTHING` whose median over all runs is above :data:`USUALLY_FOUND`. The
    best run is the measure, not the median, because most of the runs may have collapsed.

    Args:
        means: run -> mean Dice.
        labels: run -> label -> mean Dice over cases; None where no case has it.
        share: between 0 and 1.
    """
    if not means:
        return set()
    threshold = max(share * max(means.values()), FOUND_NOTHING)
    found = {run for run, mean in means.items() if mean < threshold}
    for name in {name for values in labels.values() for name in values}:
        values = {run: value for run, entry in labels.items() if (value := entry.get(name)) is not None}
        if values and statistics.median(values.values()) > USUALLY_FOUND:
            found |= {run for run, value in values.items() if value < FOUND_NOTHING}
    return found
