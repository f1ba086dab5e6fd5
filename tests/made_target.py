"""A file of pretrained weights, and another dataset with other plans that nnU-Net is going to fine-tune on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from architectures import architecture, backbone
from made_data import NAME, plans, volume, write_case

from ssl_pretrain.files import save_atomic
from ssl_pretrain.methods import MethodSetup, SparK, SparKConfig
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint

SOURCE_PATCH, TARGET_PATCH = (16, 16, 16), (16, 32, 16)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 1]]
"""A stage more than the source's network has."""

CONFIG = {
    "dataset": NAME,
    "fold": "0",
    "iters": 250,
    "batch_size": 2,
    "network_settings": {},
    "output_folder": "/home/somebody/secret/run",
    "pretrained_weights": "/home/somebody/secret/before.pth",
    "files": {"plans": "/home/somebody/secret/plans.json"},
}


def checkpoint(name: str = "plans", config: dict[str, Any] | None = None) -> dict[str, Any]:
    """What ``checkpoint_final.pth`` of a SparK run holds: 3 stages, 1 channel, 3 classes."""
    torch.manual_seed(7)
    method = SparK(SparKConfig(), MethodSetup(backbone=backbone(name), patch=SOURCE_PATCH))
    provenance = Provenance(
        "SparK", name, CONFIG if config is None else config, plans(), "3d_fullres", SOURCE_PATCH, SparK.citations, 5, 3
    )
    return build_checkpoint(method.backbone, {id(p) for p in method.student.parameters()}, provenance)


def write_checkpoint(folder: Path, **options: Any) -> Path:
    """The same on disk."""
    save_atomic(checkpoint(**options), folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def target_plans(**architectures: dict[str, Any]) -> dict[str, Any]:
    """Plans with 4 stages; further configurations by name, with the network of each."""
    made = plans(TARGET_PATCH)
    made["foreground_intensity_properties_per_channel"] = {}
    made["configurations"]["3d_fullres"]["batch_dice"] = True
    made["configurations"]["3d_fullres"]["normalization_schemes"] *= 2
    made["configurations"]["3d_fullres"]["architecture"] = architecture("plain", STRIDES)
    for name, network in architectures.items():
        made["configurations"][name] = {"inherits_from": "3d_fullres", "architecture": network}
    return made


def target_dataset(channels: int = 2) -> dict[str, Any]:
    """``dataset.json`` with two organs."""
    return {
        "channel_names": {str(channel): f"phantom{channel}" for channel in range(channels)},
        "labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def write_target(preprocessed: Path, channels: int = 2, **architectures: dict[str, Any]) -> Path:
    """The dataset with one case in a folder that is ``nnUNet_preprocessed``."""
    folder = preprocessed / NAME
    made = target_plans(**architectures)
    write_case(folder / made["configurations"]["3d_fullres"]["data_identifier"], "case", volume(0, channels=channels))
    (folder / "nnUNetPlans.json").write_text(json.dumps(made), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(target_dataset(channels)), encoding="utf-8")
    return folder
