"""What a run leaves for fine-tuning besides its weights: plans that name the network, and the command to type."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from ssl_pretrain.data.locate import dataset_number
from ssl_pretrain.networks import Backbone
from ssl_pretrain.networks.primus import PrimusBackbone
from ssl_pretrain.networks.tokens import TokenBackbone
from ssl_pretrain.training.prepare import Run
from ssl_pretrain.transfer.plans import write_network_plans


def finetune_command(run: Run, checkpoint: Path, plans_name: str) -> str:
    """The command that fine-tunes with nnU-Net's own trainer; where it needs more than that, what to do instead."""
    fold, configuration = run.config.fold, run.plan.configuration
    number = dataset_number(run.files.name)
    if ":" in run.config.network:
        return (
            f"# {run.config.network} is a network of your own: load {checkpoint} into it with "
            "ssl_pretrain.load_pretrained(network, file), or use a trainer of your own (how-to/fine-tune.md)."
        )
    plans = "" if plans_name == "nnUNetPlans" else f" -p {plans_name}"
    trainer = trainer_of(run.method.backbone)
    plans += f" -tr {trainer}" if trainer else ""
    device = "" if run.config.device == "cuda" else f" -device {run.config.device}"
    # The command has to work from any folder, and a path may have spaces; Windows takes double quotes only.
    path = str(checkpoint.absolute())
    file = subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)
    weights = f"-pretrained_weights {file}{device}"
    if run.files.has_labelled:
        return f"nnUNetv2_train {number} {configuration} {fold}{plans} {weights}"
    taken = f"{plans_name}_from{number}"
    trained_by = f" -tr {trainer}" if trainer else ""
    return "\n    ".join(
        (
            f"# {run.files.name} has no labels. TARGET is the number of the dataset that has; it takes these plans:",
            f"nnUNetv2_move_plans_between_datasets -s {number} -t TARGET -sp {plans_name} -tp {taken}",
            f"nnUNetv2_preprocess -d TARGET -plans_name {taken} -c {configuration}",
            f"nnUNetv2_train TARGET {configuration} 0 -p {taken}{trained_by} {weights}",
        )
    )


def trainer_of(backbone: Backbone) -> str:
    """The trainer that builds a network which nnU-Net's own cannot; none for a U-Net."""
    if not isinstance(backbone, TokenBackbone):
        return ""
    return "PrimusTrainer_ft" if isinstance(backbone, PrimusBackbone) else "UNETRTrainer_ft"


def write_plans(run: Run) -> str:
    """The plans by which fine-tuning builds the network that was pretrained; returns their name.

    Those of the dataset for the network that nnU-Net planned, and for one of the user's own, which no plans can name.
    """
    config = run.config
    if config.network == "plans" or ":" in config.network:
        return run.files.plans.stem
    sizes = "".join(f"_{name}{value}" for name, value in sorted(config.network_settings.items()))
    configuration, backbone = run.plan.configuration, run.method.backbone
    return write_network_plans(run.files.plans, configuration, config.network + sizes, backbone, run.patch).stem
