"""Masks that are the other way round are noticed: when they are made, and in folders of before anybody looked."""

import logging

import numpy as np
import pytest
from made_data import write_unlabelled

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.mask_doubts import LOOKED_AT, doubt_about, doubts_in, warn_of_doubts

SHAPE = (20, 22, 24)


def ball(radius=7):
    return sum((np.indices(SHAPE)[axis] - SHAPE[axis] / 2) ** 2 for axis in range(3)) < radius**2


def head(mask):
    """Bright in the mask, dark outside."""
    return (np.where(mask, 500, 10) + np.random.default_rng(0).normal(0, 4, SHAPE)).astype(np.float32)[None]


def test_a_mask_around_a_bright_head_is_not_doubted():
    assert doubt_about("anatomy", ball(), head(ball())) is None


def test_a_mask_that_holds_the_corners_is_doubted_whatever_the_image_is():
    assert doubt_about("anatomy", ~ball(), head(ball())) == "it holds the corners of the volume"
    assert doubt_about("anatomy", ~ball(), head(~ball())) == "it holds the corners of the volume"
    assert doubt_about("anatomy", np.ones(SHAPE, dtype=bool), head(ball())) == "it holds the corners of the volume"


def test_a_mask_whose_image_is_darker_inside_is_doubted_with_both_numbers():
    doubt = doubt_about("anatomy", ball(), -head(ball()))
    assert doubt.startswith("the image is darker inside it (-500")
    assert "on average) than outside (-10" in doubt or "than outside (-9.9" in doubt


def test_one_channel_that_is_brighter_inside_is_enough():
    image = head(ball())
    assert doubt_about("anatomy", ball(), np.concatenate([-image, image])) is None
    assert doubt_about("anatomy", ball(), np.concatenate([-image, -image])) is not None


def test_a_mask_of_nothing_is_no_question_of_sense():
    assert doubt_about("anatomy", np.zeros(SHAPE, dtype=bool), head(ball())) is None


def test_an_anonymisation_mask_of_most_of_the_image_is_doubted():
    assert doubt_about("anonymization", ball(), head(ball())) is None
    assert doubt_about("anonymization", ~ball(), head(ball())) == "it marks 87 % of the image"


@pytest.fixture
def folder(tmp_path):
    """As an earlier version wrote it: nothing is known about the masks."""
    for number in range(LOOKED_AT + 4):
        mask = ~ball() if number else ball()
        write_unlabelled(tmp_path / "cases", f"case_{number:02d}", head(ball()), masks={"anatomy": mask})
    return tmp_path / "cases"


def test_cases_of_an_earlier_version_are_looked_at_but_not_all_of_them(folder):
    cases = Cases(folder, 1, labelled=False)
    doubts = doubts_in(cases, "anatomy", cases.identifiers)
    assert len(doubts) == (LOOKED_AT + 4) / 2
    assert doubts[0] is None
    assert doubts[1] == "cases, case_02: it holds the corners of the volume"


def test_what_preprocessing_noted_is_believed(folder):
    noted = {"anatomy": {"inverted": False, "doubt": "it holds the corners of the volume"}}
    write_unlabelled(folder, "case_00", head(ball()), masks={"anatomy": ball()}, about_masks=noted)
    cases = Cases(folder, 1, labelled=False)
    assert doubts_in(cases, "anatomy", ["case_00"]) == ["cases, case_00: it holds the corners of the volume"]
    noted["anatomy"]["doubt"] = None
    write_unlabelled(folder, "case_01", head(ball()), masks={"anatomy": ~ball()}, about_masks=noted)
    assert doubts_in(Cases(folder, 1, labelled=False), "anatomy", ["case_01"]) == [None]


def test_all_doubts_are_one_warning_with_an_example_and_the_remedy(caplog):
    warn_of_doubts("anatomy", [None, "a: reason", "b: other"])
    assert caplog.messages == [
        "2 of 3 anatomy masks look as if they were the other way round, e.g. a: reason. Look at one. If 0 is the "
        'anatomy, say so in the collection ("inverted_masks": ["anatomy_mask"], see '
        "documentation/how-to/collections.md) and run nnUNetv2_preprocess_unlabeled again: it makes these cases anew"
    ]
    caplog.clear()
    warn_of_doubts("anonymization", ["a: reason"])
    assert "If 0 is what was made unrecognisable" in caplog.messages[0]
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        warn_of_doubts("anatomy", [None])
        warn_of_doubts("anatomy", [])
    assert caplog.messages == []
