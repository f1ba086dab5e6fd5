"""The demo's phantoms: repeatable, complete, different from each other, and a dataset that nnU-Net accepts."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_pretrain.data.phantoms import LABELS, make_phantom, write_phantom_dataset

SHAPE = (32, 40, 40)


def test_a_phantom_is_a_pure_function_of_seed_and_index() -> None:
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = make_phantom(SHAPE, seed=3, index=5)
    make_phantom(SHAPE, seed=3, index=4)
    second = make_phantom(SHAPE, seed=3, index=5)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("seed", "index"), [(3, 6), (4, 5), (5, 3)])
def test_another_seed_or_index_gives_another_phantom(seed: int, index: int) -> None:
    image, labels = make_phantom(SHAPE, seed=3, index=5)
    other_image, other_labels = make_phantom(SHAPE, seed=seed, index=index)
    assert not np.array_equal(image, other_image)
    assert not np.array_equal(labels, other_labels)


def test_types_and_shape() -> None:
    image, labels = make_phantom((16, 24, 20), seed=0, index=0)
    assert image.shape == labels.shape == (16, 24, 20)
    assert image.dtype == np.float32
    assert labels.dtype == np.uint8
    assert np.isfinite(image).all() and image.min() >= 0


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 40, 40), (24, 64, 48)])
def test_every_label_is_in_every_phantom(shape: tuple[int, int, int]) -> None:
    for index in range(25):
        _, labels = make_phantom(shape, seed=1, index=index)
        counts = np.bincount(labels.ravel(), minlength=len(LABELS))
        assert len(counts) == len(LABELS)
        assert counts[1:].min() >= 0.005 * labels.size
        assert counts[0] > 0.75 * labels.size


def test_organs_stand_out_but_not_by_one_threshold_each() -> None:
    """The mean greys of the organs differ by less than the greys within the textured ones."""
    image, labels = make_phantom((48, 64, 64), seed=0, index=0)
    means = [image[labels == label].mean() for label in (1, 2, 3)]
    spreads = [image[labels == label].std() for label in (1, 2, 3)]
    body = np.median(image[(labels == 0) & (image > 50)])
    assert min(means) > body + 15
    assert spreads[0] < spreads[1] and spreads[0] < spreads[2]
    assert abs(means[2] - means[0]) < spreads[2]


@pytest.mark.parametrize(
    ("shape", "seed", "index", "message"),
    [((8, 40, 40), 0, 0, r"\(8, 40, 40\).*16 voxels"), (SHAPE, -1, 0, "seed -1"), (SHAPE, 0, -2, "index -2")],
)
def test_impossible_phantoms_are_refused(shape: tuple[int, int, int], seed: int, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_phantom(shape, seed, index)


def test_nnunet_accepts_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    folder = write_phantom_dataset(tmp_path / "Dataset990_Phantom", cases=5, shape=(16, 20, 24), seed=2)
    assert folder == tmp_path / "Dataset990_Phantom"
    verify_dataset_integrity(str(folder), num_processes=1)
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["numTraining"] == 5
    assert get_normalization_scheme(description["channel_names"]["0"]) is ZScoreNormalization


def test_files_hold_the_phantoms_whatever_their_number(tmp_path: Path) -> None:
    import SimpleITK

    write_phantom_dataset(tmp_path / "Dataset991_Five", cases=5, shape=(16, 20, 24), seed=2)
    write_phantom_dataset(tmp_path / "Dataset992_Six", cases=6, shape=(16, 20, 24), seed=2)
    image, labels = make_phantom((16, 20, 24), seed=2, index=4)
    for folder in ("Dataset991_Five", "Dataset992_Six"):
        read = SimpleITK.ReadImage(str(tmp_path / folder / "imagesTr" / "phantom_004_0000.nii.gz"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(read), image)
        read = SimpleITK.ReadImage(str(tmp_path / folder / "labelsTr" / "phantom_004.nii.gz"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(read), labels)


@pytest.mark.parametrize("name", ["Phantom", "Dataset9_Phantom", "Dataset990-Phantom"])
def test_names_that_nnunet_would_not_find_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*DatasetXXX_Name"):
        write_phantom_dataset(tmp_path / name)


def test_too_few_cases_and_folders_in_use_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset990_Phantom"
    with pytest.raises(ValueError, match=r"cases=4.*at least 5"):
        write_phantom_dataset(folder, cases=4)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        write_phantom_dataset(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
