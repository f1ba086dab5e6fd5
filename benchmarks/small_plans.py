"""Plans with a smaller patch and batch for the same preprocessed cases, for machines without a GPU.

    python benchmarks/small_plans.py -d 221 -patch_size 32 64 64 -batch_size 2

writes ``nnUNetPlans_small.json`` beside ``nnUNetPlans.json``; ``-p`` takes other plans, ``-to`` another name. It names
the same folder of cases, so nothing has to be preprocessed again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLANS = "nnUNetPlans"
NAME = f"{PLANS}_small"
CONFIGURATION = "3d_fullres"
PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")


def small_plans(
    plans: dict[str, Any],
    patch: Sequence[int],
    batch: int,
    narrower: int = 1,
    convs: int | None = None,
    stages: int | None = None,
    to: str | None = None,
) -> dict[str, Any]:
    """Plans of another name, patch, batch and width.

    Args:
        plans: nnU-Net's, changed in place.
        patch: voxels per axis; none keeps the planned one.
        batch: crops per step.
        narrower: every stage of the network has so many times fewer channels.
        convs: convolutions at full resolution, where most of a small network's time goes; None keeps them.
        stages: of the network, at most so many; None keeps them.
        to: name of the new plans; None for the old one and ``_small``.
    """
    entry = plans["configurations"][CONFIGURATION]
    entry.update(patch_size=list(patch or entry["patch_size"]), batch_size=batch)
    network = entry["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [width // narrower for width in network["features_per_stage"]]
    stages = min(stages or network["n_stages"], network["n_stages"])
    network["n_stages"] = stages
    for name in PER_STAGE:
        network[name] = network[name][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    if convs is not None:
        network["n_conv_per_stage"][0] = network["n_conv_per_stage_decoder"][-1] = convs
    return {**plans, "plans_name": to or f"{plans['plans_name']}_small"}


def preprocessed_folder(number: int) -> Path:
    """Where nnU-Net has preprocessed a dataset.

    Raises:
        FileNotFoundError: it is not there.
    """
    root = Path(os.environ["nnUNet_preprocessed"])  # noqa: SIM112 - nnU-Net's own name
    folder = next(root.glob(f"Dataset{number:03d}_*"), None)
    if folder is None:
        raise FileNotFoundError(f"Dataset {number} is not in {root}: run nnUNetv2_plan_and_preprocess -d {number}.")
    return folder


def write_small_plans(
    source: Path,
    target: Path,
    patch: Sequence[int],
    batch: int,
    narrower: int = 1,
    convs: int | None = None,
    stages: int | None = None,
    name: str = PLANS,
    to: str | None = None,
) -> Path:
    """Write :func:`small_plans` of the plans of that name in one folder into another; returns the file."""
    plans = json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
    plans = small_plans(plans, patch, batch, narrower, convs, stages, to)
    file = target / f"{plans['plans_name']}.json"
    file.write_text(json.dumps(plans, indent=2), encoding="utf-8")
    return file


def main() -> None:
    """Write the plans of one dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", type=int, required=True)
    parser.add_argument("-patch_size", type=int, nargs=3, default=(), help="default: as planned")
    parser.add_argument("-batch_size", type=int, default=2)
    parser.add_argument("-narrower", type=int, default=1)
    parser.add_argument("-convs", type=int)
    parser.add_argument("-stages", type=int)
    parser.add_argument("-p", dest="plans", default=PLANS)
    parser.add_argument("-to", help="name of the new plans (default: that of -p and _small)")
    given = parser.parse_args()
    folder = preprocessed_folder(given.dataset)
    changes = (given.patch_size, given.batch_size, given.narrower, given.convs, given.stages)
    print(write_small_plans(folder, folder, *changes, name=given.plans, to=given.to))


if __name__ == "__main__":
    main()
