import json

import numpy as np
import pytest
from made_data import IDENTIFIER, NAME, plans, volume, write_case, write_dataset, write_unlabelled

from ssl_pretrain.data.filters import parse_filters
from ssl_pretrain.data.locate import locate
from ssl_pretrain.data.preprocessing import digest, preprocessing_of
from ssl_pretrain.data.selection import select

UNLABELLED = f"{IDENTIFIER}_unlabeled"
SMALL = (8, 8, 8)
CURRENT = digest(preprocessing_of(plans(), "3d_fullres"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


@pytest.fixture
def dataset(home):
    """Ten labelled cases and six images of three subjects."""
    folder = write_dataset(home, cases=10)
    for i in range(6):
        info = {"dataset": "study", "subject": f"sub{i // 2}", "modality": ("T1w", "T2w")[i % 2], "quality": 1.0 + i}
        write_unlabelled(folder / UNLABELLED, f"scan_{i}", volume(i, SMALL), info, made_with=CURRENT)
    return folder


def chosen(datasets=("7",), fold="all", **options):
    return select([locate(name, "3d_fullres", "nnUNetPlans") for name in datasets], fold=fold, **options)


def names(pool) -> list[str]:
    return sorted(pool.identifiers.tolist())


def test_all_cases_are_used_labelled_or_not(dataset):
    found = chosen()
    assert len(found.train) + len(found.validation) == 16
    assert "10 labelled and 6 unlabelled cases" in found.note


@pytest.mark.parametrize(("use", "count", "prefix"), [("labeled", 10, "case"), ("unlabeled", 6, "scan")])
def test_one_kind_only(dataset, use, count, prefix):
    found = chosen(use=use)
    assert len(found.train) + len(found.validation) == count
    assert all(name.startswith(prefix) for name in names(found.train))


def test_with_a_fold_its_training_cases_and_all_unlabelled_ones_are_trained_on(dataset):
    found = chosen(fold="1")
    split = json.loads((dataset / "splits_final.json").read_text())[1]
    assert names(found.validation) == sorted(split["val"])
    assert names(found.train) == sorted([*split["train"], *(f"scan_{i}" for i in range(6))])


def test_an_unlabelled_image_of_a_subject_that_is_validated_on_is_left_out(dataset):
    chosen(fold="0")
    held = json.loads((dataset / "splits_final.json").read_text())[0]["val"][0]
    write_unlabelled(dataset / UNLABELLED, "again", volume(1, SMALL), {"subject": f"{NAME}__{held}"}, made_with=CURRENT)
    assert "again" not in names(chosen(fold="0").train)
    assert "again" in names(chosen(fold="1").train)


def test_images_of_a_subject_are_never_split(dataset):
    for i in range(60):
        info = {"subject": f"many{i // 4}"}
        write_unlabelled(dataset / UNLABELLED, f"more_{i:02d}", volume(i, SMALL), info, made_with=CURRENT)
    found = chosen(use="unlabeled")
    held = {int(name[5:]) // 4 for name in names(found.validation) if name.startswith("more")}
    trained = {int(name[5:]) // 4 for name in names(found.train) if name.startswith("more")}
    assert not held & trained
    assert len(found.validation) >= 2


def test_filters_choose_by_what_is_known(dataset):
    found = chosen(filters=parse_filters(["modality=T1w", "quality<=3"]))
    assert {*names(found.train), *names(found.validation)} == {"scan_0", "scan_2"}
    with pytest.raises(ValueError, match=r"No image left after the filters: modality=PET left out 16 of 16"):
        chosen(filters=parse_filters(["modality=PET"]))
    assert len(chosen(filters=parse_filters([f"dataset={NAME}"])).train) == 10 - 1


def test_without_labelled_cases_unlabelled_ones_will_do(dataset):
    for file in (dataset / IDENTIFIER).iterdir():
        file.unlink()
    assert len(chosen().train) + len(chosen().validation) == 6
    found = chosen(fold="0")
    assert len(found.train) + len(found.validation) == 6, "no split to follow: subjects are held out"


def test_what_is_not_there_is_said_with_the_command_that_makes_it(home):
    write_dataset(home)
    with pytest.raises(FileNotFoundError, match=r"has no unlabelled cases.*nnUNetv2_preprocess_unlabeled -i F"):
        chosen(use="unlabeled")
    (home / NAME / UNLABELLED).mkdir()
    assert len(chosen().train) == 5, "an empty folder is no folder"


def test_images_of_other_plans_are_refused(dataset):
    write_unlabelled(dataset / UNLABELLED, "old", volume(0, SMALL), made_with="0" * 16)
    with pytest.raises(ValueError, match=r"1 cases of .* were preprocessed with other plans.*old.*--overwrite"):
        chosen()


def second_dataset(home, **changes):
    folder = home / "Dataset008_Other"
    write_case(folder / IDENTIFIER, "case_00", volume(0))
    written = plans()
    written["configurations"]["3d_fullres"].update(changes)
    (folder / "nnUNetPlans.json").write_text(json.dumps({**written, "dataset_name": folder.name}))
    description = {"channel_names": {"0": "x"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_several_datasets_of_the_same_plans_are_drawn_from(dataset, home):
    second_dataset(home)
    found = chosen(("7", "8"), balance="datasets")
    assert len(found.train) + len(found.validation) == 17
    assert {source.dataset for source in found.train.sources} == {NAME, "Dataset008_Other"}


def test_datasets_that_were_preprocessed_differently_are_refused(dataset, home):
    second_dataset(home, spacing=[2.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"preprocessed differently.*spacing: .*move_plans_between_datasets -s 7"):
        chosen(("7", "8"))


@pytest.mark.parametrize(("kind", "setting"), [("anonymization", "ignore_anonymized"), ("anatomy", "sample_in")])
def test_a_setting_that_needs_masks_says_so_when_there_are_none(dataset, kind, setting):
    (dataset / UNLABELLED / kind).mkdir()
    with pytest.raises(ValueError, match=f"{setting} needs {kind} masks, but no case to train on has one"):
        chosen(masks=[kind])


def test_masks_that_are_the_other_way_round_are_one_warning_before_training(dataset, caplog):
    """Also in folders that were preprocessed before anybody looked at masks."""
    corners = np.ones(SMALL, dtype=bool)
    corners[2:-2, 2:-2, 2:-2] = False
    for number in range(6):
        about = {"anatomy": {"inverted": False, "doubt": "it holds the corners"}} if number == 5 else None
        write_unlabelled(
            *(dataset / UNLABELLED, f"air_{number}", volume(number, SMALL)),
            masks={"anatomy": corners if number % 2 else ~corners},
            made_with=CURRENT,
            about_masks=about,
        )
    chosen(use="unlabeled", masks=["anatomy"])
    (said,) = [message for message in caplog.messages if "other way round" in message]
    assert "anatomy masks look as if they were the other way round, e.g. " in said
    assert "run nnUNetv2_preprocess_unlabeled again" in said
    caplog.clear()
    chosen(use="unlabeled")
    assert not any("other way round" in message for message in caplog.messages)


def test_labelled_cases_that_are_asked_for_and_not_there_are_said(dataset):
    for file in (dataset / IDENTIFIER).iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no labelled cases.*nnUNetv2_preprocess -d 7"):
        chosen(use="labeled")


def test_a_filter_does_not_let_in_the_subjects_that_are_validated_on(dataset):
    chosen(fold="0")
    held = json.loads((dataset / "splits_final.json").read_text())[0]["val"][0]
    info = {"subject": f"{NAME}__{held}", "modality": "T1w"}
    write_unlabelled(dataset / UNLABELLED, "again", volume(1, SMALL), info, made_with=CURRENT)
    found = chosen(fold="0", filters=parse_filters(["modality=T1w"]))
    assert "again" not in names(found.train) + names(found.validation)


def test_plans_can_be_moved_to_the_dataset_with_labels_only(dataset, home):
    second_dataset(home, spacing=[2.0, 1.0, 1.0])
    for file in (home / "Dataset008_Other" / IDENTIFIER).iterdir():
        file.unlink()
    write_unlabelled(home / "Dataset008_Other" / UNLABELLED, "a", volume(0, SMALL))
    with pytest.raises(ValueError, match=r"move_plans_between_datasets -s 8 -t 7"):
        chosen(("7", "8"))
