"""``pretrain_data.json``: read strictly, written back as it was, every fault named with its place."""

import copy
import json
import math
import re

import pytest
from conftest import REPOSITORY

from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import AssociatedMasks, Collection, Image, read_collection

MINIMAL = {
    "collection_index": 2,
    "collection_name": "Dataset002_Tiny",
    "datasets": {
        "ds1": {
            "dataset_index": "ds1",
            "subjects": {
                "sub-01": {
                    "sessions": {
                        "ses-1": {
                            "images": [
                                {
                                    "name": "im0.nii.gz",
                                    "image_path": "$nnssl_raw/Dataset002_Tiny/img/im0.nii.gz",
                                    "modality": "T1w",
                                    "image_info": {},
                                    "associated_masks": {
                                        "anonymization_mask": "$nnssl_raw/Dataset002_Tiny/img/im0_anon.nii.gz",
                                        "anatomy_mask": None,
                                    },
                                }
                            ]
                        }
                    }
                }
            },
        }
    },
}
"""What nnssl reads; everything it can do without is left out."""

FULL = {
    "collection_index": "745",
    "collection_name": "Dataset745_OpenMind",
    "licence": "ours, unknown to the format",
    "datasets": {
        "ds000001": {
            "dataset_index": "ds000001",
            "name": None,
            "dataset_info": {
                "image_quality_score": [{"modality": "T1w", "derived_from": None, "image_quality_score": 2.5}],
                "other": [1, 2],
            },
            "doi": "10.1/x",
            "subjects": {
                "sub-01": {
                    "subject_id": "sub-01",
                    "subject_info": {"age": 26.0, "sex": "female"},
                    "group": "control",
                    "sessions": {
                        "ses-DEFAULT": {
                            "session_id": 0,
                            "session_info": None,
                            "day": 3,
                            "images": [
                                {
                                    "name": "sub-01_T1w.nii.gz",
                                    "image_path": "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz",
                                    "modality": "T1w",
                                    "image_info": {"manufacturer": "Siemens", "echo_time": 0.003},
                                    "associated_masks": {
                                        "anonymization_mask": "a.nii.gz",
                                        "anatomy_mask": "nan",
                                        "vessel_mask": "v.nii.gz",
                                    },
                                    "channel_paths": ["second.nii.gz", "$OTHER/third.nii.gz"],
                                    "rating": {"by": "me"},
                                },
                                {
                                    "name": "b",
                                    "image_path": "/abs/b.mha",
                                    "modality": "T2w",
                                    "image_info": None,
                                    "associated_masks": None,
                                },
                            ],
                        }
                    },
                },
                "sub-02": {"subject_id": 2, "subject_info": {}, "sessions": {}},
            },
        },
        "empty": {"dataset_index": 7, "name": "Seven", "dataset_info": None, "subjects": {}},
    },
}


@pytest.mark.parametrize("document", [MINIMAL, FULL], ids=["minimal", "full"])
def test_a_document_is_written_as_it_was_read(document, tmp_path):
    file = tmp_path / "pretrain_data.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    given = copy.deepcopy(document)
    collection = read_collection(file)
    assert collection.to_dict() == document
    assert json.loads(json.dumps(collection.to_dict())) == document
    assert document == given
    assert collection.file == file


def test_what_is_made_in_python_has_every_entry_that_nnssl_writes():
    image = Image(name="a.nii.gz", image_path="a.nii.gz", modality="CT", associated_masks=AssociatedMasks())
    assert image.to_dict() == {
        "name": "a.nii.gz",
        "image_path": "a.nii.gz",
        "modality": "CT",
        "image_info": None,
        "associated_masks": {"anonymization_mask": None, "anatomy_mask": None},
    }
    assert Image.from_dict(image.to_dict(), "image") == image


def test_the_nan_of_pandas_is_null():
    image = {**MINIMAL["datasets"]["ds1"]["subjects"]["sub-01"]["sessions"]["ses-1"]["images"][0]}
    image["associated_masks"] = {"anonymization_mask": math.nan, "anatomy_mask": math.nan}
    image["image_info"] = math.nan
    read = Image.from_dict(image, "image")
    assert (read.associated_masks, read.image_info) == (AssociatedMasks(), None)


DELETE = object()


def changed(path: list, value: object) -> dict:
    document = copy.deepcopy(FULL)
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


DATASET = ["datasets", "ds000001"]
SUBJECT = [*DATASET, "subjects", "sub-01"]
SESSION = [*SUBJECT, "sessions", "ses-DEFAULT"]
IMAGE = [*SESSION, "images", 0]
AT_SESSION = "datasets.ds000001.subjects.sub-01.sessions.ses-DEFAULT"
AT_IMAGE = f"{AT_SESSION}.images[0]"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["collection_index"], DELETE, ": collection_index is missing; it must be text or a whole number"),
        (["collection_index"], 7.5, ": collection_index must be text or a whole number, got 7.5"),
        (["collection_index"], True, ": collection_index must be text or a whole number, got true"),
        (["collection_name"], None, ": collection_name must be text, got null"),
        (["datasets"], DELETE, ": datasets is missing; it must be an object {…}"),
        (["datasets"], [], ": datasets must be an object {…}, got []"),
        (DATASET, "ds", ": datasets.ds000001 must be an object {…}, got 'ds'"),
        ([*DATASET, "dataset_index"], DELETE, ": datasets.ds000001.dataset_index is missing"),
        ([*DATASET, "dataset_info"], [], ": datasets.ds000001.dataset_info must be an object {…}, got []"),
        ([*DATASET, "name"], 3, ": datasets.ds000001.name must be text, got 3"),
        ([*DATASET, "subjects"], DELETE, ": datasets.ds000001.subjects is missing"),
        ([*SUBJECT, "sessions"], DELETE, ": datasets.ds000001.subjects.sub-01.sessions is missing"),
        ([*SUBJECT, "subject_info"], "old", ": datasets.ds000001.subjects.sub-01.subject_info must be an object"),
        ([*SESSION, "images"], DELETE, f": {AT_SESSION}.images is missing; it must be a list […]"),
        ([*SESSION, "images"], {}, f": {AT_SESSION}.images must be a list […], got {{}}"),
        (IMAGE, 1, f": {AT_IMAGE} must be an object {{…}}, got 1"),
        ([*IMAGE, "image_path"], DELETE, f": {AT_IMAGE}.image_path is missing; it must be text"),
        ([*IMAGE, "name"], DELETE, f": {AT_IMAGE}.name is missing"),
        ([*IMAGE, "modality"], None, f": {AT_IMAGE}.modality must be text, got null"),
        ([*IMAGE, "image_path"], ["a"] * 50, f": {AT_IMAGE}.image_path must be text, got ['a', 'a', "),
        ([*IMAGE, "image_info"], "x", f": {AT_IMAGE}.image_info must be an object {{…}}, got 'x'"),
        ([*IMAGE, "channel_paths"], "x", f": {AT_IMAGE}.channel_paths must be a list […], got 'x'"),
        ([*IMAGE, "channel_paths"], ["x", 2], f": {AT_IMAGE}.channel_paths[1] must be text, got 2"),
        ([*IMAGE, "associated_masks"], "x", f": {AT_IMAGE}.associated_masks must be an object {{…}}, got 'x'"),
        (
            [*IMAGE, "associated_masks", "anatomy_mask"],
            DELETE,
            f": {AT_IMAGE}.associated_masks.anatomy_mask is missing; it must be text, or null where there is none",
        ),
        ([*IMAGE, "associated_masks", "anatomy_mask"], 4, f": {AT_IMAGE}.associated_masks.anatomy_mask must be text"),
    ],
)
def test_a_missing_or_wrong_field_is_named_with_its_place_and_the_file(tmp_path, path, value, message):
    file = tmp_path / "my data.json"
    file.write_text(json.dumps(changed(path, value)), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_collection(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "collections.md" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_no_collection_is_refused_by_name(tmp_path):
    file = tmp_path / "pretrain_data.json"
    with pytest.raises(FileNotFoundError, match=r"pretrain_data.json does not exist. Make it with nnUNetv2_make"):
        read_collection(file)
    file.write_text('{"collection_index": 1,\n}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"pretrain_data.json is not valid JSON: .*line 2 column 1"):
        read_collection(file)
    file.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(ValueError, match=r"pretrain_data.json is not text in UTF-8"):
        read_collection(file)
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"the document must be an object \{…\}, got \[\]"):
        read_collection(file)


def test_a_document_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "pretrain_data.json"
    file.write_text(json.dumps(MINIMAL), encoding="utf-8-sig")
    assert read_collection(file) == Collection.from_dict(MINIMAL)


PAGE = REPOSITORY / "documentation" / "how-to" / "collections.md"


def block(language: str) -> str:
    """The block of a language in the page; there is one."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return found


def test_the_example_of_the_documentation_is_a_collection(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION", str(tmp_path))
    file = tmp_path / "pretrain_data.json"
    file.write_text(block("json"), encoding="utf-8")
    collection = read_collection(file)
    assert collection.to_dict() == json.loads(block("json"))
    first, second = image_cases(collection)
    assert (first.info.quality, second.info.quality) == (1.5, 3.0)
    assert first.anonymization_mask == tmp_path / "clinic" / "sub-01" / "face.nii.gz"
    assert second.images == (tmp_path / "sub-01" / "FA.nii.gz",)


def test_the_python_of_the_documentation_makes_a_collection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Anna/2020_ct", "Anna/2021_ct", "Anna/2021_body", "Ben/2020_ct"):
        file = tmp_path / "scans" / f"{name}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    exec(compile(block("python"), PAGE.name, "exec"), {})
    cases = image_cases(read_collection(tmp_path / "pretrain_data.json"))
    assert [(case.info.subject, case.info.session) for case in cases] == [
        ("Dataset746_MyStudy__clinic__Anna", "2020"),
        ("Dataset746_MyStudy__clinic__Anna", "2021"),
        ("Dataset746_MyStudy__clinic__Ben", "2020"),
    ]
    assert [case.anatomy_mask is None for case in cases] == [True, False, True]
    assert all(path.is_file() for case in cases for path in (*case.images, case.anatomy_mask or case.images[0]))
