"""Every method on every kind of network through the real commands: pretrained, then fine-tuned by nnU-Net.

    python benchmarks/matrix.py --datasets 4 221 --work FOLDER --json FILE

Each cell runs ``nnUNetv2_pretrain`` for 30 steps, then the command that it prints, with the trainer cut to one short
epoch and without nnU-Net's validation of whole cases. The networks are small by ``-network_settings``; patches, batches
and the widths of the planned network by plans of their own, which lie in FOLDER beside links to the preprocessed cases.
``arrived`` counts the pretrained tensors that the network has, bit for bit, when nnU-Net starts to train.

Cells that FILE has already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, write
from benchmarks.matrix_trainer import NAME, write_trainer
from benchmarks.small_plans import CONFIGURATION, preprocessed_folder, write_small_plans
from benchmarks.small_plans import NAME as SMALL_PLANS
from ssl_pretrain.methods import METHODS
from ssl_pretrain.networks.registry import NETWORKS, kin
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.transfer.extension import extension_folder

KINDS = [first for first, *_ in kin()]
"""One network of each kind; what makes it small is in its row."""

SHORT = {4: (40, 56, 40), 221: (32, 64, 64)}
"""Patches by number of the dataset: nnU-Net's own for Hippocampus, a fifteenth of its voxels for OpenKBP."""

EPOCHS, STEPS, FINE_TUNING_STEPS = 3, 10, 4


def goes_together(method: str, network: str) -> bool:
    """Which cells there are: as method and network declare."""
    return METHODS[method].goes_with(NETWORKS[network].offers)


def mirror(number: int, work: Path) -> None:
    """A folder of preprocessed data with links to the cases and plans of a small patch, batch and network.

    Raises:
        FileNotFoundError: the dataset is not preprocessed.
    """
    source = preprocessed_folder(number)
    target = work / "preprocessed" / source.name
    target.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "dataset_fingerprint.json"):
        (target / name).write_bytes((source / name).read_bytes())
    plans = json.loads(write_small_plans(source, target, SHORT.get(number, ()), batch=2, narrower=2).read_text())
    for name in ("gt_segmentations", plans["configurations"][CONFIGURATION]["data_identifier"]):
        if not (target / name).exists():
            (target / name).symlink_to((source / name).resolve(), target_is_directory=True)


def patch_of(number: int) -> tuple[int, ...]:
    """Voxels per axis of the plans of a dataset."""
    file = Path(os.environ["nnUNet_preprocessed"])  # noqa: SIM112 - nnU-Net's own name
    plans = json.loads(next(file.glob(f"Dataset{number:03d}_*/{SMALL_PLANS}.json")).read_text(encoding="utf-8"))
    return tuple(plans["configurations"][CONFIGURATION]["patch_size"])


def patch_flags(network: str, number: int, *, square: bool = False) -> list[str]:
    """A patch that network and method can work on, where the one of the plans is none."""
    divisor, planned = NETWORKS[network].divisor or (1, 1, 1), patch_of(number)
    patch = [max(1, round(n / step)) * step for n, step in zip(planned, divisor, strict=True)]
    if square:
        patch[1:] = [max(patch[1:])] * 2
    return [] if tuple(patch) == planned else ["-patch_size", *map(str, patch)]


def pretraining_folder(method: str, network: str, number: int, work: Path) -> Path:
    """Where the first command of a cell writes."""
    return work / "pretrained" / f"{number}_{method}_{network}"


def pretrain(method: str, network: str, number: int, work: Path) -> dict[str, Any]:
    """Run the first command of a cell; returns losses, seconds, and the command that it prints."""
    folder = pretraining_folder(method, network, number, work)
    tiny = [f"{name}={value}" for name, value in NETWORKS[network].tiny.items()]
    settings = ["-network_settings", *tiny] if tiny else []
    command = ["nnUNetv2_pretrain", str(number), CONFIGURATION, "0", "-m", method, "-network", network, *settings]
    command += ["-p", SMALL_PLANS, "-epochs", str(EPOCHS), "-iters", str(STEPS), "-val_iters", "1", "-device", "cpu"]
    command += ["-batch_size", "2", "-num_workers", "0", "-o", str(folder)]
    command += patch_flags(network, number, square=METHODS[method].square)
    started = time.perf_counter()
    output = run(command, {})
    seconds = time.perf_counter() - started
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    return {
        "command": shlex.join(command).replace(str(work), "WORK"),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "pretraining_seconds": round(seconds, 1),
        "next": re.findall(r"(nnUNetv2_train .*)", output)[-1],
        "weights": str(folder / "checkpoint_final.pth"),
    }


def fine_tune(printed: str, weights: str, work: Path) -> dict[str, Any]:
    """Run the second command of a cell, with its trainer cut short."""
    command = shlex.split(printed)
    base = "nnUNetTrainer"
    if "-tr" in command:
        place = command.index("-tr")
        base = command[place + 1]
        del command[place : place + 2]
    folders = [str(extension_folder()), str(write_trainer(work, base, FINE_TUNING_STEPS))]
    facts = work / "facts.json"
    facts.unlink(missing_ok=True)
    started = time.perf_counter()
    run(
        [*command, "-tr", NAME],
        {"nnUNet_extTrainer": os.pathsep.join(folders), "MATRIX_WEIGHTS": weights, "MATRIX_FACTS": str(facts)},
    )
    seconds = time.perf_counter() - started
    told = json.loads(facts.read_text(encoding="utf-8"))
    return {
        "trainer": told["trainer"],
        "arrived": told["arrived"],
        "offered": told["offered"],
        "fine_tuning_loss": round(told["loss"], 4),
        "fine_tuning_seconds": round(seconds, 1),
    }


def run(command: list[str], env: dict[str, str]) -> str:
    """Run a command; its output.

    Raises:
        RuntimeError: it failed; ends with the end of what it said.
    """
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{shlex.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def cell(method: str, network: str, number: int, work: Path) -> dict[str, Any]:
    """Run one cell."""
    row: dict[str, Any] = {"dataset": number, "method": method, "network": network}
    # What an interrupted or failed cell has left: pretraining refuses a folder that holds a run.
    shutil.rmtree(pretraining_folder(method, network, number, work), ignore_errors=True)
    try:
        pretrained = pretrain(method, network, number, work)
        tuned = fine_tune(pretrained.pop("next"), pretrained.pop("weights"), work)
    except RuntimeError as error:
        return {**row, "error": str(error).replace(str(work), "WORK")}
    return {**row, **pretrained, **tuned}


def show(rows: list[dict[str, Any]]) -> str:
    """The cells as a table."""
    headers = ("dataset", "method", "network", "pretraining loss", "tensors arrived", "trainer", "fine-tuning loss")
    lines = []
    for row in rows:
        name = (row["dataset"], row["method"], row["network"])
        if "error" in row:
            lines.append((*name, "failed", "", "", ""))
            continue
        losses = f"{row['first_loss']} to {row['last_loss']}"
        arrived = f"{row['arrived']} of {row['offered']}"
        lines.append((*name, losses, arrived, row["trainer"], str(row["fine_tuning_loss"])))
    return format_table(headers, lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, nargs="+", default=[4, 221])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--networks", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and links to the cases")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> int:
    """Run every cell that is not in the file yet; 1 where one failed."""
    args = arguments()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for number in args.datasets:
        mirror(number, work)
    os.environ.update(nnUNet_preprocessed=str(work / "preprocessed"), nnUNet_results=str(work / "results"))
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    known = json.loads(args.json.read_text(encoding="utf-8"))["rows"] if args.json.is_file() else []
    rows = [row for row in known if "error" not in row]
    done = {(row["dataset"], row["method"], row["network"]) for row in rows}
    for key in [(n, m, k) for n in args.datasets for m in args.methods for k in args.networks if goes_together(m, k)]:
        if key not in done:
            number, method, network = key
            rows.append(cell(method, network, number, work))
            print(show(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        write({**provenance("cpu"), "rows": rows}, args.json)
    print(show(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
