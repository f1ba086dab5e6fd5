"""What ``benchmarks/matrix.sh`` runs: the cells of the README's table, on plans that differ in size alone."""

from __future__ import annotations

import copy
import importlib
import json

import pytest
from cells import goes_together
from conftest import REPOSITORY

from ssl_pretrain.methods import METHODS

PLANS = {
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "patch_size": [40, 56, 40],
            "batch_size": 9,
            "spacing": [1.0, 1.0, 1.0],
            "architecture": {
                "arch_kwargs": {
                    "features_per_stage": [32, 64, 128],
                    "n_stages": 3,
                    "kernel_sizes": [[3, 3, 3]] * 3,
                    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                    "n_conv_per_stage": [2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2],
                }
            },
        }
    },
}


def module(monkeypatch, name):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module(f"benchmarks.{name}")


def test_its_cells_are_those_of_the_suite(monkeypatch):
    matrix = module(monkeypatch, "matrix")
    pairs = [(method, network) for method in METHODS for network in matrix.KINDS]
    assert [p for p in pairs if matrix.goes_together(*p)] == [p for p in pairs if goes_together(*p)]


def test_small_plans_differ_in_patch_batch_and_width_alone(monkeypatch, tmp_path):
    small = module(monkeypatch, "small_plans")
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    file = small.write_small_plans(tmp_path, tmp_path, (32, 40, 32), batch=2, narrower=2)
    assert file.name == "nnUNetPlans_small.json"
    expected = copy.deepcopy(PLANS)
    expected["plans_name"] = "nnUNetPlans_small"
    entry = expected["configurations"]["3d_fullres"]
    entry.update(patch_size=[32, 40, 32], batch_size=2)
    entry["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 32, 64]
    assert json.loads(file.read_text()) == expected
    small.write_small_plans(tmp_path, tmp_path, (), batch=9)
    assert json.loads(file.read_text()) == {**PLANS, "plans_name": "nnUNetPlans_small"}


def test_small_plans_of_other_plans_have_their_name_and_fewer_convolutions_at_full_resolution(monkeypatch, tmp_path):
    small = module(monkeypatch, "small_plans")
    (tmp_path / "nnUNetPlans_5mm.json").write_text(json.dumps({**PLANS, "plans_name": "nnUNetPlans_5mm"}))
    file = small.write_small_plans(tmp_path, tmp_path, (), batch=9, convs=1, name="nnUNetPlans_5mm")
    assert file.name == "nnUNetPlans_5mm_small.json"
    network = json.loads(file.read_text())["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert network["n_conv_per_stage"] == [1, 2, 2]
    assert network["n_conv_per_stage_decoder"] == [2, 1]


def test_small_plans_of_fewer_stages_keep_the_first(monkeypatch, tmp_path):
    small = module(monkeypatch, "small_plans")
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    file = small.write_small_plans(tmp_path, tmp_path, (), batch=9, stages=2)
    network = json.loads(file.read_text())["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert network == {
        "features_per_stage": [32, 64],
        "n_stages": 2,
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [2, 2],
        "n_conv_per_stage_decoder": [2],
    }
    small.write_small_plans(tmp_path, tmp_path, (), batch=9, stages=7)
    assert json.loads(file.read_text()) == {**PLANS, "plans_name": "nnUNetPlans_small"}


def test_a_dataset_that_is_not_preprocessed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Dataset 4 is not in .* nnUNetv2_plan_and_preprocess -d 4"):
        module(monkeypatch, "small_plans").preprocessed_folder(4)


def test_patches_are_whole_tokens(monkeypatch, tmp_path):
    matrix = module(monkeypatch, "matrix")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset004_Made").mkdir()
    (tmp_path / "Dataset004_Made" / "nnUNetPlans_small.json").write_text(json.dumps(PLANS))
    assert matrix.patch_flags("plans", 4) == matrix.patch_flags("PrimusS", 4) == []
    assert matrix.patch_flags("ViT_B16", 4) == ["-patch_size", "32", "64", "32"]
    assert matrix.patch_flags("plans", 4, square=True) == ["-patch_size", "40", "56", "56"]
    assert matrix.patch_flags("SwinUNETR", 4, square=True) == ["-patch_size", "32", "64", "64"]


def test_a_cell_that_failed_is_shown_as_such(monkeypatch):
    table = module(monkeypatch, "matrix").show([{"dataset": 4, "method": "MAE", "network": "plans", "error": "no"}])
    assert "failed" in table.splitlines()[-1]
