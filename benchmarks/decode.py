"""Does a decoder that computes a share of the masked cells learn as much in the same time?

    OMP_NUM_THREADS=1 python benchmarks/decode.py --datasets 4 221 --work FOLDER --json FILE

For each dataset (preprocessed by nnU-Net, 3d_fullres) and seed, AnatoMask pretrains the plans' network, made smaller,
on the training cases of fold 0, once with the whole decoder and once for each share of ``--shares``, as many steps as
take the time of ``--steps`` whole ones. The validation loss, of all masked cells on every side, is noted at four points
of equal time. Times are the process's own seconds on the CPU: others may be busy beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import write
from benchmarks.teacher import PACE, Side, begin, build_parser, pace, prepared
from ssl_pretrain.report.tables import format_table

POINTS = 4
"""At which the loss is noted, at equal parts of the time."""


def measure(number: int, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """All shares and seeds on a dataset, into the result."""
    # A share takes less time, so more steps and batches.
    run = prepared(number, argparse.Namespace(**{**vars(args), "steps": 5 * args.steps}))
    sides: dict[str, dict[str, Any]] = {"all": {}} | {f"{share:g}": {"decode": share} for share in args.shares}
    training = iter(run.data.train_dataloader())
    seconds = pace(run, [next(training) for _ in range(PACE)], sides)
    row: dict[str, Any] = {"patch": list(run.patch), "step_seconds": seconds, "val_loss": {}}
    result["datasets"][run.files.name] = row
    validation = list(run.data.val_dataloader())
    for seed in range(args.seeds):
        for name, settings in sides.items():
            steps = round(args.steps * seconds["all"] / seconds[name])
            side = Side(replace(run, config=replace(run.config, seed=seed)), settings, steps)
            training, losses = iter(run.data.train_dataloader()), []
            points = {round(steps * part / POINTS) for part in range(1, POINTS + 1)}
            while side.taken < steps:
                side.step(next(training))
                if side.taken in points:
                    losses.append(round(side.loss(validation), 5))
            row["val_loss"].setdefault(name, []).append(losses)
            row.setdefault("steps", {})[name] = steps
            write(result, args.json)


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = [
        (dataset, share, seed, f"{row['step_seconds'][share]:.3f}", row["steps"][share], *(f"{v:.4f}" for v in losses))
        for dataset, row in result["datasets"].items()
        for share, seeds in row["val_loss"].items()
        for seed, losses in enumerate(seeds)
    ]
    times = [f"loss, {part}/{POINTS} of the time" for part in range(1, POINTS + 1)]
    return format_table(("dataset", "decode", "seed", "s a step", "steps", *times), rows)


def main() -> None:
    """Measure and report."""
    parser = build_parser(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of the whole decoder")
    args = parser.parse_args()
    result = begin(args)
    for number in args.datasets:
        measure(number, args, result)
    print(show(result))


if __name__ == "__main__":
    main()
