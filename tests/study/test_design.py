"""Settings, subsets and runs of a study."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_pretrain.study.design import Size, StudyRun, StudySettings, disagreements, runs_of, sizes_of, slug, subset

TRAIN = [f"case_{i:03d}" for i in range(20)]


def made(**changes):
    return StudySettings(**{"dataset": "4", "configuration": "3d_fullres", "weights": ("a.pth",), **changes})


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_subsets_are_nested_and_do_not_depend_on_the_order_of_the_cases(cases, seed, fold):
    train = [f"case_{i:03d}" for i in range(cases)]
    found = [set(subset(train, n, seed, fold)) for n in range(1, cases + 1)]
    assert [len(s) for s in found] == list(range(1, cases + 1))
    assert all(small < large for small, large in pairwise(found))
    assert found[-1] == set(train)
    assert subset(train[::-1], cases // 2, seed, fold) == subset(train, cases // 2, seed, fold)


def test_seeds_and_folds_draw_other_subsets():
    drawn = {tuple(subset(TRAIN, 5, seed, fold)) for seed in range(4) for fold in range(3)}
    assert len(drawn) == 12


def test_sizes_are_rounded_and_sorted_and_named_once():
    found = sizes_of(made(fractions=(1.0, 0.1, 0.26), cases=(5, 8)), {0: 20, 3: 21})
    assert [(s.label, dict(s.counts)) for s in found] == [
        ("10 %", {0: 2, 3: 2}),
        ("26 %", {0: 5, 3: 5}),
        ("8 cases", {0: 8, 3: 8}),
        ("100 %", {0: 20, 3: 21}),
    ]


def test_a_fraction_without_a_case_is_refused():
    with pytest.raises(ValueError, match=r"-fractions 0.02 of the 20 training cases of fold 1 is less than one case"):
        sizes_of(made(fractions=(0.02,)), {1: 20})
    with pytest.raises(ValueError, match=r"-cases 21: fold 1 has 20 training cases only. Give fewer"):
        sizes_of(made(cases=(21,)), {1: 20})


def test_runs_are_ordered_so_that_a_stopped_study_has_whole_comparisons():
    study = made(fractions=(), cases=(2, 4), seeds=2, folds=(0, 1))
    runs = runs_of({"scratch": (0, 1), "MAE": (0, 1)}, study, sizes_of(study, {0: 8, 1: 8}))
    assert len(runs) == 16 == len({run.name for run in runs})
    assert runs[:3] == [StudyRun("scratch", 0, 0, 2), StudyRun("MAE", 0, 0, 2), StudyRun("scratch", 0, 0, 4)]
    assert runs[1].name == "MAE/2cases_fold0_seed0"
    assert {run.seed for run in runs[:8]} == {0}
    assert slug("scratch nnUNetPlans/x: y") == "scratch_nnUNetPlans_x_y"


def test_pretrainings_that_take_turns_share_the_seeds_between_them():
    study = made(fractions=(), cases=(2,), seeds=5, spread=True)
    turns = {"scratch": (0, 1), "MAE seed0": (0, 2), "MAE seed1": (1, 2)}
    runs = [(run.arm, run.seed) for run in runs_of(turns, study, sizes_of(study, {0: 8}))]
    assert [seed for arm, seed in runs if arm == "scratch"] == [0, 1, 2, 3, 4]
    assert [seed for arm, seed in runs if arm == "MAE seed0"] == [0, 2, 4]
    assert [seed for arm, seed in runs if arm == "MAE seed1"] == [1, 3]


def test_amounts_that_agree_in_one_of_two_folds_share_its_runs():
    study = made(fractions=(1.0,), cases=(8,), seeds=2, folds=(0, 1))
    sizes = sizes_of(study, {0: 8, 1: 9})
    runs = runs_of({"scratch": (0, 1), "MAE": (0, 1)}, study, sizes)
    assert [dict(size.counts) for size in sizes] == [{0: 8, 1: 8}, {0: 8, 1: 9}]
    assert len(runs) == len({run.name for run in runs}) == 12


def test_a_dataset_may_be_called_by_its_number_with_zeros():
    assert made(dataset="007").dataset == "7"
    assert made(dataset="Dataset007_Made").dataset == "Dataset007_Made"


def test_settings_survive_json():
    study = made(cases=(4,), fractions=(0.5,), epochs=3)
    assert StudySettings.from_dict(json.loads(json.dumps(study.to_dict()))) == study
    assert made(cases=(4, 4, 2)).cases == (4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ()}, r"at least one file of pretrained weights \(-w FILE\)"),
        ({"fractions": (), "cases": ()}, "needs amounts of training data: -fractions 0.1 1.0, or -cases 4 8 20"),
        ({"seeds": 0}, "-seeds must be at least 1, got 0"),
        ({"epochs": 0}, "-epochs must be at least 1, got 0"),
        ({"iters": -1}, "-iters must be at least 1, got -1"),
        ({"fractions": (0.5, 1.5)}, r"-fractions are shares of the training cases in \(0, 1\], got 1.5"),
        ({"cases": (0,)}, "-cases must be at least 1, got 0"),
        ({"folds": ()}, "-folds are numbers of splits_final.json from 0 on, got none"),
        ({"folds": (-2,)}, "-folds are numbers of splits_final.json from 0 on, got -2"),
        ({"device": "tpu"}, "-device must be one of cuda, cpu, mps, got 'tpu'"),
        ({"curve": (0.0, 0.5)}, r"-curve are shares of the optimiser steps in \(0, 1\], got 0"),
        ({"probe": -1}, "-probe is a number of optimiser steps, got -1"),
        ({"primary": ("MAE",)}, "-primary is ARM@CASES, an arm and its training cases, got 'MAE'"),
        ({"collapsed_below": 1.0}, r"-collapsed_below is a share in \[0, 1\), got 1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_a_curve_is_in_order_and_has_the_end():
    assert made(curve=(0.5, 0.1, 0.5)).curve == (0.1, 0.5, 1.0)
    assert made().curve == ()


def test_what_is_looked_at_is_part_of_the_design():
    stored = made(curve=(0.1,), primary=("MAE@4",))
    assert disagreements(stored, made(curve=(0.1, 1.0), primary=("MAE@4",))) == []
    assert disagreements(stored, made(curve=(0.1, 0.2), primary=("MAE@4", "S3D@4"), probe=50)) == [
        "-curve was 0.1 1.0 and is 0.1 0.2 1.0",
        "-probe was 0 and is 50",
        "-primary was MAE@4 and is MAE@4 S3D@4",
    ]


def test_an_amount_is_called_by_its_cases_or_its_share():
    four, tenth = Size("4 cases", {0: 4, 1: 4}), Size("10 %", {0: 4, 1: 5})
    assert four.is_called("4") and not four.is_called("5")
    assert tenth.is_called("10%") and tenth.is_called("10 %") and not tenth.is_called("4")
    assert Size("10 %", {0: 4}).is_called("4")


def test_a_study_may_grow_but_not_change():
    stored = made(cases=(4, 8), seeds=3, weights=("a", "b"), epochs=5)
    more = made(cases=(4, 8, 20), seeds=5, weights=("a", "b", "c"), epochs=5, folds=(0, 1), collapsed_below=0.3)
    assert disagreements(stored, more) == []
    other = made(cases=(8,), seeds=2, weights=("a", "b"), mirroring=False, plans="nnUNetPlans")
    assert disagreements(stored, other) == [
        "-p was not given and is nnUNetPlans",
        "-cases was 4 8 and is 8",
        "-seeds was 3 and is 2",
        "-epochs was 5 and is not given",
        "mirroring (--no_mirroring) was on and is off",
    ]
