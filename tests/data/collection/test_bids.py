"""Folders in BIDS layout -> a collection."""

import logging
import shutil

import numpy as np
import pytest
import SimpleITK

from ssl_pretrain.data.collection.bids import bids_collection
from ssl_pretrain.data.collection.flatten import image_cases


def volume(path, shape=(4, 5, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones(shape, dtype=np.float32)), str(path))
    return path


@pytest.fixture
def study(tmp_path):
    """A dataset with sessions for one subject and none for the other."""
    folder = tmp_path / "ds 07"
    volume(folder / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz")
    volume(folder / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_acq-fast_run-2_T2w.nii.gz")
    volume(folder / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_T1w.nii")
    volume(folder / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz")
    (folder / "participants.tsv").write_text(
        "participant_id\tage\tsex\tscore\tsite\nsub-01\t26\tn/a\t1.5\t007\n02\t30\tF\t\tx\n", encoding="utf-8"
    )
    return folder


def collect(folder, **options):
    return bids_collection(folder, folder / "pretrain_data.json", **options)


def names(collection):
    return [image.name for *_, image in collection.images()]


def test_subjects_sessions_and_modalities_come_from_the_names(study):
    collection = collect(study, index=42)
    assert (collection.collection_index, collection.collection_name) == (42, "Dataset042_ds_07")
    cases = image_cases(collection)
    assert [(c.info.subject, c.info.session, c.info.modality) for c in cases] == [
        ("Dataset042_ds_07__ds 07__sub-01", "ses-a", "T1w"),
        ("Dataset042_ds_07__ds 07__sub-01", "ses-a", "T2w"),
        ("Dataset042_ds_07__ds 07__sub-01", "ses-b", "T1w"),
        ("Dataset042_ds_07__ds 07__sub-02", "ses-DEFAULT", "FLAIR"),
    ]
    assert all(c.images[0].is_file() for c in cases)
    assert cases[2].identifier == "Dataset042_ds_07__ds 07__sub-01__ses-b__sub-01_ses-b_T1w"
    subjects = collection.datasets["ds 07"].subjects
    assert subjects["sub-01"].subject_info == {"age": 26, "score": 1.5, "site": "007"}
    assert subjects["sub-02"].subject_info == {"age": 30, "sex": "F", "site": "x"}
    assert collection.to_dict() == type(collection).from_dict(collection.to_dict()).to_dict()


def test_a_folder_of_datasets_is_one_collection(study, tmp_path):
    shutil.copytree(study, tmp_path / "ds08")
    volume(tmp_path / "derivatives" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    volume(tmp_path / "other" / "x.nii.gz")
    collection = collect(tmp_path, name="Both")
    assert list(collection.datasets) == ["ds 07", "ds08"]
    assert collection.datasets["ds08"].subjects["sub-01"].subject_info["age"] == 26
    cases = image_cases(collection)
    assert len({c.identifier for c in cases}) == len(cases) == 8
    assert len({c.info.subject for c in cases}) == 4


def test_the_folder_may_be_given_in_any_way(study, monkeypatch):
    expected = collect(study).to_dict()
    monkeypatch.chdir(study / "sub-01")
    for given in ("..", str(study / "sub-02" / "..")):
        assert collect(type(study)(given)).to_dict() == expected


def test_what_is_no_3d_image_is_left_out_and_counted(study, caplog):
    anat = study / "sub-02" / "anat"
    volume(anat / "sub-02_MEGRE.nii.gz", (3, 4, 5, 6))
    one = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(np.ones((4, 5, 6), dtype=np.float32))])
    SimpleITK.WriteImage(one, str(anat / "sub-02_PDw.nii.gz"))
    volume(study / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz")
    volume(study / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_dwi.nii.gz")
    volume(study / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_run-2_dwi.nii.gz")
    volume(study / "derivatives" / "fmriprep" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    volume(anat / "sub-02_label-lesion_mask.nii.gz")
    volume(anat / "sub-02_dseg.nii.gz")
    volume(anat / "T1w.nii.gz")
    volume(anat / "sub-09_T1w.nii.gz")
    (anat / "sub-02_T1w.json").write_text("{}")
    (anat / "sub-02_T2w.nii.gz").symlink_to("../.git/annex/objects/gone")
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        collection = collect(study)
    assert names(collection)[-2:] == ["sub-02_FLAIR.nii.gz", "sub-02_PDw.nii.gz"]
    assert len(names(collection)) == 5
    assert caplog.messages == [
        "Left out: 2 in dwi folders (e.g. sub-01/ses-a/dwi/sub-01_ses-a_dwi.nii.gz), 1 in func folders (e.g. "
        "sub-02/func/sub-02_task-rest_bold.nii.gz), 1 links to files that are not there, which datalad get downloads "
        "(e.g. sub-02/anat/sub-02_T2w.nii.gz), 2 masks and segmentations (e.g. sub-02/anat/sub-02_dseg.nii.gz), 1 with "
        "more than three axes (e.g. sub-02/anat/sub-02_MEGRE.nii.gz), 2 with names that are not those of BIDS (e.g. "
        "sub-02/anat/T1w.nii.gz)"
    ]


def left_out(folder, caplog):
    """What the log says is left out, and the names of the images."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        found = names(collect(folder))
    return "".join(m for m in caplog.messages if m.startswith("Left out: ")), found


def test_phase_real_and_imaginary_parts_are_no_images_of_their_modality(study, caplog):
    for part in ("mag", "phase", "real", "imag"):
        volume(study / "sub-02" / "anat" / f"sub-02_echo-1_part-{part}_T2starw.nii.gz")
    said, found = left_out(study, caplog)
    assert said == (
        "Left out: 3 phase, real or imaginary parts (e.g. sub-02/anat/sub-02_echo-1_part-imag_T2starw.nii.gz)"
    )
    assert [name for name in found if "T2starw" in name] == ["sub-02_echo-1_part-mag_T2starw.nii.gz"]


def test_subjects_that_vanish_are_counted_and_so_is_what_they_have(study, caplog):
    expected = names(collect(study))
    volume(study / "sub-03" / "sub-03_T1w.nii.gz")
    volume(study / "sub-04" / "visit1" / "anat" / "sub-04_T1w.nii.gz")
    volume(study / "sub-05" / "ses-1" / "sub-05_T1w.nii")
    volume(study / "patient6" / "anat" / "T1w.nii.gz")
    (study / "sub-07" / "anat").mkdir(parents=True)
    (study / "sub-07" / "anat" / "sub-07_T1w.mgz").touch()
    said, found = left_out(study, caplog)
    assert found == expected
    assert said == (
        "Left out: 1 in folders that BIDS does not know (e.g. sub-04/visit1/anat/sub-04_T1w.nii.gz), 1 in other "
        "formats than NIfTI (e.g. sub-07/anat/sub-07_T1w.mgz), 1 other folders beside the subjects (e.g. patient6), 2 "
        "outside of folders such as anat (e.g. sub-03/sub-03_T1w.nii.gz), 4 subjects without an image (e.g. sub-03)"
    )


def test_of_twins_the_one_is_taken_that_simpleitk_would_read(study, caplog):
    volume(study / "sub-02" / "anat" / "sub-02_FLAIR.nii")
    said, found = left_out(study, caplog)
    assert said.startswith("Left out: 1 .nii.gz files beside a .nii of the same name, which is taken (e.g. sub-02/anat")
    assert found[-1] == "sub-02_FLAIR.nii"
    assert len(image_cases(collect(study))) == 4


def test_folders_without_subjects_are_counted_among_datasets(study, tmp_path, caplog):
    volume(tmp_path / "other" / "x.nii.gz")
    (tmp_path / ".git").mkdir()
    assert left_out(tmp_path, caplog)[0] == "Left out: 1 folders without sub-* folders (e.g. other)"


def test_other_datatypes_are_searched_when_asked_for(study):
    volume(study / "sub-02" / "dwi" / "sub-02_sbref.nii.gz")
    assert names(collect(study, datatypes=["dwi"])) == ["sub-02_sbref.nii.gz"]


def test_a_file_that_does_not_open_is_left_to_preprocessing(study, shared_data):
    pointer = study / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    shutil.copyfile(shared_data / "bad_input" / "lfs_pointer_liver_0.nii.gz", pointer)
    assert pointer.name in names(collect(study))


def test_a_defacemask_is_the_mask_of_the_image_with_its_entities(study, caplog):
    anat = study / "sub-01" / "ses-a" / "anat"
    first = volume(anat / "sub-01_ses-a_mod-T1w_defacemask.nii.gz")
    second = volume(anat / "sub-01_ses-a_acq-fast_run-2_defacemask.nii.gz")
    volume(anat / "sub-01_ses-a_mod-FLAIR_defacemask.nii.gz")
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        cases = image_cases(collect(study))
    assert [case.anonymization_mask for case in cases] == [first, second, None, None]
    assert all(case.anatomy_mask is None for case in cases)
    assert "Took 2 _defacemask files as anonymisation masks: what is not 0 in them counts as removed" in caplog.text
    assert not any(case.inverted for case in cases)
    assert "1 _defacemask files belong to no image, or to several, and are not used" in caplog.text
    assert "Left out: 1 masks and segmentations (e.g. " in caplog.text
    assert not any(case.anonymization_mask for case in image_cases(collect(study, masks=False)))


@pytest.mark.parametrize(("marks", "share"), [("removed", 0.1), ("removed", 0.9), ("kept", 0.1), ("kept", 0.9)])
def test_the_sense_of_defacemasks_is_told_by_the_user_and_looked_at(study, caplog, marks, share):
    """A face is the smaller part of a head; BIDS does not say whether 1 is the face or the rest."""
    file = study / "sub-02" / "anat" / "sub-02_defacemask.nii.gz"
    voxels = (np.arange(1000) < 1000 * share).reshape(10, 10, 10).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file))
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        collection = collect(study, deface_marks=marks)
    masked = [case for case in image_cases(collection) if case.anonymization_mask]
    assert [case.inverted for case in masked] == [{"anonymization"} if marks == "kept" else set()]
    (told,) = [record for record in caplog.records if "_defacemask" in record.message]
    other = "kept" if marks == "removed" else "removed"
    doubtful = (share > 0.5) == (marks == "removed")
    assert f"counts as {marks}. It is {100 * share:.0f} % of the image (median of 1 masks)." in told.message
    assert (f"That looks like {other}." in told.message) == doubtful
    assert told.levelname == ("WARNING" if doubtful else "INFO")
    assert f"give -defacemask_marks {other} if it is that, or --no_masks" in told.message


def test_a_defacemask_that_may_belong_to_two_images_is_not_used(study, caplog):
    anat = study / "sub-02" / "anat"
    volume(anat / "sub-02_T1w.nii.gz")
    volume(anat / "sub-02_defacemask.nii.gz")
    assert not any(case.anonymization_mask for case in image_cases(collect(study)))
    assert "1 _defacemask files belong to no image, or to several" in caplog.text


@pytest.mark.parametrize("within", [True, False])
def test_paths_are_relative_where_they_survive_a_move(study, tmp_path, within):
    file = (study if within else tmp_path / "elsewhere") / "pretrain_data.json"
    paths = [image.image_path for *_, image in bids_collection(study, file).images()]
    expected = "sub-02/anat/sub-02_FLAIR.nii.gz"
    assert paths[-1] == (expected if within else (study / expected).as_posix())


def test_a_folder_in_another_layout_is_told_what_bids_is(tmp_path):
    volume(tmp_path / "plain" / "case_0000.nii.gz")
    with pytest.raises(ValueError) as caught:
        collect(tmp_path)
    assert "is not in BIDS layout: neither it nor a folder in it has folders sub-*" in str(caught.value)
    assert "sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz" in str(caught.value)
    assert "give them to nnUNetv2_preprocess_unlabeled -i" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"gone is not a folder. Correct the path \(-i\)"):
        collect(tmp_path / "gone")


def test_a_layout_without_images_says_what_was_left_out(tmp_path):
    volume(tmp_path / "sub-01" / "func" / "sub-01_bold.nii.gz")
    with pytest.raises(
        ValueError, match=r"No image in .*: 1 in func folders \(e.g. .*\). Searched: anat, ct, pet \(-datatypes\)"
    ):
        collect(tmp_path)
    shutil.rmtree(tmp_path / "sub-01" / "func")
    with pytest.raises(ValueError, match=r"No image in .*: its sub-\* folders are empty"):
        collect(tmp_path)


def told_of(study, content, caplog):
    """What participants.tsv says of the two subjects, and the warnings."""
    (study / "participants.tsv").write_bytes(content)
    caplog.clear()
    subjects = collect(study).datasets["ds 07"].subjects
    return [subjects[name].subject_info for name in ("sub-01", "sub-02")], "\n".join(caplog.messages)


def test_a_quotation_mark_is_a_letter_and_swallows_no_row(study, caplog):
    content = b'participant_id\tnote\tage\nsub-01\t"left\t3\nsub-02\tright"\t4\n'
    assert told_of(study, content, caplog) == ([{"note": '"left', "age": 3}, {"note": 'right"', "age": 4}], "")


def test_a_table_in_latin_1_is_read_with_one_warning(study, caplog):
    infos, said = told_of(study, "participant_id\tsite\r\nsub-01\tKöln\r\n".encode("latin-1"), caplog)
    assert infos == [{"site": "Köln"}, {}]
    assert said == (
        f"{study / 'participants.tsv'} is not UTF-8 and is read as Latin-1; save it as UTF-8 if letters come out wrong"
    )
    with pytest.raises(ValueError, match=r"participants.tsv is encoded in UTF-16. Save it again as UTF-8"):
        told_of(study, "participant_id\tsite\n".encode("utf-16"), caplog)


def test_rows_that_do_not_fit_are_left_out_and_counted(study, caplog):
    content = b"participant_id\tsex\tage\nsub-01\tF\tleft\t26\nsub-02\tM\n02\tF\t9\n\n"
    infos, said = told_of(study, content, caplog)
    assert infos == [{}, {"sex": "M"}]
    assert "participants.tsv: 1 rows have more cells than the table has columns" in said
    assert "they are left out, e.g. line 2" in said
    assert "participants.tsv: 1 rows repeat a participant and are left out, e.g. sub-02 in line 4" in said


def test_a_table_that_is_no_table_is_refused_by_name(study, caplog):
    with pytest.raises(ValueError, match=r"participants.tsv, line 2 cannot be read: .*Correct the line"):
        told_of(study, b"participant_id\tnote\nsub-01\t" + b"x" * 200_000, caplog)
    with pytest.raises(ValueError, match=r"participants.tsv has no column participant_id"):
        told_of(study, b"", caplog)


def test_a_table_of_participants_without_names_is_refused(study):
    (study / "participants.tsv").write_text("id\tage\n1\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"participants.tsv has no column participant_id. Correct or remove it"):
        collect(study)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 0}, r"number of a dataset is from 1 to 999, got 0 \(-d\)"),
        ({"index": 1000}, r"from 1 to 999, got 1000"),
        ({"index": 7, "name": "Dataset008_X"}, r"'Dataset008_X' belongs to another number than 7. Make -name and -d"),
        ({"name": "a/b"}, r"letters, digits, _ and - only, got 'a/b'. Give another \(-name\)"),
        ({"name": "Dataset001_"}, r"letters, digits, _ and - only, got ''"),
    ],
)
def test_number_and_name_are_those_of_one_dataset(study, options, message):
    with pytest.raises(ValueError, match=message):
        collect(study, **options)


def test_a_name_with_its_number_is_taken_as_it_is(study):
    assert collect(study, index=7, name="Dataset007_X").collection_name == "Dataset007_X"


def test_real_images_in_bids_layout(shared_data, tmp_path):
    source = sorted((shared_data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:3]
    for i, file in enumerate(source):
        target = tmp_path / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz"
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
    cases = image_cases(collect(tmp_path, name="Hippo"))
    assert [case.images[0].read_bytes() for case in cases] == [file.read_bytes() for file in source]
