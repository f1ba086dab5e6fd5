"""Trainers on plans of a made-up dataset, found by nnU-Net, and epochs of them without data on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import architecture
from nnunetv2.run import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from ssl_pretrain.transfer.extension import trainer_environment

CPU = torch.device("cpu")
STEPS = 2
"""Of an epoch."""
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
PATCH = (16, 16, 16)
PRIMUS = {
    "network_class_name": "dynamic_network_architectures.architectures.primus.Primus",
    "arch_kwargs": {"embed_dim": 24, "eva_depth": 3, "eva_numheads": 2},
    "_kw_requires_import": [],
}
UNETR = {
    "network_class_name": "ssl_pretrain.networks.vit.UNETR",
    "arch_kwargs": {"width": 24, "depth": 4, "heads": 2},
    "_kw_requires_import": [],
}
FLAT = architecture("plain", STRIDES)
FLAT["arch_kwargs"] = {
    key: [entry[1:] for entry in value] if key in ("strides", "kernel_sizes") else value
    for key, value in FLAT["arch_kwargs"].items()
} | {"conv_op": "torch.nn.modules.conv.Conv2d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d"}
NETWORKS = {
    "plain": ("ResEncTrainer", architecture("plain", STRIDES)),
    "residual": ("ResEncTrainer", architecture("residual", STRIDES)),
    "flat": ("ResEncTrainer", FLAT),
    "STUNet": ("STUNetTrainer_small", architecture("plain", STRIDES)),
    "Primus": ("PrimusTrainer", PRIMUS),
    "UNETR": ("UNETRTrainer", UNETR),
}
"""Network -> beginning of its trainers' names, and what the plans name."""

Make = Callable[..., Any]


@cache
def find(name: str) -> type:
    """The class that nnU-Net finds for ``-tr name``; ``find.__wrapped__`` searches again."""
    found = recursive_find_trainer_class_by_name(name)
    assert isinstance(found, type)
    return found


def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Build trainers in ``tmp_path``: ``make(name or class, network="plain", channels=1)``."""
    # Importing a trainer installs the hook; the rest of the session must find nnU-Net as it was.
    monkeypatch.setattr(run_training, "load_pretrained_weights", run_training.load_pretrained_weights)
    monkeypatch.setenv("nnUNet_extTrainer", trainer_environment({})["nnUNet_extTrainer"])
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    data = tmp_path / "preprocessed" / "Dataset900_Made" / "made_3d"
    data.mkdir(parents=True)
    (data / "case.npz").touch()

    def build(trainer: str | type, network: str = "plain", channels: int = 1) -> Any:
        cls = find(trainer) if isinstance(trainer, str) else trainer
        dataset = {
            "labels": {"background": 0, "a": 1, "b": 2},
            "channel_names": {str(channel): "CT" for channel in range(channels)},
            "file_ending": ".nii.gz",
        }
        torch.manual_seed(0)
        return cls(plans(network), "3d_fullres", 0, dataset, CPU)

    return build


def plans(network: str = "plain") -> dict[str, Any]:
    """Plans as ``nnUNetv2_train`` hands them to a trainer."""
    configuration = {
        "data_identifier": "made_3d",
        "patch_size": list(PATCH[1:] if network == "flat" else PATCH),
        "batch_size": 2,
        "batch_dice": True,
        "architecture": NETWORKS[network][1],
    }
    entries = {
        "dataset_name": "Dataset900_Made",
        "plans_name": "made",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
    }
    return json.loads(json.dumps(entries))


def batch(trainer: Any, seed: int) -> dict[str, Any]:
    """A batch whose labels can be told from its image."""
    patch = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, trainer.num_input_channels, *patch, generator=generator)
    target = (image[:, :1] > 0).float() + (image[:, :1] > 1).float()
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else None
    if scales is None:
        return {"data": image, "target": target}
    strides = ([slice(None, None, round(1 / factor)) for factor in scale] for scale in scales)
    return {"data": image, "target": [target[(slice(None), slice(None), *steps)] for steps in strides]}


def run_epochs(trainer: Any, until: int, draw: bool = False) -> None:
    """Epochs as ``nnUNetTrainer.run_training`` runs them, of steps that depend on the number of the epoch alone."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.num_iterations_per_epoch = STEPS
    if not draw:
        trainer.logger.plot_progress_png = lambda folder: None
    for epoch in range(trainer.current_epoch, until):
        torch.manual_seed(epoch)
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(batch(trainer, 10 * epoch + step)) for step in range(STEPS)])
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([trainer.validation_step(batch(trainer, 10 * epoch + 9))])
        trainer.on_epoch_end()


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Parameters by their first names, as they are now."""
    return {name: parameter.detach().clone() for name, parameter in trainer.network.named_parameters()}


def log(trainer: Any) -> str:
    """What the trainer wrote into its log file."""
    return Path(trainer.log_file).read_text(encoding="utf-8")


def state(trainer: Any) -> dict[str, Any]:
    """Weights and the state of the optimiser."""
    return copy.deepcopy({"network": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()})


def equal(one: Any, other: Any) -> bool:
    """Whether nested containers hold the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)
