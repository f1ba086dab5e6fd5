"""Preprocessed cases in nnU-Net's formats, made in a folder, without running nnU-Net's preprocessing."""

from __future__ import annotations

import errno
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import STRIDES, architecture
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from ssl_pretrain.data.batches import LoadedCrop

NAME, IDENTIFIER = "Dataset007_Made", "nnUNetPlans_3d_fullres"
PATCH = (16, 16, 16)


def volume(index: int, shape: tuple[int, int, int] = (20, 22, 24), channels: int = 1) -> np.ndarray:
    """An image with some structure."""
    rng = np.random.default_rng(index)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = np.sin(3 * grid[0] + index) + grid[1] ** 2 + 0.2 * rng.standard_normal((channels, *shape))
    return image.astype(np.float32)


def write_case(folder: Path, name: str, image: np.ndarray, fmt: str = "b2nd", labels: bool = True) -> None:
    """One case as nnU-Net's dataset classes write it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}*"):
        old.unlink()
    segmentation = np.zeros((1, *image.shape[1:]), dtype=np.int8)
    segmentation[:, 4:8, 4:8, 4:8] = 1
    voxels = np.argwhere(segmentation == 1)
    properties = {"class_locations": {1: voxels}} if labels else {}
    cls = nnUNetDatasetBlosc2 if fmt == "b2nd" else nnUNetDatasetNumpy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls.save_case(image, segmentation, properties, str(folder / name))
    if not labels:
        for file in (folder / f"{name}_seg.b2nd", folder / f"{name}.pkl"):
            file.unlink(missing_ok=True)


def write_unlabelled(
    folder: Path,
    name: str,
    image: np.ndarray,
    info: dict[str, Any] | None = None,
    masks: dict[str, np.ndarray] | None = None,
    made_with: str | None = None,
    about_masks: dict[str, Any] | None = None,
) -> None:
    """One case as ``nnUNetv2_preprocess_unlabeled`` writes it; masks are (D, H, W) by the names of their folders."""
    import blosc2

    write_case(folder, name, image)
    ours: dict[str, Any] = {"info": info or {}}
    if made_with:
        ours["made_with"] = made_with
    if about_masks:
        ours["masks"] = about_masks
    for kind, mask in (masks or {}).items():
        (folder / kind).mkdir(exist_ok=True)
        blosc2.asarray(mask[None].astype(np.uint8), urlpath=str(folder / kind / f"{name}.b2nd"), mode="w")
        if kind == "anatomy":
            ours["anatomy_voxels"] = np.argwhere(mask).astype(np.int32)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps({"ssl_pretrain": ours}))


def made_crop(voxels: torch.Tensor, number: int = 0, *, masked: bool = False) -> LoadedCrop:
    """A finished crop as a loader makes it, of voxels (C, D, H, W)."""
    affine = np.eye(3, 4, dtype=np.float32)
    return LoadedCrop(voxels, None, (0, 0, 0), affine, (1.0, 1.0, 1.0), (0,) * len(voxels), masked, "a", 0, number)


def plans(patch: tuple[int, int, int] = PATCH, strides: str = "isotropic") -> dict[str, Any]:
    """A plans file with a 3-D, a 2-D and a cascaded configuration."""
    three = {
        "data_identifier": IDENTIFIER,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture("plain", STRIDES[strides]),
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "configurations": {
            "2d": {**three, "patch_size": [16, 16], "data_identifier": "nnUNetPlans_2d"},
            "3d_fullres": three,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            "3d_planned_only": {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_elsewhere"},
        },
    }


def write_dataset(root: Path, cases: int = 6, channels: int = 1, **options: Any) -> Path:
    """A preprocessed dataset below ``root`` (to be ``nnUNet_preprocessed``); returns its folder."""
    folder = root / NAME
    for i in range(cases):
        write_case(folder / IDENTIFIER, f"case_{i:02d}", volume(i, channels=channels), **options)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans()))
    names = {str(c): f"phantom{c}" for c in range(channels)}
    dataset = {"channel_names": names, "labels": {"background": 0, "organ": 1}, "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps({**dataset, "file_ending": ".nii.gz"}))
    return folder


def read_properties(file: Path) -> dict[str, Any]:
    """What nnU-Net stored about a case."""
    return pickle.loads(file.read_bytes())


def make_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be written below a folder, as on a file system that is mounted so; permissions do not stop root."""
    original = Path.open

    def refusing(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode[0] in "wax" and path.is_relative_to(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
