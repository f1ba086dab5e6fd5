"""Does an encoder pretrained with the slim decoder transfer as well as one pretrained with the published decoder?

    python benchmarks/decoder_study.py --datasets 4 221 --seeds 5 --work FOLDER --json FILE

For each dataset (preprocessed by nnU-Net, 3d_fullres), AnatoMask pretrains the plans' network, made narrower, on the
training cases of fold 0: once with each decoder, everything else equal, seed included. Then every seed fine-tunes three
times, from scratch and from either checkpoint, with the same labelled cases, crops and fresh layers, and Dice is
measured on validation cases of the fold at some points of the schedule. What is compared is therefore paired by seed.
There is one pretraining per decoder: the intervals do not cover what another pretraining seed would change.

FILE is written after every run. Started again with the same settings, the study goes on where it was; more datasets
and more seeds may be asked for. Copies of plans and split are kept in the work folder, nothing is written elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance
from benchmarks.study_data import load_cases
from benchmarks.study_finetune import Schedule, Task, finetune
from benchmarks.study_statistics import ARMS, show, summarise
from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.locate import DatasetFiles, Plan, locate
from ssl_pretrain.data.splits import Fold, load_fold
from ssl_pretrain.files import write_json
from ssl_pretrain.functional.geometry import Triple

MAY_DIFFER = ("datasets", "seeds", "json", "work", "finetune_steps", "pretrain_steps")
"""Settings that are not compared when a study goes on; steps are compared for each dataset."""


class Study:
    """A dataset of the study: its files in the work folder, and the results so far."""

    def __init__(self, dataset: str, position: int, args: argparse.Namespace, result: dict[str, Any]) -> None:
        self.args, self.result = args, result
        self.files, self.plan = locate(dataset, "3d_fullres", "nnUNetPlans")
        self.name = self.files.name
        self.folder = args.work / self.name
        self.pretrain_steps = _of_dataset(args.pretrain_steps, position)
        self.finetune_steps = _of_dataset(args.finetune_steps, position)
        self.patch = cast("Triple", tuple(map(min, self.plan.patch, args.largest_patch)))
        self.architecture = narrowed(self.plan.architecture, args.narrower)
        self._check_settings()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plans = self._write_plans()
        identifiers = Cases(self.files.data, self.plan.input_channels).identifiers
        self.fold = self._fold(identifiers)

    def _check_settings(self) -> None:
        ours = {"patch": list(self.patch), "pretrain_steps": self.pretrain_steps, "finetune_steps": self.finetune_steps}
        theirs = self.result["datasets"].setdefault(self.name, ours)
        if theirs != ours:
            raise SystemExit(f"{self.args.json} has {self.name} with {theirs}, not {ours}. Choose another --json.")

    def _write_plans(self) -> Path:
        """The plans with the narrower network, beside the runs: the dataset's own are left alone."""
        plans = json.loads(self.files.plans.read_text(encoding="utf-8"))
        plans["configurations"]["3d_fullres"]["architecture"] = self.architecture
        target: Path = self.folder / self.files.plans.name
        write_json(plans, target)
        return target

    def _fold(self, identifiers: list[str]) -> Fold:
        splits = self.folder / "splits_final.json"
        if self.files.splits.is_file():
            shutil.copyfile(self.files.splits, splits)
        return load_fold("0", identifiers, splits)

    def pretrain(self, arm: str) -> Path:
        """The checkpoint of an arm, made unless it is there."""
        folder = self.folder / arm
        checkpoint: Path = folder / "checkpoint_final.pth"
        known = self.result["pretraining"].setdefault(self.name, {})
        if arm in known and checkpoint.is_file() and known[arm]["sha256"] == _digest(checkpoint):
            return checkpoint
        if any(r["dataset"] == self.name and r["arm"] == arm for r in self.result["finetuning"]):
            raise SystemExit(f"{checkpoint} is not the one that {self.args.json} is about. Choose another --json.")
        # What a killed run left is no use: its time would be counted in part.
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        run = pretrain(self.config(arm, folder))
        seconds = time.perf_counter() - started
        # The first epoch has the warm-up of libraries in it.
        pace = statistics.median(row["epoch_seconds"] for row in run.metrics[1:] or run.metrics)
        iters = self.config(arm, folder).iters
        known[arm] = {
            "steps": iters * len(run.metrics),
            "step_seconds": round(pace / iters, 4),
            "seconds": round(seconds, 1),
            "train_loss": [round(row["train_loss"], 5) for row in run.metrics],
            "val_loss": [round(row["val_loss"], 5) for row in run.metrics],
            "sha256": _digest(run.checkpoint),
        }
        save(self.result, self.args.json)
        return checkpoint

    def config(self, arm: str, folder: Path) -> PretrainConfig:
        """Settings of a pretraining; arms differ in ``decoder`` only."""
        epochs = min(self.args.epochs, self.pretrain_steps)
        config = PretrainConfig(
            dataset=self.name,
            fold="0",
            output_folder=str(folder),
            epochs=epochs,
            iters=self.pretrain_steps // epochs,
            val_iters=2,
            batch_size=self.args.batch,
            patch_size=self.patch,
            seed=self.args.pretrain_seed,
            num_workers=0,
            device="cpu",
            picture_every=epochs,
            files={
                "preprocessed": str(self.files.data.parent),
                "splits": str(self.folder / "splits_final.json"),
                "dataset_json": str(self.files.dataset_json),
                "plans": str(self.plans),
            },
        )
        start, end = self.args.ema
        return config.with_settings(
            {
                "decoder": arm,
                "decoder_width": self.args.decoder_width,
                "lr": self.args.pretrain_lr,
                "ema_start": start,
                "ema_end": end,
            }
        )

    def task(self) -> Task:
        """Network and labelled cases for fine-tuning; the validation cases are the same for all seeds."""
        chosen = np.random.default_rng(self.args.pretrain_seed).permutation(sorted(self.fold.validation))
        validation = [str(name) for name in chosen[: self.args.val_cases]]
        cases = load_cases(self.files.data, [*self.fold.train, *validation], self.patch)
        return Task(
            name=self.name,
            architecture=self.architecture,
            patch=self.patch,
            organs=organs_of(self.files, self.plan),
            channels=self.plan.input_channels,
            train=tuple(cases[name] for name in self.fold.train),
            validation=tuple(cases[name] for name in validation),
        )

    def run(self) -> None:
        """Both pretrainings, then all fine-tunings; seeds outside, so that a killed study has whole pairs."""
        checkpoints = {arm: None if arm == "scratch" else self.pretrain(arm) for arm in ARMS}
        task = self.task()
        points = sorted({max(1, round(share * self.finetune_steps)) for share in self.args.points})
        args = self.args
        schedule = Schedule(args.labelled, self.finetune_steps, tuple(points), args.batch, args.lr)
        done = {(row["dataset"], row["seed"], row["arm"]) for row in self.result["finetuning"]}
        for seed in range(args.seeds):
            for arm in ARMS:
                if (self.name, seed, arm) in done:
                    continue
                rows = finetune(task, schedule, checkpoints[arm], seed)
                self.result["finetuning"] += [{"dataset": self.name, "arm": arm, **row} for row in rows]
                save(self.result, args.json)
                curve = ", ".join(f"{row['dice']:.3f} after {row['step']}" for row in rows)
                print(f"{self.name}, seed {seed}, {arm}: Dice {curve} steps", flush=True)


def narrowed(architecture: dict[str, Any], divisor: int) -> dict[str, Any]:
    """The architecture of the plans with a fraction of its channels."""
    kwargs = architecture["arch_kwargs"]
    features = [max(1, width // divisor) for width in kwargs["features_per_stage"]]
    return {**architecture, "arch_kwargs": {**kwargs, "features_per_stage": features}}


def organs_of(files: DatasetFiles, plan: Plan) -> tuple[str, ...]:
    """Names of the classes 1, 2, ...

    Raises:
        ValueError: labels that are not consecutive numbers (regions, or an ignore label).
    """
    labels = {value: name for name, value in plan.dataset["labels"].items() if value != 0}
    if set(labels) != set(range(1, plan.num_classes)):
        raise ValueError(f"{files.name} has labels {plan.dataset['labels']}; the study takes 0, 1, 2, ... only.")
    return tuple(labels[value] for value in sorted(labels))


def _of_dataset(steps: list[int], position: int) -> int:
    return steps[min(position, len(steps) - 1)]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def open_result(args: argparse.Namespace) -> dict[str, Any]:
    """The study in the file, or a new one.

    Raises:
        SystemExit: the file holds a study with other settings.
    """
    settings = {name: value for name, value in vars(args).items() if name not in MAY_DIFFER}
    fresh: dict[str, Any] = {"settings": settings, **provenance("cpu")}
    fresh |= {"datasets": {}, "pretraining": {}, "finetuning": []}
    if not args.json.is_file():
        return fresh
    stored: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8"))
    if stored.get("settings") != settings:
        raise SystemExit(f"{args.json} holds a study with settings {stored.get('settings')}. Choose another --json.")
    return stored


def save(result: dict[str, Any], file: Path) -> None:
    """Write beside and rename, with the tables made anew."""
    tables = summarise(result)
    result["summary"] = {
        name: [{key: _number(value) for key, value in row.items()} for row in rows] for name, rows in tables.items()
    }
    beside = file.with_name(f"{file.name}.tmp")
    beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datasets", nargs="+", default=["4", "221"])
    add("--seeds", type=int, default=5, help="fine-tunings per arm")
    add("--pretrain_steps", type=int, nargs="+", default=[200, 200], help="one number, or one per dataset")
    add("--finetune_steps", type=int, nargs="+", default=[200, 200], help="one number, or one per dataset")
    add("--points", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="shares of the steps after which to measure")
    add("--labelled", type=int, default=6, help="labelled cases of a fine-tuning")
    add("--val_cases", type=int, default=12, help="validation cases at most")
    add("--narrower", type=int, default=4, help="divides the channels of the plans' network")
    add("--decoder_width", type=int, default=128, help="of both decoders, at the coarsest map")
    add("--largest_patch", type=int, nargs=3, default=[48, 64, 64], help="caps the patch of the plans")
    add("--batch", type=int, default=2)
    add("--epochs", type=int, default=10, help="of a pretraining, which the ramp of hard cells follows")
    add("--pretrain_lr", type=float, default=1e-3)
    add("--ema", type=float, nargs=2, default=[0.95, 0.99], help="the defaults would keep the teacher at its start")
    add("--pretrain_seed", type=int, default=0)
    add("--lr", type=float, default=0.01, help="of fine-tuning")
    add("--threads", type=int, default=None)
    add("--work", type=Path, required=True, help="folder for checkpoints")
    add("--json", type=Path, required=True, help="results; continued where it exists")
    return parser.parse_args()


def main() -> None:
    """Run the study, or what is left of it, and print its tables."""
    args = arguments()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.work = args.work.absolute()
    result = open_result(args)
    studies = [Study(dataset, i, args, result) for i, dataset in enumerate(args.datasets)]
    for study in studies:
        study.run()
    save(result, args.json)
    print(show(summarise(result)))


if __name__ == "__main__":
    main()
