"""Channels and ending, from the names of the files."""

import pytest

from ssl_pretrain.data.preparation.layout import Layout, layout_of


def test_channels_and_ending_are_those_of_the_first_case(tmp_path):
    for name in ("a_0000.nrrd", "a_0001.nrrd", "b_0000.nrrd", ".hidden_0000.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert layout_of([str(tmp_path)]) == Layout(2, ".nrrd")
    assert layout_of([str(tmp_path / "b_0000.nrrd"), str(tmp_path / "a_0000.nrrd")]) == Layout(1, ".nrrd")


def test_raw_means_the_unlabelled_images_of_the_dataset(tmp_path):
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "a_0000.mha").touch()
    assert layout_of(["raw"], tmp_path) == Layout(1, ".mha")


def test_a_picture_is_no_volume(tmp_path):
    (tmp_path / "slice_0000.png").touch()
    with pytest.raises(ValueError, match=r"slice_0000.png is a 2-D image; pretraining is for 3-D networks"):
        layout_of([str(tmp_path)])
    (tmp_path / "volume_0000.nii.gz").touch()
    assert layout_of([str(tmp_path)]) == Layout(1, ".nii.gz")
