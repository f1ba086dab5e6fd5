"""Plans and ``dataset.json`` that others write: what nnU-Net would raise is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command
from made_data import plans

from ssl_pretrain.data.plans_file import check_plans, resolve

ORGANS = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def checked(folder: Path, content: Any, dataset: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return check_plans(folder / "plans.json", folder / "dataset.json", "3d_fullres")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"0": "background", "1": "a"}}, "labels.0: must be a whole number from 0 on"),
        ({"labels": {"a": 1}}, "labels: must be NAME: NUMBER, and 'background' must be there and be 0"),
        ({"labels": {"background": 1, "a": 0}}, "'background' must be there and be 0"),
        ({"labels": {"background": 0, "a": 2}}, "labels: must be 0, 1, 2, … without a gap, and are 0, 2"),
        (
            {"labels": {"background": 0, "ignore": 1, "a": 2}},
            "'ignore' must be one more than the highest label, 3, and is 1",
        ),
        (
            {"labels": {"background": 0, "whole": [1, 2], "b": 2}},
            "regions_class_order: must have a number for each of the 2 regions (whole, b)",
        ),
        ({"channel_names": {}}, "channel_names: Dictionary should have at least 1 item"),
        ({"channel_names": ["MRI"]}, "channel_names: Input should be a valid dictionary"),
    ],
)
def test_labels_and_channels_that_nnunet_would_raise_about_are_one_line(tmp_path, changes, words):
    with pytest.raises(ValueError, match=r"dataset\.json: ") as caught:
        checked(tmp_path, plans(), {**ORGANS, **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": "0", "organ": "1"}},
        {"labels": {"background": 0, "a": 1, "ignore": 2}},
        {"labels": {"background": 0, "whole": [1, 2, 5], "b": 2}, "regions_class_order": [1, 2]},
        {"modality": {"0": "MRI"}, "channel_names": None},
    ],
)
def test_what_nnunet_takes_is_taken_as_it_is(tmp_path, changes):
    dataset = {**ORGANS, **changes}
    assert checked(tmp_path, plans(), dataset) == (plans(), dataset)


def test_transpositions_must_undo_each_other(tmp_path):
    turned = {**plans(), "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    assert checked(tmp_path, turned, ORGANS)[0] == turned
    with pytest.raises(ValueError, match=r"transpose_backward: does not undo transpose_forward \[2, 0, 1\]"):
        checked(tmp_path, {**turned, "transpose_backward": [2, 0, 1]}, ORGANS)


def test_parents_that_lead_nowhere_are_named(tmp_path):
    circle = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}, "c": {"inherits_from": "gone"}}
    with pytest.raises(ValueError, match=r"p\.json: configuration 'b' inherits from 'a', which leads nowhere"):
        resolve(circle, "a", Path("p.json"))
    with pytest.raises(ValueError, match=r"configuration 'c' inherits from 'gone', which leads nowhere"):
        resolve(circle, "c", Path("p.json"))


def test_checking_needs_neither_torch_nor_nnunet():
    heavy = "[name for name in ('torch', 'nnunetv2', 'lightning') if name in sys.modules]"
    code = f"import sys, ssl_pretrain.data.plans_file; print({heavy})"
    assert run_command(["python", "-c", code]).stdout.strip() == "[]"
