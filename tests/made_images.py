"""Raw images and a planned dataset for them, made in a folder, without running nnU-Net's planning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from made_data import NAME, plans, volume

RESAMPLING = {
    f"resampling_fn_{what}{kind}": value
    for what, order in (("data", 3), ("seg", 1))
    for kind, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}

STATISTICS = {"max": 4.0, "mean": 0.3, "median": 0.2, "min": -2.0, "percentile_00_5": -1.0, "percentile_99_5": 2.0}


def write_image(file: Path, voxels: np.ndarray, spacing: Sequence[float] = (1, 1, 1), **geometry: Any) -> Path:
    """An image ``(D, H, W)``; spacing, origin and direction in SimpleITK's order."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing([float(s) for s in spacing])
    if "origin" in geometry:
        image.SetOrigin(geometry["origin"])
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(file))
    return file


def write_images(
    folder: Path, names: Sequence[str], channels: int = 1, ending: str = ".nii.gz", **options: Any
) -> Path:
    """Images of 20 x 22 x 24 voxels by nnU-Net's naming; returns the folder."""
    for i, name in enumerate(names):
        voxels = volume(i, channels=channels)
        for channel in range(channels):
            write_image(folder / f"{name}_{channel:04d}{ending}", voxels[channel], **options)
    return folder


def complete_plans(channels: int = 1, scheme: str = "ZScoreNormalization", **entries: Any) -> dict[str, Any]:
    """A plans file that nnU-Net's preprocessor can work by; ``entries`` replace those of ``3d_fullres``."""
    content = plans()
    for name in ("2d", "3d_fullres"):
        one = content["configurations"][name]
        one |= {**RESAMPLING, "normalization_schemes": [scheme] * channels, "use_mask_for_norm": [False] * channels}
    content["configurations"]["3d_fullres"] |= entries
    statistics = {str(c): {**STATISTICS, "std": 0.8} for c in range(channels)}
    return {**content, "foreground_intensity_properties_per_channel": statistics}


def write_planned(root: Path, channels: int = 1, **entries: Any) -> Path:
    """A dataset below ``root`` (to be ``nnUNet_preprocessed``) that is planned and not preprocessed; its folder."""
    folder = root / NAME
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(complete_plans(channels, **entries)), encoding="utf-8")
    names = {str(c): f"phantom{c}" for c in range(channels)}
    dataset = {"channel_names": names, "labels": {"background": 0, "organ": 1}, "numTraining": 0}
    (folder / "dataset.json").write_text(json.dumps({**dataset, "file_ending": ".nii.gz"}), encoding="utf-8")
    return folder
