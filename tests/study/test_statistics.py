"""The statistics of a study against direct computation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from ssl_pretrain.study.statistics import (
    bootstrap_difference,
    collapsed_runs,
    foreground_mean,
    mean_and_error,
    paired_difference,
    resample_counts,
)


def directly(scores: np.ndarray) -> float:
    """nnU-Net's foreground mean of one run, label by label."""
    means = []
    for label in range(scores.shape[1]):
        values = [v for v in scores[:, label] if not math.isnan(v)]
        if values:
            means.append(sum(values) / len(values))
    return sum(means) / len(means)


def made_scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    scores = rng.random(shape)
    scores[rng.random(shape) < 0.2] = np.nan
    return scores


def test_foreground_mean_is_label_by_label_and_leaves_out_what_is_not_there():
    scores = np.array([[0.5, np.nan, 0.2], [1.0, np.nan, np.nan]])
    assert foreground_mean(scores) == pytest.approx((0.75 + 0.2) / 2)
    many = made_scores(np.random.default_rng(0), 5, 7, 3)
    assert foreground_mean(many) == pytest.approx([directly(run) for run in many])


def test_the_mean_over_nothing_is_nan_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(foreground_mean(np.full((2, 3), np.nan)))


def test_resampling_draws_as_many_as_there_are():
    counts = resample_counts(np.random.default_rng(0), 5, 400)
    assert counts.shape == (400, 5)
    assert (counts.sum(axis=1) == 5).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("folds", [1, 2])
def test_the_bootstrap_interval_is_that_of_a_loop_over_the_same_draws(folds):
    rng = np.random.default_rng(1)
    ours = [made_scores(rng, 4, 6, 3) for _ in range(folds)]
    theirs = [made_scores(rng, 4, 6, 3) for _ in range(folds)]
    draws, resamples = np.random.default_rng(3), 500
    of_runs = resample_counts(draws, 4 * folds, resamples).reshape(resamples, folds, 4)
    counts = [(of_runs[:, fold], resample_counts(draws, 6, resamples)) for fold in range(folds)]
    means = []
    for i in range(resamples):
        differences = []
        for a, b, (runs, cases) in zip(ours, theirs, counts, strict=True):
            drawn = np.repeat(np.arange(6), cases[i])
            for run in np.repeat(np.arange(4), runs[i]):
                differences.append(directly(a[run][drawn]) - directly(b[run][drawn]))
        means.append(sum(differences) / len(differences))
    found = bootstrap_difference(ours, theirs, resamples=resamples, seed=3)
    assert found == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_interval_of_equal_sides_is_zero_and_that_of_one_pair_is_none():
    scores = np.random.default_rng(0).random((5, 4, 2))
    assert bootstrap_difference([scores], [scores], resamples=50) == (0, 0)
    assert bootstrap_difference([scores + 0.25], [scores], resamples=50) == pytest.approx((0.25, 0.25))
    assert all(math.isnan(end) for end in bootstrap_difference([scores[:1]], [scores[:1]], resamples=50))


def test_one_run_in_each_of_several_folds_has_an_interval_of_runs():
    differences = np.array([0.01, 0.05, -0.02, 0.03, 0.0])
    ours = [np.full((1, 4, 1), 0.5 + difference) for difference in differences]
    found = bootstrap_difference(ours, [np.full((1, 4, 1), 0.5)] * 5, resamples=1000, seed=3)
    means = resample_counts(np.random.default_rng(3), 5, 1000) @ differences / 5
    assert found == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_a_draw_of_cases_without_the_label_leaves_that_run_out(recwarn):
    """Two runs, one of which has the label in one of its two cases: the other run's difference is left."""
    ours, theirs = np.full((2, 2, 1), 0.75), np.full((2, 2, 1), 0.5)
    ours[1, 0] = math.nan
    assert bootstrap_difference([ours], [theirs], resamples=200) == pytest.approx((0.25, 0.25))
    assert all(math.isnan(end) for end in bootstrap_difference([ours * math.nan], [theirs], resamples=200))
    assert not recwarn.list


def test_pairs_stay_together():
    """What all runs of a seed share must not widen the interval."""
    rng = np.random.default_rng(0)
    of_the_seed = rng.random((6, 1, 1))
    theirs = np.broadcast_to(of_the_seed, (6, 9, 1))
    low, high = bootstrap_difference([theirs + 0.1], [theirs], resamples=200)
    assert (low, high) == pytest.approx((0.1, 0.1))


def test_cases_are_resampled_too():
    """With equal runs, all that is left is that the next dataset has other validation cases."""
    ours = np.broadcast_to(np.linspace(0, 1, 8)[None, :, None], (5, 8, 1))
    low, high = bootstrap_difference([ours], [np.zeros((5, 8, 1))], resamples=2000)
    se = np.std(np.linspace(0, 1, 8)) / np.sqrt(8)
    assert (low, high) == pytest.approx((0.5 - 1.96 * se, 0.5 + 1.96 * se), abs=0.03)


def test_paired_runs_need_the_same_shapes():
    with pytest.raises(ValueError, match=r"same folds, cases and labels on both sides, got .*\(2, 3, 1\)"):
        bootstrap_difference([np.zeros((2, 3, 1))], [np.zeros((2, 4, 1))])


def test_mean_error_and_t_interval_by_hand():
    assert mean_and_error([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, math.sqrt(0.5)))
    ours = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 9.0}
    found = paired_difference(ours, {(0, 1): 1.0, (0, 0): 0.0, (1, 1): 5.0})
    # Differences 1 and 2; t(0.975, 1 degree of freedom) is 12.7062.
    assert (found.mean, found.pairs) == (1.5, 2)
    assert found.high - found.mean == pytest.approx(12.7062 * 0.5, abs=1e-3)


PUBLISHED = {"a": 0.7281, "b": 0.2507, "c": 0.7352, "d": 0.0248, "e": 0.2634}
"""Five runs of one setting as the SimMIM3D thesis lists them: two that learned, three that did not."""


def test_collapsed_runs_are_found_where_most_have_collapsed():
    assert collapsed_runs(PUBLISHED, {}, 0.5) == {"b", "d", "e"}
    assert collapsed_runs(PUBLISHED, {}, 0.1) == {"d"}
    assert collapsed_runs({}, {}, 0.5) == set()


def test_runs_that_found_nothing_have_collapsed_together():
    assert collapsed_runs({"a": 0.0, "b": 0.004}, {}, 0.5) == {"a", "b"}


def test_a_lost_label_is_a_collapse_unless_the_label_is_hard_for_all():
    means = {"a": 0.6, "b": 0.62, "c": 0.58}
    lost = {
        "a": {"parotid": 0.4, "lens": 0.0},
        "b": {"parotid": 0.0, "lens": 0.02},
        "c": {"parotid": 0.3, "lens": None},
    }
    assert collapsed_runs(means, lost, 0.5) == {"b"}
