"""Did finished pretrainings learn to look at the image? Their answers against the mean of their answers.

    python benchmarks/plateau.py study_work/221/unet/pretrained/* --json benchmarks/results/cpu_plateau.json

measures, on the validation batches, what ``nnUNetv2_pretrain`` measures in its last epoch. The dataset must be where it
was, and ``checkpoint_latest.ckpt`` beside the weights.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.checkpoints import LATEST
from ssl_pretrain.training.plateau import mean_answers
from ssl_pretrain.training.prepare import prepare

HEADERS = ("run", "validation loss", "of the mean answer", "ratio")


@torch.inference_mode()
def measure(folder: Path) -> dict[str, Any]:
    """Validation loss of a run's last weights, and with every answer replaced by the mean answer of its batch.

    Args:
        folder: of the run.
    """
    config = PretrainConfig.from_file(folder / "config.json")
    run = prepare(replace(config, num_workers=0, device="cpu", num_gpus=1, num_nodes=1), resume=True)
    run.method.load_state_dict(torch.load(folder / LATEST, map_location="cpu", weights_only=True)["state_dict"])
    run.method.eval()
    run.data.setup("fit")
    real, mean = [], []
    for i, loaded in enumerate(run.data.val_dataloader()):
        batch = run.data.on_after_batch_transfer(loaded, 0)
        real.append(float(run.method.validation_step(batch, i)))
        with mean_answers(run.method.judged):
            mean.append(float(run.method.validation_step(batch, i)))
    name = "/".join(folder.parts[-4:])
    return {"run": name, "method": config.method, "loss": fmean(real), "loss_of_mean": fmean(mean)}


def cells(row: Mapping[str, Any]) -> list[str]:
    """Cells of :data:`HEADERS`."""
    loss, mean = row["loss"], row["loss_of_mean"]
    return [row["run"], f"{loss:.3f}", f"{mean:.3f}", f"{loss / mean:.3f}"]


def main() -> None:
    """Measure the runs one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("ssl_pretrain").setLevel(logging.ERROR)
    rows = [measure(folder) for folder in given.folders]
    print(format_table(HEADERS, [cells(row) for row in rows]))
    if given.json:
        given.json.write_text(json.dumps({"torch": torch.__version__, "runs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
