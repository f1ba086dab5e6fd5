"""A collection -> cases: identifiers, paths, masks, what is known."""

import copy
import json
from pathlib import Path

import pytest
from test_collection_model import FULL, MINIMAL

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.collection.flatten import image_cases, safe_name, without_ending
from ssl_pretrain.data.collection.model import Collection, read_collection
from ssl_pretrain.data.collection.paths import resolve_path, written_path

AT = "datasets.ds1.subjects.sub-01.sessions.ses-1.images[0]"


def collection_of(document: dict, folder: Path) -> Collection:
    file = folder / "pretrain_data.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return read_collection(file)


def one(**changes: object) -> dict:
    """The minimal document with another image."""
    document = copy.deepcopy(MINIMAL)
    images(document)[0].update(changes)
    return document


def images(document: dict) -> list:
    return document["datasets"]["ds1"]["subjects"]["sub-01"]["sessions"]["ses-1"]["images"]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "raw images"
    folder.mkdir()
    monkeypatch.setenv("nnssl_raw", f"{folder}/")
    return folder


def test_a_case_has_the_unique_id_of_nnssl_and_files_on_this_machine(tmp_path, raw):
    (case,) = image_cases(collection_of(MINIMAL, tmp_path))
    assert case.identifier == "Dataset002_Tiny__ds1__sub-01__ses-1__im0"
    assert case.images == (raw / "Dataset002_Tiny" / "img" / "im0.nii.gz",)
    assert case.anonymization_mask == raw / "Dataset002_Tiny" / "img" / "im0_anon.nii.gz"
    assert case.anatomy_mask is None
    subject = "Dataset002_Tiny__ds1__sub-01"
    assert case.info == CaseInfo(dataset="ds1", subject=subject, session="ses-1", modality="T1w")


def test_paths_are_relative_to_the_document_and_variables_may_be_any(tmp_path, raw, monkeypatch):
    monkeypatch.setenv("OTHER", str(tmp_path))
    monkeypatch.chdir(raw)
    first, second = image_cases(collection_of(FULL, tmp_path))
    assert first.images == (
        tmp_path / "OpenMind" / "ds000001" / "sub-01" / "anat" / "sub-01_T1w.nii.gz",
        tmp_path / "second.nii.gz",
        tmp_path / "third.nii.gz",
    )
    assert first.anonymization_mask == tmp_path / "a.nii.gz"
    assert first.info.quality == 2.5
    assert second.images == (Path("/abs/b.mha"),)
    assert second.identifier == "Dataset745_OpenMind__ds000001__sub-01__ses-DEFAULT__b"
    assert second.info.quality is None


@pytest.mark.parametrize("mask", [None, "", " ", "nan", "NaN", "/data/OpenMind/nan", "$NOWHERE/nan", float("nan")])
def test_a_mask_that_pandas_wrote_as_nan_is_no_mask(tmp_path, raw, mask):
    document = one(associated_masks={"anonymization_mask": mask, "anatomy_mask": mask})
    (case,) = image_cases(collection_of(document, tmp_path))
    assert (case.anonymization_mask, case.anatomy_mask) == (None, None)


def test_a_variable_that_leads_nowhere_is_named_with_place_and_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("nnssl_raw", raising=False)
    collection = collection_of(MINIMAL, tmp_path)
    with pytest.raises(ValueError) as caught:
        image_cases(collection)
    assert str(caught.value).startswith(f"{tmp_path / 'pretrain_data.json'}: {AT}.image_path is '$nnssl_raw/")
    assert "the environment variable nnssl_raw is not set. Set it to the folder that holds" in str(caught.value)
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"environment variable nnssl_raw is '.*gone', which is not a folder"):
        image_cases(collection)


def test_an_empty_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images\[0\].image_path is '', which is no path"):
        image_cases(collection_of(one(image_path="", associated_masks=None), tmp_path))
    with pytest.raises(ValueError, match=r"images\[0\].channel_paths\[1\] is 'nan', which is no path"):
        image_cases(collection_of(one(image_path="a", associated_masks=None, channel_paths=["b", "nan"]), tmp_path))


def test_two_images_with_one_name_are_both_named(tmp_path, raw):
    document = copy.deepcopy(MINIMAL)
    images(document).append({**images(document)[0], "name": "im0.nrrd"})
    with pytest.raises(ValueError) as caught:
        image_cases(collection_of(document, tmp_path))
    places = f"{AT} and {AT.replace('[0]', '[1]')} are both called 'Dataset002_Tiny__ds1__sub-01__ses-1__im0'"
    assert f"{places}. Give one of them another name." in str(caught.value)


def test_a_collection_without_images_is_refused(tmp_path):
    document = copy.deepcopy(MINIMAL)
    images(document).clear()
    with pytest.raises(ValueError, match=r"pretrain_data.json lists no image"):
        image_cases(collection_of(document, tmp_path))


def test_quality_is_looked_up_by_modality_and_origin(tmp_path, raw):
    document = one(modality="FA", image_info={"derived_from": "dwi"}, associated_masks=None)
    images(document).append({"name": "b", "image_path": "b", "modality": "FA", "image_info": {"derived_from": ""}})
    images(document).append({"name": "c", "image_path": "c", "modality": "FA"})
    images(document).append({"name": "d", "image_path": "d", "modality": "T2w"})
    document["datasets"]["ds1"]["dataset_info"] = {
        "image_quality_score": [
            {"modality": "FA", "derived_from": "dwi", "image_quality_score": 3},
            {"modality": "FA", "image_quality_score": 1.5},
            {"modality": "FA", "derived_from": None, "image_quality_score": 5},
            {"modality": "T2w", "derived_from": None, "image_quality_score": float("nan")},
        ]
    }
    collection = collection_of(document, tmp_path)
    before = collection.to_dict()
    assert [case.info.quality for case in image_cases(collection)] == [3.0, 1.5, 1.5, None]
    assert [case.info.quality for case in image_cases(collection)] == [3.0, 1.5, 1.5, None]
    assert str(collection.to_dict()) == str(before)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, r"datasets.ds1.dataset_info.image_quality_score must be a list \[…\], got \{\}"),
        ([3], r"datasets.ds1.dataset_info.image_quality_score\[0\] must be an object"),
        ([{"modality": "T1w"}], r"image_quality_score\[0\].image_quality_score is missing"),
        ([{"image_quality_score": 1}], r"image_quality_score\[0\].modality is missing"),
        ([{"modality": "T1w", "image_quality_score": "good"}], r"must be a number, got 'good'"),
    ],
)
def test_a_malformed_score_is_named_with_its_place(tmp_path, raw, scores, message):
    document = copy.deepcopy(MINIMAL)
    document["datasets"]["ds1"]["dataset_info"] = {"image_quality_score": scores}
    with pytest.raises(ValueError, match=rf"pretrain_data.json: .*{message}"):
        image_cases(collection_of(document, tmp_path))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Dataset001_A__ds1__sub-01__ses-1__my scan (2) é", "Dataset001_A__ds1__sub-01__ses-1__my scan (2) é"),
        ("a/b", "a%2Fb"),
        ("a\\b", "a%5Cb"),
        ("a%2Fb", "a%252Fb"),
        ("../x", "%2E.%2Fx"),
        ('a:*?"<>|b', "a%3A%2A%3F%22%3C%3E%7Cb"),
        ("a\n", "a%0A"),
        ("a.", "a%2E"),
        ("a ", "a%20"),
        ("x__brain_seg", "x__brain%5Fseg"),
        ("x__brain_segment", "x__brain_segment"),
    ],
)
def test_an_identifier_is_a_file_name_on_every_system(text, safe):
    assert safe_name(text) == safe


def test_an_image_called_like_a_segmentation_is_still_a_case_to_nnunet(tmp_path):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    document = one(name="brain_seg.nii.gz", image_path="a.nii.gz", associated_masks=None)
    (case,) = image_cases(collection_of(document, tmp_path))
    (tmp_path / f"{case.identifier}.b2nd").touch()
    assert list(nnUNetDatasetBlosc2.get_identifiers(str(tmp_path))) == [case.identifier]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.nii", "a"),
        ("a.b.nrrd", "a.b"),
        ("a.mha", "a"),
        ("A.NII.GZ", "A"),
        ("a.gipl", "a"),
        ("a.tif", "a"),
        ("no ending", "no ending"),
        ("v1.2", "v1.2"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_only_the_ending_of_an_image_format_is_taken_off(name, stem):
    assert without_ending(name) == stem


def test_a_folder_and_its_document_can_be_moved_together(tmp_path):
    document = tmp_path / "a" / "pretrain_data.json"
    inside, outside = tmp_path / "a" / "b" / "x.nii.gz", tmp_path / "c" / "x.nii.gz"
    assert written_path(inside, document) == "b/x.nii.gz"
    assert written_path(tmp_path / "c" / ".." / "a" / "x.nii.gz", document) == "x.nii.gz"
    assert written_path(outside, document) == outside.as_posix()
    assert written_path(inside, document, absolute=True) == inside.as_posix()
    assert resolve_path("b/x.nii.gz", tmp_path / "moved", "there") == tmp_path / "moved" / "b" / "x.nii.gz"
