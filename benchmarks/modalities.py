"""How well pooled features tell modalities apart, after pretrainings with and without the contrast of DAE.

    python benchmarks/modalities.py RUN [RUN ...] --crops 64 --json FILE

For each run, on clean crops of its validation cases: the share whose nearest crop of another case, by the cosine of the
means of the coarsest map, standardised over the crops, shows the same modality; and the mean cosines within a modality
and between two. The untrained network is the one with which the run began.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, write
from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.data.batches import assemble
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.checkpoints import LATEST
from ssl_pretrain.training.prepare import prepare

HEADERS = ("run", "network", "nearest is of the same", "cosine within", "cosine between")


def compare(vectors: Tensor, modality: Tensor, case: Tensor) -> dict[str, float]:
    """The numbers of a table's row.

    Args:
        vectors: (N, F).
        modality: (N,).
        case: (N,), numbers of the cases.
    """
    unit = normalize((vectors - vectors.mean(0)) / vectors.std(0).clamp_min(1e-6), dim=1)
    cosines, other = unit @ unit.T, case[:, None] != case
    same = modality[:, None] == modality
    nearest = cosines.masked_fill(~other, -torch.inf).argmax(1)
    return {
        "same": float((modality[nearest] == modality).float().mean()),
        "within": float(cosines[same & other].mean()),
        "between": float(cosines[~same].mean()),
    }


@torch.inference_mode()
def measure(folder: Path, crops: int) -> list[dict[str, Any]]:
    """Rows of a run: before and after its training."""
    config = PretrainConfig.from_file(folder / "config.json")
    run = prepare(replace(config, num_workers=0, device="cpu", num_gpus=1, num_nodes=1), resume=True)
    seen = [run.data.val_crops[number] for number in range(crops)]
    batch = assemble(seen)  # type: ignore[arg-type]
    rows = []
    for state in ("untrained", "trained"):
        if state == "trained":
            weights = torch.load(folder / LATEST, map_location="cpu", weights_only=True)["state_dict"]
            run.method.load_state_dict(weights)
        run.method.eval()
        parts = [run.method.backbone.encode(image)[-1].mean((2, 3, 4)) for image in batch["image"].split(4)]
        numbers = compare(torch.cat(parts), batch["modality"][:, 0], torch.tensor(batch["row"]))
        rows.append({"run": folder.name, "network": state, **{name: round(v, 4) for name, v in numbers.items()}})
    return rows


def main() -> int:
    """Measure all runs, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [row for run in args.runs for row in measure(run, args.crops)]
    print(format_table(HEADERS, [tuple(map(str, row.values())) for row in rows]))
    if args.json:
        write({**provenance("cpu"), "crops": args.crops, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
