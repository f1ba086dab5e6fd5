"""Statistics of benchmarks/decoder_study.py."""

from __future__ import annotations

import importlib
import math

import pytest
from conftest import REPOSITORY


@pytest.fixture
def study_statistics(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module("benchmarks.study_statistics")


def test_mean_and_standard_error(study_statistics):
    # Deviations -2, -1, 0, 1, 2: variance 10 / 4, standard error sqrt(2.5 / 5).
    mean, error = study_statistics.mean_and_error([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(math.sqrt(0.5))


def test_one_value_has_no_error(study_statistics):
    mean, error = study_statistics.mean_and_error([0.5])
    assert mean == 0.5
    assert math.isnan(error)


def test_paired_difference_by_hand(study_statistics):
    # Differences 1, 2, 3, 4, 5 of the five common seeds; t(0.975, 4 degrees of freedom) is 2.776445.
    ours = {0: 11.0, 1: 22.0, 2: 33.0, 3: 44.0, 4: 55.0, 7: 1000.0}
    theirs = {4: 50.0, 3: 40.0, 2: 30.0, 1: 20.0, 0: 10.0, 9: -1000.0}
    found = study_statistics.paired_difference(ours, theirs)
    half = 2.776445 * math.sqrt(0.5)
    assert found.pairs == 5
    assert found.mean == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx((3.0 - half, 3.0 + half), abs=1e-5)


def test_one_pair_has_no_interval_and_none_no_difference(study_statistics):
    one = study_statistics.paired_difference({0: 2.0}, {0: 1.5, 1: 0.0})
    assert (one.mean, one.pairs) == (0.5, 1)
    assert math.isnan(one.low) and math.isnan(one.high)
    none = study_statistics.paired_difference({0: 2.0}, {1: 1.0})
    assert none.pairs == 0 and math.isnan(none.mean)


def row(arm, seed, step, dice, organ):
    return {"dataset": "D", "arm": arm, "seed": seed, "step": step, "dice": dice, "organs": {"larynx": organ}}


def test_tables_of_a_study(study_statistics):
    rows = [
        row(arm, seed, step, seed + step + shift, shift if seed else None)
        for arm, shift in (("scratch", 0.0), ("spark", 0.25), ("slim", 0.5))
        for seed in (0, 1)
        for step in (2, 4)
    ]
    run = {"steps": 4, "step_seconds": 0.5, "seconds": 3.0, "train_loss": [1.0, 0.9], "val_loss": [1.0, 0.8]}
    tables = study_statistics.summarise({"finetuning": rows, "pretraining": {"D": {"spark": run}}})
    assert [(r["step"], r["arm"]) for r in tables["curves"]] == [
        (step, arm) for step in (2, 4) for arm in ("scratch", "spark", "slim")
    ]
    assert tables["curves"][2]["dice"] == pytest.approx(3.0)
    first = tables["differences"][0]
    assert (first["pair"], first["difference"], first["low_95"]) == ("slim - spark", 0.25, 0.25)
    # The organ is in the cases of one seed only: a mean without an interval.
    assert tables["organs"][0]["difference"] == 0.25 and tables["organs"][0]["seeds"] == 1
    assert tables["pretraining"][0]["train_loss"] == 0.9
    text = study_statistics.show(tables)
    assert "slim - spark" in text and "nan" not in text
