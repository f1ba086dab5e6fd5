"""Does a coarse teacher rank the cells as a full one does, and does what it saves help?

    OMP_NUM_THREADS=1 python benchmarks/teacher.py --datasets 4 221 --work FOLDER --json FILE

For each dataset (preprocessed by nnU-Net, 3d_fullres), AnatoMask with a coarse teacher pretrains the plans' network,
made smaller, on the training cases of fold 0. An average of the student that is not cut says at some points what the
coarse and what the full teacher think of the same masked cells of validation crops:

- ``rank``: Spearman's correlation of the two ratings over the masked cells of a crop, mean over the crops;
- ``hard``: share of the cells that are hard to both, half-way up the ramp;

for each kind of difficulty, and the same for ``contrast``: the rating of a teacher that answers 0 whatever it sees.

Then a run with the full teacher takes as many steps as fit into the same time, and the validation losses are compared.
Times are the process's own seconds on the CPU: others may be busy beside it. FILE is written after every point.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, write
from benchmarks.small_plans import CONFIGURATION, preprocessed_folder, write_small_plans
from ssl_pretrain import PretrainConfig
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.functional.losses import Difficulty, cell_difficulty
from ssl_pretrain.functional.masking import sample_masks
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods import AnatoMask, MethodSetup, RunLength
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.methods.teacher import Teacher
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.prepare import Run, prepare

KINDS = get_args(Difficulty)
PATCHES = {4: (40, 40, 40), 221: (32, 64, 64)}
"""By number of the dataset; others as planned. The first has cells of 8 voxels per axis, the second of 16."""

EPOCHS = 10
"""Of a run, which the ramp of hard cells and the teacher's decay follow."""

PACE = 10
"""Steps of both sides, in turns, that say how many take the same time."""


class Stepping(AnatoMask):
    """AnatoMask that is told its epoch: there is no trainer."""

    epoch = 0

    @property
    def current_epoch(self) -> int:
        """Number of the running epoch."""
        return self.epoch


class Side:
    """AnatoMask with some settings and its optimiser, ready to take steps."""

    def __init__(self, run: Run, settings: dict[str, Any], steps: int) -> None:
        torch.manual_seed(run.config.seed)
        sizes = {"input_channels": run.plan.input_channels, "num_classes": run.plan.num_classes, "patch": run.patch}
        backbone = build_backbone("plans", architecture=run.plan.architecture, **sizes)
        length = RunLength(EPOCHS, math.ceil(steps / EPOCHS), run.method.length.batch_size)
        task = run.config.with_settings(settings).task
        setup = MethodSetup(backbone=backbone, patch=run.patch, length=length, seed=run.config.seed)
        self.method = Stepping(cast("Any", task), setup).train()
        self.method.tune()
        optimization = self.method.configure_optimizers()
        self.optimizer, self.schedule = optimization["optimizer"], optimization["lr_scheduler"]["scheduler"]
        self.parameters = [p for p in self.method.trained.parameters() if p.requires_grad]
        self.taken = 0

    def step(self, batch: Any) -> float:
        """One training step; its seconds."""
        started = time.process_time()
        self.method.train()
        self.method.epoch = self.taken // self.method.length.iterations
        self.method(self.method.seeded(batch, 1), self.method.generator_for(1, self.taken)).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.method.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.method.update_teachers()
        self.taken += 1
        return time.process_time() - started

    def loss(self, batches: list[Any]) -> float:
        """Validation loss."""
        self.method.eval()
        with torch.no_grad():
            return statistics.mean(self.method.validation_step(b, i).item() for i, b in enumerate(batches))


def prepared(number: int, args: argparse.Namespace) -> Run:
    """Data and settings of a dataset; its plans with a small patch and network are in the work folder."""
    source, folder = preprocessed_folder(number), args.work / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    plans = write_small_plans(source, folder, PATCHES.get(number, ()), args.batch, args.narrower, 1, 5)
    files = {
        "preprocessed": str(source / json.loads(plans.read_text())["configurations"][CONFIGURATION]["data_identifier"]),
        "splits": str(folder / "splits_final.json"),
        "dataset_json": str(source / "dataset.json"),
        "plans": str(plans),
    }
    config = PretrainConfig(
        dataset=str(number),
        fold="0",
        output_folder=str(folder),
        epochs=1,
        iters=args.steps + 2 * PACE,
        val_iters=args.crops // args.batch,
        num_workers=0,
        device="cpu",
        files=files,
    )
    settings = {"lr": 1e-3, "ema_start": 0.95, "ema_end": 0.99, "decoder_width": args.decoder_width}
    return prepare(config.with_settings(settings))


def compare(whole: Teacher, method: AnatoMask, batches: list[Any]) -> dict[str, dict[str, float]]:
    """How alike the ratings are, by what is compared to the full one and kind of difficulty."""
    whole.eval()
    hard = math.floor(method.masked * method.config.hard_share / 2)
    found: dict[str, list[tuple[float, float]]] = {}
    for number, batch in enumerate(batches):
        image = batch["image"]
        mask = sample_masks(
            [np.random.default_rng([number, i]) for i in range(len(image))], method.grid, method.masked, image.device
        )
        with torch.inference_mode():
            fine, coarse = map(method.cells_of, cast("SparKNetwork", whole.module).both(image, mask))
        cells = to_cells(image, method.cell)
        for kind in KINDS:
            full = cell_difficulty(fine, cells, kind)
            others = {"coarse": cell_difficulty(coarse, cells, kind)}
            if kind != "normalized":
                others["contrast"] = cell_difficulty(torch.zeros_like(fine), cells, kind)
            for name, rating in others.items():
                pairs = zip(full, rating, mask.flatten(1), strict=True)
                found.setdefault(f"{name}, {kind}", []).extend(alike(f[m], r[m], hard) for f, r, m in pairs)
    return {
        name: {
            "rank": round(statistics.mean(r for r, _ in both), 4),
            "hard": round(statistics.mean(h for _, h in both), 4),
        }
        for name, both in found.items()
    }


def alike(first: Tensor, second: Tensor, hard: int) -> tuple[float, float]:
    """Spearman's correlation of two ratings (M,), and the share of the ``hard`` highest that they have in common."""
    ranks = np.corrcoef(*(rating.argsort().argsort().double().numpy() for rating in (first, second)))
    highest = [set(rating.topk(hard).indices.tolist()) for rating in (first, second)]
    return float(ranks[0, 1]), len(highest[0] & highest[1]) / hard


def pace(run: Run, batches: list[Any], compared: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step with each of some settings by their names, medians; all sides take turns."""
    sides = {name: Side(run, settings, PACE) for name, settings in compared.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        for name, side in sides.items():
            seconds[name].append(side.step(batch))
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def measure(number: int, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Everything about a dataset, into the result."""
    run = prepared(number, args)
    validation, training = list(run.data.val_dataloader()), iter(run.data.train_dataloader())
    teachers = {name: {"teacher": name} for name in ("coarse", "full")}
    steps = pace(run, [next(training) for _ in range(PACE)], teachers)
    row: dict[str, Any] = {"patch": list(run.patch), "step_seconds": steps, "alike": {}, "val_loss": {}}
    result["datasets"][run.files.name] = row
    coarse = Side(run, teachers["coarse"], args.steps)
    row |= {"cell": list(coarse.method.cell), "masked": coarse.method.masked}
    whole = Teacher(coarse.method.student)
    for _ in range(args.steps):
        decay = coarse.method.teachers()[0][2]
        coarse.step(next(training))
        whole.follow(coarse.method.student, decay)
        if coarse.taken in (*args.points, args.steps):
            row["alike"][str(coarse.taken)] = compare(whole, coarse.method, validation)
            row["val_loss"][f"coarse, {coarse.taken} steps"] = coarse.loss(validation)
            write(result, args.json)
    affordable = round(args.steps * steps["coarse"] / steps["full"])
    full, training = Side(run, teachers["full"], affordable), iter(run.data.train_dataloader())
    for _ in range(affordable):
        full.step(next(training))
    row["val_loss"][f"full, {affordable} steps"] = full.loss(validation)
    write(result, args.json)


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    rows = [
        (name, step, what, f"{value['rank']:.3f}", f"{value['hard']:.3f}")
        for name, row in result["datasets"].items()
        for step, found in row["alike"].items()
        for what, value in found.items()
    ]
    lines = [format_table(("dataset", "steps", "against full", "rank", "hard"), rows)]
    for name, row in result["datasets"].items():
        losses = ", ".join(f"{loss:.4f} ({what})" for what, loss in row["val_loss"].items())
        lines.append(f"{name}: {row['step_seconds']} s a step, validation loss {losses}")
    return "\n".join(lines)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """What every comparison of two sides is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, nargs="+", default=[4, 221])
    parser.add_argument("--crops", type=int, default=20, help="validation crops")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--narrower", type=int, default=4, help="divides the channels of the plans' network")
    parser.add_argument("--decoder_width", type=int, default=64, help="at the coarsest map")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    return parser


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The result before anything is measured."""
    args.work = args.work.resolve()
    keep_freed_memory()
    settings = {k: v for k, v in vars(args).items() if k not in ("json", "work")}
    return {"settings": settings, **provenance("cpu"), "datasets": {}}


def main() -> None:
    """Measure and report."""
    parser = build_parser(__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--points", type=int, nargs="+", default=[50], help="steps after which to compare, and the last"
    )
    args = parser.parse_args()
    result = begin(args)
    for number in args.datasets:
        measure(number, args, result)
    print(show(result))


if __name__ == "__main__":
    main()
