"""Small files of weights in the layouts in which others publish theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.stunet import STUNet

TINY = {"width": 36, "depth": 2, "heads": 2}


def save(content: Any, file: Path, **options: Any) -> Path:
    torch.save(content, file, **options)
    return file


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every tensor large enough to matter, norms and layer scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def stunet(classes: int = 3, channels: int = 1) -> STUNet:
    return STUNet(
        input_channels=channels,
        num_classes=classes,
        n_stages=3,
        features_per_stage=[4, 8, 12],
        n_blocks_per_stage=1,
        strides=[1, 2, 2],
        kernel_sizes=[3, 3, 3],
        deep_supervision=False,
    )


def primus(patch: tuple[int, int, int] = (16, 16, 24), seed: int = 0, classes: int = 2) -> nn.Module:
    network = build_backbone(
        "PrimusS", architecture={}, input_channels=1, num_classes=classes, patch=patch, settings=TINY
    ).network
    return randomised(network, seed)


def version_1(state: dict[str, Tensor]) -> dict[str, Any]:
    """What nnU-Net v1 and STU-Net write into a ``.model``: logs with NumPy's numbers beside the weights."""
    return {
        "epoch": 4000,
        "state_dict": state,
        "optimizer_state_dict": torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1).state_dict(),
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(-0.1)], [np.float32(0.2)], [], [np.float64(0.5)]),
        "best_stuff": (np.float64(-0.1), np.float64(-0.2), np.float64(0.6)),
        "amp_grad_scaler": {"scale": 65536.0, "_growth_tracker": 7},
    }


def nnssl(
    state: dict[str, Tensor],
    architecture: str,
    trainer: str,
    patch: tuple[int, int, int] | None = (160, 160, 160),
    kwargs: dict[str, Any] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """A checkpoint as nnssl writes it: weights, the adaptation plan, and the collection that it was trained on."""
    transformer = architecture.startswith("Primus")
    encoder = key or ("eva" if transformer else "encoder.stages")
    stem = encoder.replace("eva", "down_projection") if transformer else "encoder.stem"
    projections = ["convs.0.conv", "convs.0.all_modules.0"]
    configuration = {"spacing_style": "onemmiso", "spacing": [1, 1, 1], "patch_size": list(patch) if patch else None}
    return {
        "network_weights": state,
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float64(0.3)], "val_losses": [0.2], "lrs": [0.01]},
        "_best_ema": np.float64(0.2),
        "current_epoch": 1000,
        "init_args": {"plan": {}, "configuration_name": "onemmiso", "fold": "all", "pretrain_json": {"datasets": {}}},
        "trainer_name": trainer,
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": architecture,
                "arch_kwargs": kwargs,
                "arch_kwargs_requiring_import": None,
            },
            "pretrain_plan": {"dataset_name": "Dataset745_OpenMind", "configurations": {"onemmiso": configuration}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [160, 160, 160],
            "key_to_encoder": encoder,
            "key_to_stem": stem,
            "keys_to_in_proj": [f"{stem}.proj"] if transformer else [f"{stem}.{name}" for name in projections],
            "key_to_lpe": f"{encoder}.pos_embed" if transformer else None,
        },
    }
