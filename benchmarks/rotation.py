"""How often a network tells by how much crops of validation cases are turned: trained against untrained.

    python benchmarks/rotation.py RUN [RUN ...] --batch 8 --batches 16 --json FILE

For runs of the method that predicts rotations. Views are those of the pretext task, cut out as in training; a quarter
is chance. The untrained network is the one with which the run began.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, write
from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.data.batches import assemble
from ssl_pretrain.methods.base import VALIDATION_STREAM
from ssl_pretrain.methods.swinunetr_pretraining import SwinUNETRPretraining
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.checkpoints import LATEST
from ssl_pretrain.training.prepare import prepare

HEADERS = ("run", "network", "views", "untrained", "trained")


@torch.inference_mode()
def measure(folder: Path, batch: int, batches: int) -> dict[str, Any]:
    """The row of a run.

    Args:
        folder: of the run.
        batch: samples of a batch, each of two crops with two views.
        batches: to average over.
    """
    config = PretrainConfig.from_file(folder / "config.json")
    run = prepare(replace(config, num_workers=0, device="cpu", num_gpus=1, num_nodes=1), resume=True)
    method = run.method
    assert isinstance(method, SwinUNETRPretraining)
    drawn = []
    for number in range(batches):
        samples = [run.data.val_crops[number * batch + i] for i in range(batch)]
        seeded = method.seeded(assemble(samples), VALIDATION_STREAM)  # type: ignore[arg-type]
        drawn.append(method.draw(seeded, torch.Generator()))
    shares: dict[str, float] = {}
    for state in ("untrained", "trained"):
        if state == "trained":
            method.load_state_dict(torch.load(folder / LATEST, map_location="cpu", weights_only=True)["state_dict"])
        method.eval()
        right = [(method.network(one.views).rotation.argmax(1) == one.turns).float().mean() for one in drawn]
        shares[state] = round(fmean(map(float, right)), 4)
    views = sum(len(one.turns) for one in drawn)
    return {"run": folder.name, "network": config.network, "views": views, **shares}


def main() -> int:
    """Measure all runs, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--batch", type=int, default=8, help="samples of a batch; each has four views")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(run, args.batch, args.batches) for run in args.runs]
    print(format_table(HEADERS, [tuple(map(str, row.values())) for row in rows]))
    if args.json:
        write({**provenance("cpu"), "batch": args.batch, "batches": args.batches, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
