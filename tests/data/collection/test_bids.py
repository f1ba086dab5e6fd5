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
        "Left out: 2 in dwi folders, 1 in func folders, 1 links to files that are not there (datalad get downloads "
        "them), 2 masks and segmentations, 1 with more than three axes, 2 with names that are not those of BIDS"
    ]


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
    assert "1 _defacemask files belong to no image, or to several, and are not used" in caplog.text
    assert "Left out: 1 masks and segmentations" in caplog.text
    assert not any(case.anonymization_mask for case in image_cases(collect(study, masks=False)))


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
    with pytest.raises(ValueError, match=r"No image in .*: 1 in func folders. Searched: anat, ct, pet \(-datatypes\)"):
        collect(tmp_path)
    shutil.rmtree(tmp_path / "sub-01" / "func")
    with pytest.raises(ValueError, match=r"No image in .*: its sub-\* folders are empty"):
        collect(tmp_path)


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
