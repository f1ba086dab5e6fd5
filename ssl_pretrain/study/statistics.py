"""What numbers of repeated runs say: means with errors, paired differences, bootstrap intervals, collapsed runs."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
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
    """

    mean: float
    low: float
    high: float
    pairs: int


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
    half = error * float(t.ppf(0.975, len(keys) - 1)) if len(keys) > 1 else math.nan
    return Difference(mean, mean - half, mean + half, len(keys))


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


def bootstrap_difference(
    ours: Sequence[Scores],
    theirs: Sequence[Scores],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean difference of paired runs, ``ours - theirs``.

    Two things are resampled with replacement, both at once: the pairs of runs of all folds (a pair shares seed, fold
    and training cases and is never torn apart), and the validation cases of each fold (the same draw for all its runs).
    See Owen (2007), The pigeonhole bootstrap, Annals of Applied Statistics 1(2), for two factors that are crossed as
    runs and cases are. A run whose mean is NaN for a draw of cases counts as not drawn.

    Args:
        ours: of each fold; run *i* is paired with run *i* of ``theirs``.
        theirs: of each fold, the same shapes.
        resamples: draws.
        level: share of the draws within the interval.
        seed: of the draws.

    Returns:
        NaN for both ends where there are fewer than two pairs: one run says nothing about the next one.

    Raises:
        ValueError: shapes differ.
    """
    shapes = [scores.shape for scores in ours], [scores.shape for scores in theirs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Paired runs need the same folds, cases and labels on both sides, got {shapes}.")
    pairs = sum(len(scores) for scores in ours)
    if pairs < 2:
        return Interval(math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = resample_counts(rng, pairs, resamples)
    total, known, first = np.zeros(resamples), np.zeros(resamples), 0
    for a, b in zip(ours, theirs, strict=True):
        runs = drawn[:, first : first + len(a)]
        first += len(a)
        cases = resample_counts(rng, a.shape[1], resamples)
        for start in range(0, resamples, _CHUNK):
            part = slice(start, start + _CHUNK)
            difference = _weighted_means(a, cases[part]) - _weighted_means(b, cases[part])
            there = ~np.isnan(difference)
            total[part] += (runs[part] * np.where(there, difference, 0.0)).sum(axis=1)
            known[part] += (runs[part] * there).sum(axis=1)
    if not known.any():
        return Interval(math.nan, math.nan)
    edge = 50 * (1 - level)
    low, high = np.percentile(total[known > 0] / known[known > 0], [edge, 100 - edge])
    return Interval(float(low), float(high))


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
