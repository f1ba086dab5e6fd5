"""``nnUNetv2_pretrain_demo``: the whole road on made data, from raw images to a comparison with scratch."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_pretrain.cli.console import guarded

DATASET, NUMBER = "Dataset999_Phantoms", "999"
TRAINER = "nnUNetTrainer_demo"
PRETRAIN = ("-epochs", "4", "-iters", "10", "-val_iters", "4", "-batch_size", "2", "-lr", "1e-3")
"""A demo's schedule; the learning rate is ten times the default because there are 40 steps and not 250 000."""

HONEST = (
    "This demo shows that the parts fit together: planning, pretraining, fine-tuning with nnU-Net's own trainer and "
    "inference.\nWith 40 steps of pretraining and 88 of fine-tuning on twelve phantoms it cannot show that pretraining "
    "helps:\nthe differences in this table are noise."
)


class StepError(RuntimeError):
    """A command of the demo failed; the message names it and its log."""


@dataclass(frozen=True)
class Demo:
    """Folders and environment of a demo.

    Attributes:
        folder: everything is below it.
        device: where to compute.
    """

    folder: Path
    device: str

    def environment(self, results: str, training: bool) -> dict[str, str]:
        """The environment of a command whose results go to ``results``."""
        from ssl_pretrain.transfer.extension import trainer_environment

        paths = {"raw": "nnUNet_raw", "preprocessed": "nnUNet_preprocessed", results: "nnUNet_results"}
        # Training reads in its own process: phantoms are small, and starting processes costs more than they give.
        # Planning does not accept 0 there, and does not use the number otherwise.
        processes = {"nnUNet_n_proc_DA": "0" if training else "1", "nnUNet_def_n_proc": "1"}
        return trainer_environment(
            {**os.environ, **processes, **{variable: str(self.folder / name) for name, variable in paths.items()}}
        )

    def run(self, title: str, results: str, *command: str) -> None:
        """Run a command with its output in a log file.

        Raises:
            StepError: it failed.
        """
        log = self.folder / "logs" / f"{title.replace(' ', '_')}.txt"
        print(f"\n{title}\n  $ {' '.join(command)}", flush=True)
        started = time.perf_counter()
        with log.open("w", encoding="utf-8") as output:
            status = subprocess.run(
                [str(executable(command[0])), *command[1:]],
                env=self.environment(results, training=command[0] == "nnUNetv2_train"),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise StepError(f"'{title}' failed with status {status}. The end of {log}:\n\n{tail}")
        print(f"  {time.perf_counter() - started:.0f} s, output in {log}", flush=True)


def executable(name: str) -> Path:
    """A console command of the environment this one runs in.

    Raises:
        StepError: it is not installed.
    """
    folder = Path(sysconfig.get_path("scripts"))
    for candidate in (folder / name, folder / f"{name}.exe"):
        if candidate.is_file():
            return candidate
    raise StepError(f"The command {name} is not in {folder}. Is the package installed in this environment?")


def prepare_data(demo: Demo) -> None:
    """Make the phantoms and let nnU-Net plan and preprocess them."""
    from ssl_pretrain.data.phantoms import write_phantom_dataset

    for name in ("raw", "preprocessed", "pretrained", "from_scratch", "logs"):
        (demo.folder / name).mkdir(parents=True, exist_ok=True)
    write_phantom_dataset(demo.folder / "raw" / DATASET)
    options = ("-c", "3d_fullres", "-np", "2", "-npfp", "2", "--verify_dataset_integrity")
    demo.run("plan and preprocess", "pretrained", "nnUNetv2_plan_and_preprocess", "-d", NUMBER, *options)


def pretrain(demo: Demo) -> Path:
    """Pretrain with AnatoMask; returns the checkpoint."""
    folder = demo.folder / "pretrained" / "AnatoMask"
    options = (*PRETRAIN, "-picture_every", "1", "-num_workers", "0", "-device", demo.device, "-o", str(folder))
    demo.run("pretrain with AnatoMask", "pretrained", "nnUNetv2_pretrain", NUMBER, "3d_fullres", "0", *options)
    return folder / "checkpoint_final.pth"


def finetune(demo: Demo, results: str, *options: str) -> Path:
    """Train with nnU-Net; returns its output folder."""
    title = f"train with nnU-Net, {results.replace('_', ' ')}"
    command = ("nnUNetv2_train", NUMBER, "3d_fullres", "0", "-tr", TRAINER, "-device", demo.device, *options)
    demo.run(title, results, *command)
    return demo.folder / results / DATASET / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"


def losses(folder: Path) -> dict[str, list[float]]:
    """Loss per epoch from nnU-Net's log file."""
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(folder.glob("training_log_*.txt")))
    return {name: [float(v) for v in re.findall(rf"{name}_loss (-?[\d.]+)", text)] for name in ("train", "val")}


def dice(folder: Path) -> list[float]:
    """Dice of each organ on the validation cases, and their mean last."""
    summary = json.loads((folder / "validation" / "summary.json").read_text(encoding="utf-8"))
    organs = [summary["mean"][label]["Dice"] for label in sorted(summary["mean"], key=int)]
    return [*organs, summary["foreground_mean"]["Dice"]]


def report(demo: Demo, checkpoint: Path, pretrained: Path, scratch: Path) -> str:
    """Draw the curves and return the closing tables."""
    from ssl_pretrain.data.phantoms import LABELS
    from ssl_pretrain.report.comparison import draw_curves
    from ssl_pretrain.report.progress import read_metrics
    from ssl_pretrain.report.tables import format_table

    metrics = read_metrics(checkpoint.parent / "metrics.csv")
    with_weights, without = losses(pretrained), losses(scratch)
    curves = demo.folder / "curves.png"
    draw_curves(
        curves,
        {
            "AnatoMask, reconstruction loss": {"train": metrics["train_loss"], "validation": metrics["val_loss"]},
            "nnU-Net, training loss": {"pretrained": with_weights["train"], "from scratch": without["train"]},
            "nnU-Net, validation loss": {"pretrained": with_weights["val"], "from scratch": without["val"]},
        },
    )
    columns = zip(metrics["train_loss"], metrics["val_loss"], strict=True)
    pretraining = format_table(
        ("epoch", "train loss", "validation loss"), [(i + 1, t, v) for i, (t, v) in enumerate(columns)]
    )
    names = [*(f"Dice, {name}" for name in LABELS if name != "background"), "Dice, mean"]
    rows = [("training loss, last epoch", with_weights["train"][-1], without["train"][-1])]
    rows.append(("validation loss, last epoch", with_weights["val"][-1], without["val"][-1]))
    rows += list(zip(names, dice(pretrained), dice(scratch), strict=True))
    comparison = format_table(("fine-tuning", "pretrained", "from scratch"), rows)
    pictures = sorted((checkpoint.parent / "pictures").glob("*.png"))
    files = "\n".join(f"  {p}" for p in (curves, checkpoint.parent / "progress.png", pictures[-1], checkpoint))
    return f"\nPretraining\n{pretraining}\n\n{comparison}\n\nPictures and weights\n{files}\n\n{HONEST}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="The whole road on made data, under 6 minutes on two CPU cores.")
    parser.add_argument("-o", dest="folder", type=Path, default=Path("anatomask_demo"), help="default: anatomask_demo")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cpu", help="default: cpu")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        print(f"Error: {folder} is not empty. Remove it or choose another folder with -o.", file=sys.stderr)
        return 1
    return guarded(lambda: run(Demo(folder, given.device)), expected=lambda: (StepError,))


def run(demo: Demo) -> int:
    """Every step, and what came out."""
    started = time.perf_counter()
    prepare_data(demo)
    checkpoint = pretrain(demo)
    pretrained = finetune(demo, "pretrained", "-pretrained_weights", str(checkpoint))
    scratch = finetune(demo, "from_scratch")
    print(report(demo, checkpoint, pretrained, scratch))
    print(f"\nTook {(time.perf_counter() - started) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
