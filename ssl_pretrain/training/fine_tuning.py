"""What a run leaves for fine-tuning besides its weights: plans that name the network, and the command to type."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from ssl_pretrain.data.locate import dataset_number
from ssl_pretrain.networks.registry import trainer_of
from ssl_pretrain.networks.request import settings_suffix
from ssl_pretrain.training.prepare import Run
from ssl_pretrain.transfer.plans import write_network_plans


def finetune_command(run: Run, checkpoint: Path, plans_file: Path) -> str:
    """The command that fine-tunes with nnU-Net's own trainer; where it needs more than that, what to do instead."""
    plans_name = plans_file.stem
    fold, configuration = run.config.fold, run.plan.configuration
    number = dataset_number(run.files.name)
    if ":" in run.config.network:
        return (
            f"# {run.config.network} is a network of your own: load {checkpoint} into it with "
            "ssl_pretrain.load_pretrained(network, file), or use a trainer of your own (how-to/fine-tune.md)."
        )
    plans = "" if plans_name == "nnUNetPlans" else f" -p {plans_name}"
    backbone = run.method.backbone
    # The plans name every convolutional network, those of the user included, and nnU-Net's own trainer builds it.
    planned = "convolutions" in backbone.offers
    trainer = "" if planned else trainer_of(run.config.network, backbone.architecture)
    plans += f" -tr {trainer}" if trainer else ""
    device = "" if run.config.device == "cuda" else f" -device {run.config.device}"
    # The command has to work from any folder, and a path may have spaces; Windows takes double quotes only.
    path = str(checkpoint.absolute())
    file = subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)
    weights = f"-pretrained_weights {file}{device}"
    copied = _to_be_copied(run)
    if run.files.has_labelled:
        return "\n    ".join((*copied, f"nnUNetv2_train {number} {configuration} {fold}{plans} {weights}"))
    taken = f"{plans_name}_from{number}"
    trained_by = f" -tr {trainer}" if trainer else ""
    return "\n    ".join(
        (
            *copied,
            f"# {run.files.name} has no labels. TARGET is the number of the dataset that has; it takes these plans:",
            f"nnUNetv2_move_plans_between_datasets -s {number} -t TARGET -sp {plans_name} -tp {taken}",
            f"nnUNetv2_preprocess -d TARGET -plans_name {taken} -c {configuration}",
            f"nnUNetv2_train TARGET {configuration} 0 -p {taken}{trained_by} {weights}",
        )
    )


def _to_be_copied(run: Run) -> list[str]:
    """What has to be brought to where nnU-Net looks for it, because it could not be written there."""
    spare = run.files.spare
    files = sorted(spare.glob("*.json")) if spare else []
    places = {"splits_final.json": run.files.splits.parent}
    return [
        f"# First copy {file} to {places.get(file.name, run.files.plans.parent)}: nnU-Net reads it there."
        for file in files
    ]


def write_plans(run: Run) -> Path:
    """The plans by which fine-tuning builds the network that was pretrained; returns the file.

    Those of the dataset for the network that nnU-Net planned, and for one of the user's own, which no plans can name.
    """
    config = run.config
    if config.network == "plans" or ":" in config.network:
        return run.files.plans
    configuration, backbone = run.plan.configuration, run.method.backbone
    name, spare = config.network + settings_suffix(config.network_settings), run.files.spare
    return write_network_plans(run.files.plans, configuration, name, backbone, run.patch, spare)
