"""Which images are found under which names, and what is said of names that cannot be."""

import json
import shutil

import pytest
from made_images import write_images

from ssl_pretrain.data.preparation.image_case import ImageError
from ssl_pretrain.data.preparation.sources import find_images, readable_endings


def touch(folder, *names):
    """Names are all that is looked at here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def find(*inputs, channels=1, **options):
    return find_images([str(i) for i in inputs], channels=channels, file_ending=".nii.gz", **options)


def refused(*inputs, kind=ImageError, **options):
    with pytest.raises(kind) as error:
        find(*inputs, **options)
    return str(error.value)


def test_a_folder_by_channel_names(tmp_path):
    folder = touch(tmp_path / "a b", *(f"{case}_{c:04d}.nii.gz" for case in ("x_2", "x_10", "y_0000") for c in (1, 0)))
    touch(folder, "notes.txt", ".hidden_0000.nii.gz", "._x_2_0000.nii.gz", "x_2.json")
    (folder / "older").mkdir()
    cases = find(folder, channels=2)
    assert [case.identifier for case in cases] == ["x_10", "x_2", "y_0000"]
    assert [file.name for file in cases[1].images] == ["x_2_0000.nii.gz", "x_2_0001.nii.gz"]
    assert all(case.anatomy_mask is None and case.anonymization_mask is None for case in cases)


def test_subjects_are_unique_over_datasets_and_nothing_else_is_claimed(tmp_path):
    folder = touch(tmp_path / "images", "x_0000.nii.gz")
    assert find(folder)[0].info.to_dict() == {"subject": "x"}
    raw = tmp_path / "Dataset007_Made"
    assert find(folder, raw_dataset=raw)[0].info.to_dict() == {"subject": "Dataset007_Made__x"}


def test_all_endings_that_the_reader_reads(tmp_path):
    assert readable_endings(".nii.gz") == (".nii.gz", ".gipl", ".nrrd", ".mha", ".nii")
    assert set(readable_endings(".tif")) >= {".tif", ".tiff", ".png"}
    names = [f"{i}_0000{ending}" for i, ending in enumerate(readable_endings(".nii.gz"))]
    cases = find(touch(tmp_path / "mixed", *names))
    assert [case.images[0].name for case in cases] == names


def test_files_folders_and_raw_together(tmp_path):
    raw = tmp_path / "Dataset007_Made"
    touch(raw / "imagesTs", "t_0000.nii.gz")
    touch(raw / "imagesUn", "u_0000.nii.gz")
    touch(raw / "imagesTr", "labelled_0000.nii.gz")
    folder = touch(tmp_path / "more", "m_0000.nii.gz", "n_0000.nii.gz")
    single = touch(tmp_path / "single", "s_0000.mha", "other_0000.mha") / "s_0000.mha"
    cases = find("raw", folder, single, raw_dataset=raw)
    assert [case.identifier for case in cases] == ["m", "n", "s", "t", "u"]
    shutil.rmtree(raw / "imagesTs")
    assert [case.identifier for case in find("raw", raw_dataset=raw)] == ["u"]


def test_raw_without_unlabelled_images(tmp_path):
    touch(tmp_path / "Dataset007_Made" / "imagesTr", "x_0000.nii.gz")
    message = refused("raw", raw_dataset=tmp_path / "Dataset007_Made", kind=FileNotFoundError)
    assert "imagesTs nor" not in message
    for part in ("imagesTs and ", "imagesUn exists", "Put them into", "or name their folder"):
        assert part in message
    assert "needs a dataset" in refused("raw", kind=ValueError)


def test_a_collection(tmp_path):
    images = write_images(tmp_path / "images", ["x", "y"])
    session = {
        "session_id": "s1",
        "images": [
            {"name": f"{n}_0000.nii.gz", "image_path": str(images / f"{n}_0000.nii.gz"), "modality": "T1w"}
            for n in "xy"
        ],
    }
    subject = {"subject_id": "p1", "sessions": {"s1": session}}
    content = {
        "collection_index": 1,
        "collection_name": "C",
        "datasets": {"d": {"dataset_index": "d", "subjects": {"p1": subject}}},
    }
    file = tmp_path / "pretrain_data.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    cases = find(file)
    assert [case.identifier for case in cases] == ["C__d__p1__s1__x_0000", "C__d__p1__s1__y_0000"]
    assert cases[0].info.modality == "T1w"
    message = refused(file, channels=2)
    assert "The dataset has 2 channels, the images of" in message
    assert "have 1: C__d__p1__s1__x_0000" in message
    assert "does not exist. Name folders" in refused(tmp_path / "gone.json", kind=FileNotFoundError)
    assert "If pretrain_data.json describes a collection, name that file" in refused(tmp_path, kind=FileNotFoundError)


def test_folders_without_images(tmp_path):
    assert "It is empty" in refused(touch(tmp_path / "empty"), kind=FileNotFoundError)
    assert "no image with the ending .nii.gz or" in refused(touch(tmp_path / "png", "a.png"), kind=FileNotFoundError)
    assert "There: a.png" in refused(tmp_path / "png", kind=FileNotFoundError)
    message = refused(tmp_path, kind=FileNotFoundError)
    assert "There are folders, such as empty; they are not searched" in message
    assert "does not exist. Name folders" in refused(tmp_path / "gone", kind=FileNotFoundError)
    assert "does not end in .nii.gz or .gipl" in refused(tmp_path / "png" / "a.png")


def test_labels_are_no_images(tmp_path):
    labels = touch(tmp_path / "labelsTr", "x.nii.gz", "y.nii.gz")
    message = refused(labels)
    assert f"Files without the number of a channel: {labels / 'x.nii.gz'}, {labels / 'y.nii.gz'}. " in message
    assert "labelsTr looks like a folder of labels: name the folder of the images" in message


def test_names_without_a_channel_say_how_to_rename(tmp_path):
    folder = touch(tmp_path / "images", "a_0000.nii.gz", *(f"{c}.nii.gz" for c in "bcdef"))
    message = refused(folder)
    assert f"Files without the number of a channel: {folder / 'b.nii.gz'}, " in message
    assert "d.nii.gz and 2 more. " in message
    assert "an image with a single channel is called b_0000.nii.gz" in message
    assert "nnUNetv2_make_collection" in message


def test_missing_and_surplus_channels(tmp_path):
    folder = touch(tmp_path / "images", "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    message = refused(folder, channels=2)
    assert f"The dataset has 2 channels, but these are missing: {folder / 'b_0001.nii.gz'}. Add" in message
    message = refused(folder, channels=1)
    assert "The dataset has 1 channel, there are files of others" in message
    assert "a_0001.nii.gz" in message
    assert "b_0000" not in message
    # A second channel in another format is another image.
    assert "these are missing" in refused(touch(tmp_path / "two", "a_0000.nii.gz", "a_0001.mha"), channels=2)


def test_two_images_with_one_name(tmp_path):
    one, two = (touch(tmp_path / name, "a_0000.nii.gz") for name in ("one", "two"))
    message = refused(one, two)
    assert "Two images with one name, a: " in message
    assert str(one / "a_0000.nii.gz") in message
    assert str(two / "a_0000.nii.gz") in message
    touch(one, "a_0000.mha")
    assert "a_0000.mha" in refused(one)
    assert "Two images with one name" in refused(two, two / "a_0000.nii.gz")


def test_a_name_that_nnunet_keeps_for_segmentations(tmp_path):
    message = refused(touch(tmp_path / "images", "a_0000.nii.gz", "a_seg_0000.nii.gz"))
    assert "nnU-Net keeps names that end in _seg for segmentations" in message
