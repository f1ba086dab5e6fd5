"""Images without labels, from files to a checkpoint, with the commands as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from conftest import TINY, Home, run_command

from ssl_pretrain.data.collection.model import AssociatedMasks, Image
from ssl_pretrain.data.collection.writing import add_image, new_collection, write_collection

pytestmark = pytest.mark.slow

SMALL_NETWORK = ("-patch_size", "16", "24", "16", "-gpu_memory_target", "1")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_labelled_and_unlabelled_cases_are_pretrained_on_together(hippocampus, shared_data, tmp_path):
    """A dataset of twelve labelled cases gets three images more; training goes on after a stop with the same cases."""
    home = hippocampus.copy(tmp_path / "home")
    source = shared_data / home.dataset / "imagesTr"
    target = home.raw / home.dataset / "imagesUn"
    target.mkdir()
    for number, file in enumerate(sorted(source.iterdir())[20:23]):
        shutil.copyfile(file, target / f"new{number}_0000.nii.gz")
    made = run_command(("nnUNetv2_preprocess_unlabeled", "-i", "raw", "-d", home.number, "-np", "1"), home.environment)
    assert "3 of 3 images are preprocessed" in made.stdout
    run = ("nnUNetv2_pretrain", home.number, "3d_fullres", "all", "-o", tmp_path / "run", *TINY)
    done = run_command((*run, "-augment_on", "device"), home.environment)
    assert "12 labelled and 3 unlabelled cases" in done.stdout
    assert "14 cases to train on, 1 to validate on" in done.stdout
    assert "-pretrained_weights" in done.stdout
    assert config_of(tmp_path / "run")["augment_on"] == "device"
    only = run_command((*run[:4], "-use", "unlabeled", "--dry_run", *TINY), home.environment)
    assert "0 labelled and 3 unlabelled cases" in only.stdout
    again = run_command(("nnUNetv2_preprocess_unlabeled", "-i", "raw", "-d", home.number, "-np", "1"), home.environment)
    assert "3 of 3 images are preprocessed" in again.stdout
    assert "(0 of them now" in again.stdout


def write_mask(image: Path, target: Path, part: str) -> str:
    """A mask on the grid of an image: its first quarter, or the middle."""
    voxels = SimpleITK.ReadImage(str(image))
    mask = np.zeros(SimpleITK.GetArrayFromImage(voxels).shape, dtype=np.uint8)
    d, h, w = mask.shape
    mask[(slice(0, d // 4),) if part == "face" else np.s_[d // 3 : -d // 3, h // 3 : -h // 3, w // 3 : -w // 3]] = 1
    written = SimpleITK.GetImageFromArray(mask)
    written.CopyInformation(voxels)
    SimpleITK.WriteImage(written, str(target))
    return str(target)


def test_a_collection_with_subjects_sessions_and_masks_becomes_a_checkpoint(hippocampus, tmp_path):
    """Six images of four subjects; no labelled dataset at all."""
    home = Home(tmp_path / "home", "Dataset746_Study")
    for folder in (home.raw, home.preprocessed, home.results):
        folder.mkdir(parents=True)
    collection = new_collection(746, "Study", tmp_path / "pretrain_data.json")
    images = sorted((hippocampus.raw / hippocampus.dataset / "imagesTr").iterdir())[:6]
    for number, image in enumerate(images):
        face = write_mask(image, tmp_path / f"face{number}.nii.gz", "face")
        body = write_mask(image, tmp_path / f"body{number}.nii.gz", "body")
        masks = AssociatedMasks(anonymization_mask=face, anatomy_mask=body if number else None)
        entry = Image(
            name=image.name, image_path=str(image), modality=("T1w", "T2w")[number == 5], associated_masks=masks
        )
        add_image(collection, "clinic", f"sub-{number // 2}", f"ses-{number % 2}", entry)
    file = write_collection(collection)
    given = ("-i", file, "-d", "746")
    planned = run_command(("nnUNetv2_plan_unlabeled", *given, "-name", "Study", *SMALL_NETWORK), home.environment)
    assert "nnUNetv2_preprocess_unlabeled" in planned.stdout
    run_command(("nnUNetv2_preprocess_unlabeled", *given, "-np", "1"), home.environment)
    settings = (
        "-set",
        "ignore_anonymized=true",
        "sample_in=anatomy",
        "-filter",
        "modality=T1w",
        "-balance",
        "subjects",
    )
    done = run_command(
        ("nnUNetv2_pretrain", "746", "3d_fullres", "all", "-o", tmp_path / "run", *TINY, *settings), home.environment
    )
    assert "0 labelled and 5 unlabelled cases" in done.stdout
    assert "has no labels. TARGET is the number of the dataset that has" in done.stdout
    checkpoint = torch.load(tmp_path / "run" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["pretraining"]["config"]["crops"]["ignore_anonymized"] is True
    assert all(torch.isfinite(v).all() for v in checkpoint["network_weights"].values())


def test_images_of_two_channels(shared_data, tmp_path):
    """CT with the planned dose: every case has two files."""
    source = shared_data / "Dataset222_OpenKBPDose" / "imagesTr"
    home = Home(tmp_path / "home", "Dataset747_Dose")
    for folder in (home.raw, home.preprocessed, home.results, tmp_path / "images"):
        folder.mkdir(parents=True)
    for file in sorted(source.iterdir())[:6]:
        shutil.copyfile(file, tmp_path / "images" / file.name)
    given = ("-i", tmp_path / "images", "-d", "747")
    run_command(
        ("nnUNetv2_plan_unlabeled", *given, "-name", "Dose", "-spacing", "8", "8", "8", *SMALL_NETWORK),
        home.environment,
    )
    made = run_command(("nnUNetv2_preprocess_unlabeled", *given, "-np", "1"), home.environment)
    assert "3 of 3 images are preprocessed" in made.stdout
    run_command(("nnUNetv2_pretrain", "747", "3d_fullres", "all", "-o", tmp_path / "run", *TINY), home.environment)
    weights = torch.load(tmp_path / "run" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert next(iter(weights.values())).shape[1] == 2
