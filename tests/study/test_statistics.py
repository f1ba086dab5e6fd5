"""The statistics of a study against direct computation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from ssl_pretrain.study.statistics import (
    area_under,
    bootstrap_means,
    collapsed_runs,
    foreground_mean,
    holm,
    interval,
    mean_and_error,
    paired_difference,
    resample_counts,
    steps_to,
    two_sided_p,
)


def difference_draws(ours, theirs, **options):
    """Draws of the mean difference of one pretraining's runs, each side (runs, cases, labels) in every fold."""
    draws = bootstrap_means([np.stack(sides)[:, None] for sides in zip(ours, theirs, strict=True)], **options)
    return draws[:, 0] - draws[:, 1]


def bootstrap_difference(ours, theirs, **options):
    return interval(difference_draws(ours, theirs, **options))


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


def test_several_pretrainings_are_a_level_of_their_own():
    """Differences that are a pretraining's part and a seed's part: the bootstrap's variance is the sum of both."""
    of_origin, of_seed = np.array([0.0, 0.06, 0.12]), np.array([0.0, 0.02, -0.02, 0.04, -0.04, 0.0])
    scores = np.zeros((2, 3, 6, 5, 1))
    scores[0] = 0.5 + (of_origin[:, None] + of_seed)[..., None, None]
    scores[1] = 0.5
    draws = bootstrap_means([scores], resamples=20_000)
    expected = np.var(of_origin) / 3 + np.var(of_seed) / 6
    assert np.var(draws[:, 0] - draws[:, 1]) == pytest.approx(expected, rel=0.05)
    assert np.mean(draws[:, 0] - draws[:, 1]) == pytest.approx(0.06, abs=0.001)


def test_runs_from_scratch_that_pretrainings_share_do_not_count_several_times():
    """All that varies is scratch, once for each seed: three pretrainings say no more about it than one."""
    scratch = 0.5 + np.array([0.0, 0.05, -0.05, 0.02, -0.02, 0.0])
    scores = np.full((2, 3, 6, 5, 1), 0.6)
    scores[1] = scratch[:, None, None]
    together = bootstrap_means([scores])
    alone = bootstrap_means([scores[:, :1]])
    assert np.std(together[:, 1]) == pytest.approx(np.std(alone[:, 1]), rel=0.05)


def test_a_run_that_a_pretraining_lacks_counts_as_not_drawn():
    scores = np.full((1, 2, 3, 4, 1), 0.5)
    scores[0, 1, 2] = math.nan
    assert bootstrap_means([scores], resamples=100) == pytest.approx(0.5)


def test_holm_is_that_of_a_worked_example():
    """Sorted, the five are multiplied by 5, 4, 3, 2 and 1; none may be below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.55]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.55])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_p_of_draws_is_below_5_percent_where_their_interval_leaves_out_0():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal(9999)
    assert two_sided_p(draws + 2.5) < 0.05 < two_sided_p(draws + 1.5)
    assert interval(draws + 2.5).low > 0 > interval(draws + 1.5).low
    assert two_sided_p(np.ones(99)) == 0.02
    assert two_sided_p(np.zeros(99)) == 1.0
    assert math.isnan(two_sided_p(np.empty(0)))


def test_the_t_test_is_that_of_scipy():
    from scipy.stats import ttest_rel

    ours, theirs = [0.71, 0.74, 0.69, 0.8], [0.7, 0.7, 0.71, 0.72]
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 0.5, 1: 0.5}).p == 0
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).p == 1


def walk_to(target: float, steps: np.ndarray, curve: np.ndarray) -> float:
    """Steps to the target along the lines between points, in strides of a thousandth of a step."""
    if curve[0] >= target:
        return float(steps[0])
    places = np.arange(steps[0], steps[-1] + 0.001, 0.001)
    there = np.flatnonzero(np.interp(places, steps, curve) >= target)
    return float(places[there[0]]) if len(there) else math.inf


def test_steps_to_a_target_are_those_of_walking_along_the_curve():
    rng = np.random.default_rng(0)
    steps = np.array([5.0, 10.0, 20.0, 50.0, 100.0])
    curves, targets = rng.random((50, 5)), rng.random(50)
    expected = [walk_to(target, steps, curve) for target, curve in zip(targets, curves, strict=True)]
    assert math.inf in expected and 5.0 in expected
    assert steps_to(targets, steps, curves) == pytest.approx(expected, abs=0.002)
    assert steps_to(np.array([0.5]), np.array([100.0]), np.array([[0.5]])) == [100.0]
    assert steps_to(np.array([0.6]), np.array([100.0]), np.array([[0.5]])) == [math.inf]


def test_the_area_is_that_of_many_thin_strips():
    rng = np.random.default_rng(0)
    steps, curves = np.array([5.0, 10.0, 20.0, 50.0, 100.0]), rng.random((4, 5))
    places = np.linspace(5, 100, 200_001)
    expected = [np.interp(places, steps, curve).mean() for curve in curves]
    assert area_under(steps, curves) == pytest.approx(expected, abs=1e-4)
    assert area_under(steps[:1], curves[:, :1]) == pytest.approx(curves[:, 0])


def test_an_interval_that_ends_with_never_says_so():
    draws = np.array([10.0] * 90 + [math.inf] * 10)
    assert interval(draws) == (10.0, math.inf)
    assert interval(np.array([10.0] * 99 + [math.inf])) == (10.0, 10.0)
