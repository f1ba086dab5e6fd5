"""``nnUNetv2_plan_unlabeled`` as a user types it: flags, the table, messages, exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from conftest import FEW_PROCESSES, run_command

from ssl_pretrain.cli.plan_unlabeled import main
from ssl_pretrain.data.phantoms import make_phantom

NAME = "Dataset745_OpenMind"


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def images(home):
    folder = home / "my images"
    folder.mkdir()
    for index in range(3):
        image = SimpleITK.GetImageFromArray(make_phantom((24, 32, 32), 0, index)[0])
        SimpleITK.WriteImage(image, str(folder / f"case{index}_0000.nii.gz"))
    return folder


def write_collection(folder: Path, modalities: tuple[str, ...]) -> Path:
    found = [
        {"name": f"im{i}", "image_path": f"case{i}_0000.nii.gz", "modality": modality, "image_info": {}}
        for i, modality in enumerate(modalities)
    ]
    session = {"session_id": "ses-1", "session_info": {}, "images": found}
    subject = {"subject_id": "sub-1", "subject_info": {}, "sessions": {"ses-1": session}}
    dataset = {"dataset_index": 1, "name": "Set", "dataset_info": {}, "subjects": {"sub-1": subject}}
    content = {"collection_index": 745, "collection_name": "OpenMind", "datasets": {"1": dataset}}
    file = folder / "pretrain_data.json"
    file.write_text(json.dumps(content))
    return file


def run(source: object, *arguments: str) -> int:
    return main(["-i", str(source), "-d", "745", "-name", "OpenMind", "-np", "0", *arguments])


def test_it_shows_what_was_planned_and_what_to_type_next(home, images, capsys):
    assert run(images, "-network", "ResEncM", "-spacing", "2", "1", "1", "-patch_size", "16", "32", "32") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    folder = home / "nnUNet_preprocessed" / NAME
    for line in (
        "3d_fullres nnUNetResEncUNetMPlans",
        "images 3",
        "channels and normalisation image: ZScore",
        "axes of the image array 0, 1, 2, as they are",
        "median spacing 1 x 1 x 1 mm",
        "resampling to 2 x 1 x 1 mm",
        "median shape, resampled 12 x 32 x 32 voxels",
        "network ResidualEncoderUNet, 4 stages",
        "strides 1x2x2, 2x2x2, 2x2x2",
        "patch size 16 x 32 x 32 voxels",
        "batch size 2",
        f"Plans: {folder / 'nnUNetResEncUNetMPlans.json'}",
        f"Fingerprint: {folder / 'dataset_fingerprint.json'}",
        f"nnUNetv2_preprocess_unlabeled -i '{images}' -d 745 -c 3d_fullres -p nnUNetResEncUNetMPlans",
    ):
        assert line in lines


def test_without_resampling_the_table_says_so(home, images, capsys):
    assert run(images, "-spacing", "none", "-p", "asTheyAre", "-gpu_memory_target", "4") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "resampling none median shape 24 x 32 x 32 voxels" in out
    assert "-p asTheyAre" in out


def test_of_many_files_the_next_command_shows_the_first(home, images, capsys):
    files = sorted(map(str, images.iterdir()))
    again = images / "case3_0000.nii.gz"
    again.write_bytes(Path(files[0]).read_bytes())
    assert main(["-i", *files, str(again), "-d", "745", "-name", "OpenMind", "-np", "0"]) == 0
    assert f"-i '{files[0]}' … -d 745" in capsys.readouterr().out


def test_of_a_collection_only_what_the_filters_keep_is_planned(home, images, capsys):
    collection = write_collection(images, ("CT", "T1w", "CT"))
    assert run(collection, "-filter", "modality=CT", "quality!=1") == 1
    assert "No image left after the filters" in capsys.readouterr().err
    assert run(collection, "-filter", "modality=CT") == 0
    out = capsys.readouterr().out
    assert "channels and normalisation  CT: CT" in out
    assert "-filter modality=CT" in out
    assert json.loads((home / "nnUNet_raw" / NAME / "dataset.json").read_text())["numTraining"] == 2


def test_images_in_the_raw_dataset(home, images, capsys):
    (home / "nnUNet_raw" / NAME).mkdir()
    images.rename(home / "nnUNet_raw" / NAME / "imagesUn")
    assert run("raw", "-channel_names", "MR") == 0
    out = capsys.readouterr().out
    assert "MR: ZScore" in out
    assert "nnUNetv2_preprocess_unlabeled -i raw -d 745" in out


def test_a_broken_image_is_left_out_and_makes_the_exit_status_1(home, images, capsys):
    (images / "case0_0000.nii.gz").write_text("version https://git-lfs.github.com/spec/v1")
    assert run(images) == 1
    shown = capsys.readouterr()
    file = home / "nnUNet_preprocessed" / NAME / "failed.json"
    assert f"1 of 3 images cannot be used and are left out of the plans; the reasons are in {file}" in shown.err
    assert "images                      2" in shown.out
    assert f"FAILED case0: {images / 'case0_0000.nii.gz'} is a pointer of Git LFS" in shown.out
    assert "Git LFS" in json.loads(file.read_text())[0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-spacing", "1", "1"], "The spacing is three numbers in mm above 0, median or none, got (1.0, 1.0)"),
        (["-spacing", "mean"], "median or none, got mean (-spacing)"),
        (["-network", "UNETR"], "Unknown network 'UNETR'. Choose from PlainConvUNet"),
        (["-patch_size", "0", "16", "16"], "-patch_size must be one or three positive whole numbers"),
        (["-patch_size", "17", "32", "32"], "is not divisible by the strides"),
        (["-np", "-1"], "The number of processes must be 0 or more, got -1"),
        (["-channel_names", "CT", "dose"], "There are 2 names for the 1 channels of case0 (-channel_names)"),
        (["-filter", "modality~CT"], "there is no operator '~'"),
    ],
)
def test_bad_flags_end_with_one_clear_line_and_status_1(home, images, capsys, arguments, message):
    assert run(images, *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error


def test_bad_inputs_end_with_one_clear_line_and_status_1(home, images, capsys, monkeypatch):
    (home / "flat_0000.png").touch()
    (home / "empty").mkdir()
    for source, message in (
        (home / "empty", "empty: no image with the ending"),
        (home / "gone.json", "gone.json does not exist. Name folders"),
        (home / "gone_0000.nii.gz", "gone_0000.nii.gz does not exist"),
        (home / "flat_0000.png", "is a 2-D image; pretraining is for 3-D networks"),
        ("raw", "neither"),
    ):
        assert run(source) == 1
        assert message in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_raw")
    assert run(images) == 1
    assert "The environment variable nnUNet_raw is not set" in capsys.readouterr().err


def test_the_installed_command_plans_real_scans_in_processes_of_its_own(home, shared_data):
    files = sorted((shared_data / "Dataset221_OpenKBP" / "imagesUn").iterdir())[:3]
    command = ("nnUNetv2_plan_unlabeled", "-i", *files, "-d", "745", "-name", "OpenMind", "-channel_names", "CT")
    env = {**FEW_PROCESSES, "PATH": "", **{p.name: str(p) for p in home.glob("nnUNet_*")}}
    done = run_command((*command, "-np", "1"), env)
    assert "images                      3" in done.stdout
    assert "CT: CT" in done.stdout
    assert "Reading images: 100%" in done.stderr
    assert "Attempting" not in done.stdout
    fingerprint = json.loads((home / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json").read_text())
    # Air is -1024 in these scans and is left out.
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"]["min"] > -1024
    assert np.array(fingerprint["spacings"]).shape == (3, 3)
