"""What is said where weights were pretrained on images that are not prepared as those to fine-tune on."""

from __future__ import annotations

import logging

import pytest
import torch
from made_data import plans
from made_target import checkpoint

from ssl_pretrain.transfer.images import Images, differences, images_of_file, images_of_plans
from ssl_pretrain.transfer.load import load_pretrained

MADE = Images((1.0, 1.0, 1.0), ("ZScoreNormalization",), (0, 1, 2))
CT, MR = "CTNormalization", "ZScoreNormalization"


def test_plans_say_it_with_what_a_configuration_inherits():
    made = plans()
    assert images_of_plans(made, "3d_planned_only") == MADE
    assert images_of_plans(made, "3d_cascade_fullres").image_channels == 1


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"configurations": [1]},
        {"configurations": {"3d_fullres": 3}},
        {"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}},
        {"configurations": {"3d_fullres": {"spacing": [None] * 3, "normalization_schemes": [1]}}},
        {"configurations": {"3d_fullres": {"spacing": [1, -1, 1]}}, "transpose_forward": [[0], 1, 2]},
        {"configurations": {"3d_fullres": {"spacing": "abc"}}, "transpose_forward": [0, 0, 1]},
    ],
)
def test_of_what_is_not_as_it_should_be_nothing_is_known(broken):
    assert images_of_plans(broken, "3d_fullres") == Images()
    assert images_of_file({"pretraining": {"plans": broken, "configuration": "3d_fullres"}}) == Images()
    assert differences(Images(), MADE) == differences(MADE, Images()) == ()


def test_a_file_says_what_it_was_pretrained_on_even_after_it_was_adapted():
    content = checkpoint()
    assert images_of_file(content) == MADE
    theirs = {"nnssl_adaptation_plan": content["nnssl_adaptation_plan"]}
    assert images_of_file(theirs) == MADE
    other = plans()
    other["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    now = {"plans": other, "configuration": "3d_cascade_fullres"}
    for source in (content["pretraining"], theirs):
        adapted = {"pretraining": {**now, "adaptation": {"source": source}}}
        found = images_of_file({"pretraining": {**now, "adaptation": {"source": adapted["pretraining"]}}})
        assert (found.spacing, found.image_channels) == ((1.0, 1.0, 1.0), 1)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (MADE, Images((1.5, 1.0, 0.67), (MR,), (0, 1, 2)), []),
        (
            MADE,
            Images((0.5, 0.5, 0.5), (MR,), (0, 1, 2)),
            ["a spacing of 1 x 1 x 1 mm, and this network works at 0.5 x 0.5 x 0.5 mm: up to 2 times"],
        ),
        # The planner takes spacings in the order of the file, and writes them in that of the network.
        (
            Images((3.0, 1.0, 0.5), (MR,), (1, 0, 2)),
            Images((1.0, 1.0, 0.5), (MR,), (1, 0, 2)),
            ["-overwrite_target_spacing 1 3 0.5 -overwrite_plans_name NAME"],
        ),
        (Images(None, (MR,), (0, 1, 2)), Images((9.0, 9.0, 9.0), (MR,), (0, 1, 2)), []),
        (MADE, Images((1.0, 1.0, 1.0), (CT,), (0, 1, 2)), [f"after {MR}, and this network gets them after {CT}: "]),
        (MADE, Images((1.0, 1.0, 1.0), (MR, MR), (0, 1, 2)), []),
        (MADE, Images((1.0, 1.0, 1.0), (MR, CT), (0, 1, 2)), [f"after {MR} {CT}: other numbers for the same tissue"]),
        # The same axes of the image are compared, whatever their order.
        (
            Images((3.0, 1.0, 1.0), (MR,), (0, 1, 2)),
            Images((1.0, 3.0, 1.0), (MR,), (1, 0, 2)),
            ["in the order 0 1 2 (transpose_forward), and this network has them in the order 1 0 2: "],
        ),
        (
            MADE,
            Images((2.0, 1.0, 1.0), (CT,), (2, 0, 1)),
            ["at a spacing of 1 x 1 x 1 mm", f"after {CT}", "the order 2 0 1"],
        ),
    ],
)
def test_each_difference_that_costs_something_is_one_line(theirs, ours, said):
    lines = differences(theirs, ours, "weights.pth")
    assert [part in line for part, line in zip(said, lines, strict=True)] == [True] * len(said)
    assert all(line.startswith("weights.pth was pretrained ") and "\n" not in line for line in lines)


def test_channels_are_compared_with_those_that_they_take():
    theirs, ours = Images(None, (CT, MR)), Images(None, (MR, CT))
    assert len(differences(theirs, ours)) == 1
    assert differences(theirs, ours, channels=(1, 0)) == ()
    assert len(differences(theirs, ours, channels=(0, 1))) == 1


def test_loading_says_it_in_report_and_log(tmp_path, caplog):
    from architectures import backbone

    torch.save(checkpoint(), tmp_path / "weights.pth")
    fine = Images((0.25, 1.0, 1.0), (MR,), (0, 1, 2))
    with caplog.at_level(logging.WARNING, logger="ssl_pretrain"):
        report = load_pretrained(backbone().network, tmp_path / "weights.pth", images=fine)
    assert (report.images, len(report.warnings)) == (MADE, 1)
    assert report.to_json()["warnings"] == list(report.warnings) == caplog.messages
    assert "up to 4 times another size of voxel" in report.warnings[0]
    assert load_pretrained(backbone().network, tmp_path / "weights.pth").warnings == ()
