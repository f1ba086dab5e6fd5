import json
import types

import numpy as np
import pytest
from made_data import NAME, write_dataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ssl_pretrain.data.splits import load_fold

CASES = [f"case_{i:02d}" for i in range(11)]


def nnunets_split(root, fold: int, monkeypatch):
    """What nnU-Net's own trainer makes of the same folder."""
    folder = write_dataset(root, cases=11)
    trainer = types.SimpleNamespace(
        dataset_class=None,
        preprocessed_dataset_folder=str(folder / "nnUNetPlans_3d_fullres"),
        preprocessed_dataset_folder_base=str(folder),
        folder_with_segs_from_previous_stage=None,
        fold=fold,
        print_to_log_file=lambda *_, **__: None,
    )
    return nnUNetTrainer.do_split(trainer), folder / "splits_final.json"


@pytest.mark.parametrize("fold", [0, 4, 7])
def test_a_fold_is_the_one_nnunet_would_train_on(tmp_path, fold, monkeypatch):
    (train, validation), theirs = nnunets_split(tmp_path / "nnunet", fold, monkeypatch)
    ours = tmp_path / "splits_final.json"
    made = load_fold(str(fold), CASES, ours)
    assert list(made.train) == [str(c) for c in train]
    assert list(made.validation) == [str(c) for c in validation]
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
    assert NAME in str(theirs)


def test_all_holds_out_five_percent_and_at_least_one_case():
    few = load_fold("all", CASES, None)
    assert len(few.validation) == 1
    assert set(few.train) | set(few.validation) == set(CASES)
    assert not set(few.train) & set(few.validation)
    many = load_fold("all", [str(i) for i in range(200)], None)
    assert len(many.validation) == 10
    assert "10 of 200 cases held out" in many.note
    assert load_fold("all", CASES, None) == few


def test_a_single_case_serves_both_and_says_so():
    only = load_fold("all", ["a"], None)
    assert only.train == only.validation == ("a",)
    assert "validated on itself" in only.note


def test_an_existing_split_is_used_as_it_is(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["case_00", "case_02"], "val": ["case_01"]}]))
    fold = load_fold("0", CASES, file)
    assert (fold.train, fold.validation) == (("case_00", "case_02"), ("case_01",))


def test_a_fold_without_validation_cases_holds_some_out(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": CASES, "val": []}]))
    assert len(load_fold("0", CASES, file).validation) == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([{"train": [], "val": ["case_00"]}], ValueError, "Fold 0 of .* has no training case"),
        ([{"train": ["case_00"], "val": ["../x"]}], ValueError, r"s.*json: case '\.\./x' leads to another folder"),
        (
            [{"train": ["gone"], "val": []}],
            FileNotFoundError,
            "lists 1 cases in fold 0 that are not preprocessed, e.g. gone",
        ),
    ],
)
def test_empty_folds_and_missing_cases_are_refused(tmp_path, content, error, message):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        load_fold("0", CASES, file)


ONE = {"train": CASES[:8], "val": CASES[8:]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(ONE).encode(), "the whole file: Input should be a valid list"),
        (json.dumps({"0": ONE}).encode(), "the whole file: Input should be a valid list"),
        (json.dumps([{"training": CASES, "validation": []}]).encode(), "0.train: Field required (and 1 more)"),
        (json.dumps([{"train": CASES}]).encode(), "0.val: Field required"),
        (json.dumps([ONE, {"train": [1, 2], "val": []}]).encode(), "1.train.0: Input should be a valid string, got 1"),
        (json.dumps([ONE]).encode("utf-16"), "is encoded in UTF-16"),
        (b"", "is not valid JSON"),
    ],
)
def test_splits_of_another_layout_are_one_line_that_says_what_is_expected(tmp_path, content, words):
    file = tmp_path / "splits_final.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"splits_final\.json") as caught:
        load_fold("0", CASES, file)
    assert words in str(caught.value)
    assert 'a list with one {"train": [CASES], "val": [CASES]} for each fold' in str(caught.value)


def test_splits_with_a_byte_order_mark_are_read(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps([ONE]).encode())
    assert load_fold("0", CASES, file).train == tuple(CASES[:8])


def test_validation_cases_among_the_training_cases_are_left_out_of_training_and_said(tmp_path, caplog):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": CASES, "val": CASES[8:]}, {"train": CASES[:2], "val": CASES[:2]}]))
    fold = load_fold("0", CASES, file)
    assert (fold.train, fold.validation) == (tuple(CASES[:8]), tuple(CASES[8:]))
    assert f"Fold 0 of {file} trains on 3 of its validation cases, e.g. case_08: they are left out" in caplog.text
    with pytest.raises(ValueError, match=r"Fold 1 of .*has no training case that is not validated on"):
        load_fold("1", CASES, file)


def test_what_is_no_fold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="FOLD must be 'all' or a number"):
        load_fold("first", CASES, tmp_path / "s.json")
    with pytest.raises(ValueError, match="FOLD must be 'all' or a number"):
        load_fold("²", CASES, tmp_path / "s.json")
    with pytest.raises(ValueError, match="3 cases are too few for nnU-Net's 5 folds"):
        load_fold("0", CASES[:3], tmp_path / "s.json")
    assert np.array_equal(list(tmp_path.iterdir()), [])
