"""OpenMind's table -> a collection."""

import csv
import json
import logging
import math

import pytest

from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import Collection
from ssl_pretrain.data.collection.openmind import TABLE, openmind_collection

COLUMNS = (
    *("image_path", "modality", "age", "sex", "handedness", "race", "weight", "bmi", "health_status", "derived_from"),
    *("is_brain_extract", "manufacturer", "model_name", "phase_encoding_direction", "magnetic_field_strength"),
    *("repetition_time", "echo_time", "anon_mask_path", "anat_mask_path", "unique_id", "image_quality_score"),
)

T1 = "ds000001/sub-01/anat/sub-01_T1w.nii.gz"
T1_AGAIN = "ds000001/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
FA = "ds000001/sub-02/ses-1/dwi/sub-02_ses-1_dwi__Data/FA.nii.gz"
FA_2 = "ds000001/sub-02/ses-1/dwi/sub-02_ses-1_run-2_dwi__Data/FA.nii.gz"
T2 = "ds000002/sub-01/anat/sub-01_T2w.nii.gz"


def masks(image):
    folder = image.removesuffix(".nii.gz") + "__Data"
    return {"anon_mask_path": f"{folder}/deface_mask.nii.gz", "anat_mask_path": f"{folder}/fb_mask.nii.gz"}


ROWS = [
    {"image_path": T1, "modality": "T1w", "age": "26.0", "sex": "F", "image_quality_score": "2.5", **masks(T1)},
    {"image_path": T1_AGAIN, "modality": "T1w", "age": "27.0", "race": "x", "anon_mask_path": "nan"},
    {
        **{"image_path": FA, "modality": "FA", "derived_from": "dwi", "is_brain_extract": "True"},
        **{"image_quality_score": "4", "magnetic_field_strength": "3.0", "manufacturer": "Siemens", "weight": "NaN"},
    },
    {"image_path": FA_2, "modality": "FA", "derived_from": "dwi", "image_quality_score": "1"},
    {"image_path": T2, "modality": "T2w", "health_status": "n/a", "echo_time": "0.1 s", **masks(T2)},
]


def write_table(folder, rows=ROWS, columns=COLUMNS):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({"unique_id": row["image_path"].replace("/", "__"), **row})


@pytest.fixture
def download(tmp_path):
    folder = tmp_path / "open mind"
    write_table(folder)
    for row in ROWS:
        for column in ("image_path", "anon_mask_path", "anat_mask_path"):
            if row.get(column, "nan") != "nan":
                file = folder / "OpenMind" / row[column]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return folder


def convert(folder, **options):
    return openmind_collection(folder, folder / "pretrain_data.json", **options)


def test_every_row_becomes_an_image_of_its_session(download):
    cases = image_cases(convert(download))
    assert [case.identifier for case in cases] == [
        "Dataset745_OpenMind__ds000001__sub-01__ses-DEFAULT__sub-01_T1w",
        "Dataset745_OpenMind__ds000001__sub-01__ses-2__sub-01_ses-2_T1w",
        "Dataset745_OpenMind__ds000001__sub-02__ses-1__sub-02_ses-1_dwi_FA",
        "Dataset745_OpenMind__ds000001__sub-02__ses-1__sub-02_ses-1_run-2_dwi_FA",
        "Dataset745_OpenMind__ds000002__sub-01__ses-DEFAULT__sub-01_T2w",
    ]
    assert [case.images[0] for case in cases] == [download / "OpenMind" / row["image_path"] for row in ROWS]
    assert [case.info.quality for case in cases] == [2.5, 2.5, 4.0, 4.0, None]
    assert len({case.info.subject for case in cases}) == 3


def test_the_document_is_what_nnssl_writes_with_consistent_names(download):
    document = convert(download).to_dict()
    assert (document["collection_index"], document["collection_name"]) == (745, "Dataset745_OpenMind")
    first = document["datasets"]["ds000001"]
    assert (first["dataset_index"], first["name"]) == ("ds000001", None)
    assert first["dataset_info"] == {
        "image_quality_score": [
            {"modality": "T1w", "derived_from": None, "image_quality_score": 2.5},
            {"modality": "FA", "derived_from": "dwi", "image_quality_score": 4.0},
        ]
    }
    assert first["subjects"]["sub-01"]["subject_info"] == {"age": 26.0, "sex": "F", "race": "x"}
    session = first["subjects"]["sub-02"]["sessions"]["ses-1"]
    assert (session["session_id"], session["session_info"]) == ("ses-1", None)
    assert session["images"][0] == {
        "name": "sub-02_ses-1_dwi_FA.nii.gz",
        "image_path": f"OpenMind/{FA}",
        "modality": "FA",
        "image_info": {
            "derived_from": "dwi",
            "is_brain_extract": True,
            "manufacturer": "Siemens",
            "magnetic_field_strength": 3.0,
        },
        "associated_masks": {"anonymization_mask": None, "anatomy_mask": None},
    }
    second = document["datasets"]["ds000002"]
    assert first["inverted_masks"] == second["inverted_masks"] == ["anatomy_mask"]
    assert second["dataset_info"] == {"image_quality_score": []}
    assert second["subjects"]["sub-01"]["sessions"]["ses-DEFAULT"]["images"][0]["image_info"] == {"echo_time": "0.1 s"}
    assert "NaN" not in json.dumps(document)
    assert Collection.from_dict(document).to_dict() == document


def test_anatomy_masks_are_1_in_the_background_and_the_collection_says_so(download):
    assert all(case.inverted == {"anatomy"} for case in image_cases(convert(download, name="Part")))


def test_a_table_in_another_encoding_or_with_a_shifted_row_is_read_with_a_word(download, caplog):
    table = download / TABLE
    text = table.read_text(encoding="utf-8").replace("Siemens", "Köln")
    table.write_bytes(text.encode("latin-1"))
    images = [image.image_info for *_, image in convert(download).images()]
    assert images[2]["manufacturer"] == "Köln"
    assert f"{table} is not UTF-8 and is read as Latin-1" in caplog.text
    table.write_text(text.replace(",x,", ",x,,,,,,,,,,,,,,,,,,", 1), encoding="utf-8")
    assert len(image_cases(convert(download))) == 4
    assert f"{table}: 1 rows have more cells than the table has columns" in caplog.text
    assert "they are left out, e.g. line 3" in caplog.text
    table.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"openneuro_metadata.csv is encoded in UTF-16. Save it again as UTF-8"):
        convert(download)
    table.write_text(text + '"' + "x" * 200_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"openneuro_metadata.csv, line 7 cannot be read: field larger"):
        convert(download)


def test_masks_are_those_of_the_table_and_an_empty_cell_is_none(download):
    cases = image_cases(convert(download))
    t1 = download / "OpenMind" / "ds000001" / "sub-01" / "anat" / "sub-01_T1w__Data"
    assert (cases[0].anonymization_mask, cases[0].anatomy_mask) == (t1 / "deface_mask.nii.gz", t1 / "fb_mask.nii.gz")
    assert [case.anonymization_mask is None for case in cases] == [False, True, True, True, False]


def test_a_table_written_by_pandas_from_missing_values_reads_the_same(download):
    expected = convert(download).to_dict()
    rows = [{column: row.get(column, str(math.nan)) for column in COLUMNS} for row in ROWS]
    write_table(download, rows)
    assert convert(download).to_dict() == expected


def test_images_may_be_directly_in_the_folder(download):
    for child in (download / "OpenMind").iterdir():
        child.rename(download / child.name)
    (download / "OpenMind").rmdir()
    collection = convert(download)
    assert image_cases(collection)[0].images[0] == download / T1
    assert next(collection.images())[-1].image_path == T1


def test_images_with_one_name_in_a_session_get_longer_ones_whatever_their_order(tmp_path):
    expected = {
        "ds000001/sub-01/ses-1/anat/x.nii.gz": "anat_x.nii.gz",
        "ds000001/sub-01/ses-1/other/x.nii.gz": "other_x.nii.gz",
        "ds000001/sub-01/ses-1/other/y.nii.gz": "y.nii.gz",
        "ds000001/sub-01/ses-2/other/x.nii.gz": "x.nii.gz",
    }
    rows = [{"image_path": path, "modality": "T1w"} for path in expected]
    for order in (rows, rows[::-1]):
        write_table(tmp_path, order)
        collection = convert(tmp_path, check_files=False)
        assert {image.image_path: image.name for *_, image in collection.images()} == expected
        assert len(image_cases(collection)) == 4


def test_a_repeated_row_counts_once(download, caplog):
    write_table(download, [*ROWS, {**ROWS[0], "modality": "T2w"}])
    cases = image_cases(convert(download))
    assert [case.info.modality for case in cases] == [row["modality"] for row in ROWS]
    assert "1 rows of the table repeat the image of an earlier row" in caplog.text


def test_what_was_not_downloaded_is_left_out_and_counted(download, caplog):
    root = download / "OpenMind"
    (root / T2).unlink()
    (root / masks(T1)["anat_mask_path"]).unlink()
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        cases = image_cases(convert(download))
    assert len(cases) == 4
    assert (cases[0].anonymization_mask is None, cases[0].anatomy_mask) == (False, None)
    assert f"1 of 5 images of the table are not in {root} and are left out, e.g. {T2}" in caplog.text
    assert f"1 files of anat_mask_path are not in {root}: their images are used without, e.g. " in caplog.text
    caplog.clear()
    unchecked = image_cases(convert(download, check_files=False))
    assert (len(unchecked), unchecked[0].anatomy_mask is None, caplog.text) == (5, False, "")


def test_a_table_without_images_on_disk_is_refused(tmp_path):
    write_table(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"None of the 5 images of the table is in .*, e.g. ds000001/sub-01/"):
        convert(tmp_path)


def test_a_missing_table_says_what_the_folder_must_hold(download, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        convert(tmp_path)
    assert f"{tmp_path / TABLE} does not exist. The folder (-i) must hold OpenMind's table" in str(caught.value)
    assert "give that folder" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"It is in .*open mind: give that folder"):
        convert(download / "OpenMind")


def test_a_missing_column_is_named(download):
    write_table(download, columns=[c for c in COLUMNS if c not in ("modality", "anat_mask_path")])
    with pytest.raises(ValueError, match=r"openneuro_metadata.csv has no column modality, anat_mask_path. Download"):
        convert(download)
    write_table(download, [])
    with pytest.raises(ValueError, match=r"openneuro_metadata.csv has no rows"):
        convert(download)


@pytest.mark.parametrize("row", [{"image_path": "x.nii.gz", "modality": "T1w"}, {"image_path": T1, "modality": ""}])
def test_a_row_that_leads_to_no_image_is_named_by_its_line(download, row):
    write_table(download, [*ROWS, row])
    with pytest.raises(ValueError, match=r"openneuro_metadata.csv, line 7: image_path '.*' and modality .* must be"):
        convert(download)


def test_another_name_and_number_can_be_given(download):
    collection = convert(download, index=8, name="Part")
    assert (collection.collection_index, collection.collection_name) == (8, "Dataset008_Part")
    absolute = convert(download, absolute=True)
    assert next(absolute.images())[-1].image_path == (download / "OpenMind" / T1).as_posix()
