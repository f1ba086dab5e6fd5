"""``nnUNetv2_pretrain_study``: does pretraining help on this dataset?"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_pretrain.cli.console import EXIT_TERMINATED, guarded, set_up_console

if TYPE_CHECKING:
    from ssl_pretrain.study.design import StudySettings
    from ssl_pretrain.study.study import Study

ORDERS = ("folder", "resume", "gather", "emit", "jobs", "trust_plans")
"""Arguments that say what to do with a study, not what it is."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; what is not given is absent from the result, so that defaults live in one place."""
    parser = argparse.ArgumentParser(
        description="Fine-tune from pretrained weights and from scratch, on more and less training data, several times "
        "each, with nnU-Net, and compare on the same validation cases.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="of the study; everything is below it")
    add("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    add("-c", dest="configuration", metavar="CONFIGURATION", help="configuration of the plans, e.g. 3d_fullres")
    add("-w", dest="weights", nargs="+", metavar="FILE", help="pretrained weights, compared with scratch")
    add("-fractions", type=float, nargs="+", help="shares of the training cases (default: 0.05 0.1 0.25 0.5 1.0)")
    add("-cases", type=int, nargs="+", help="numbers of training cases, instead of fractions or beside them")
    add("-seeds", type=int, help="how often each comparison is repeated (default: 5)")
    text = "pretrainings that differ in their seed alone take turns: each seed has one of them (default: all)"
    add("--spread", action="store_true", help=text)
    add("-folds", type=int, nargs="+", help="of splits_final.json (default: 0)")
    add("-p", dest="plans", help="name of the plans (default: those that the weights name, else nnUNetPlans)")
    add("-tr", dest="trainer", help="trainer (default: nnUNetTrainer, or what the network of the weights needs)")
    add("-scratch_tr", dest="scratch_trainer", help="trainer from scratch (default: that of -tr, _scratch for _ft)")
    add("-epochs", type=int, help="of a run (default: the trainer's)")
    add("-iters", type=int, help="optimiser steps per epoch (default: the trainer's)")
    add("-val_iters", type=int, help="validation batches per epoch, for the curves only (default: a fifth of -iters)")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda")
    add("--no_mirroring", dest="mirroring", action="store_false", help="final validation without mirrored images")
    add(
        "-curve", type=float, nargs="+", metavar="SHARE", help="validate after these shares of the optimiser steps, too"
    )
    add(
        "-probe", type=int, nargs="?", const=100, metavar="STEPS", help="train a linear head on the frozen encoder, too"
    )
    text = "comparisons that are named before the runs; all others are exploratory"
    add("-primary", nargs="+", action="extend", metavar="ARM@CASES", help=text)
    add("--keep_checkpoints", action="store_true", help="keep nnU-Net's checkpoints of runs that are done")
    add("-collapsed_below", type=float, metavar="SHARE", help="of the best run's Dice (default: 0.5)")
    add("-trust_plans", action="store_true", help="plans may name code of packages that are not well known: run it")
    add("-jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    add("--c", dest="resume", action="store_true", help="continue the study in FOLDER")
    add("--emit", choices=("slurm",), help="run nothing, print an array script")
    add("--gather", action="store_true", help="run nothing, make tables and plot from the runs that are done")
    return parser


def settings_from(flags: dict[str, Any], stored: StudySettings | None = None) -> StudySettings:
    """The settings of a command line; of a study that is continued, what is not typed stays as it was.

    Raises:
        ValueError: bad values, or required ones that are missing.
    """
    from ssl_pretrain.study.design import StudySettings

    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in flags.items() if name not in ORDERS
    }
    if "weights" in given:
        given["weights"] = tuple(
            file if file.startswith("hf:") else str(Path(file).absolute()) for file in given["weights"]
        )
    if stored is not None:
        return replace(stored, **given)
    missing = [
        flag for flag, name in (("-d", "dataset"), ("-c", "configuration"), ("-w", "weights")) if name not in given
    ]
    if missing:
        raise ValueError(
            f"Missing arguments: {', '.join(missing)}. A new study needs -d DATASET -c CONFIGURATION -w FILE."
        )
    if "cases" in given and "fractions" not in given:
        given["fractions"] = ()
    return StudySettings(**given)


def open_study(flags: dict[str, Any]) -> Study:
    """The study that a command line means: a new one, or the one in the folder.

    Raises:
        ValueError, OSError: see :func:`~ssl_pretrain.study.study.begin` and :func:`~ssl_pretrain.study.study.resume`.
    """
    from ssl_pretrain.study.study import Study, begin, resume

    folder, trust_plans = flags["folder"].resolve(), bool(flags.get("trust_plans"))
    if not flags.get("resume") and not flags.get("gather"):
        return begin(settings_from(flags), folder, trust_plans=trust_plans)
    study = Study.read(folder)
    settings = settings_from(flags, study.settings)
    if flags.get("gather") and not flags.get("resume"):
        return replace(study, settings=replace(study.settings, collapsed_below=settings.collapsed_below))
    return resume(settings, folder, trust_plans=trust_plans)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: says what is.
    """
    import torch

    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not there[device]():
        raise ValueError(f"PyTorch finds no {device} device here. Choose another with -device, e.g. -device cpu.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    flags = vars(build_parser().parse_args(arguments))
    # A script goes to stdout, so what is to be said goes beside it.
    set_up_console(logging.WARNING, sys.stderr) if "emit" in flags else set_up_console()
    return guarded(lambda: run(flags), "Stopped. Runs that are done stay; --c goes on with the others.")


def run(flags: dict[str, Any]) -> int:
    """Begin or continue a study; returns the exit status."""
    if {"dataset", "configuration", "weights"} <= flags.keys():
        from ssl_pretrain.data.locate import find_dataset

        find_dataset(flags["dataset"])  # says at once what is wrong, before the imports of training
    # nnU-Net first: in a checkout of ours, the current folder has one of that name.
    import nnunetv2  # noqa: F401

    if "emit" not in flags and "gather" not in flags:
        check_device(_device(flags))
    with _ends_cleanly():
        return _carry_out(flags)


def _device(flags: dict[str, Any]) -> str:
    from ssl_pretrain.study.study import Study

    stored = Study.read(flags["folder"]).settings.device if flags.get("resume") else None
    return str(flags.get("device") or stored or "cuda")


def _carry_out(flags: dict[str, Any]) -> int:
    from ssl_pretrain.study.launch import check_jobs, gather, run_all, slurm_script
    from ssl_pretrain.study.tables import console

    check_jobs(flags["jobs"])
    study = open_study(flags)
    if "emit" in flags:
        print(slurm_script(study, flags["jobs"]), end="")
        return 0
    analysis = gather(study) if flags.get("gather") else run_all(study, flags["jobs"])
    print(f"\n{console(analysis)}\n")
    print(f"Tables, plot and numbers: {study.folder / 'study.md'}, study.png, study.json")
    failed = [o for o in analysis.outcomes if o.status == "failed"]
    for outcome in failed:
        end = "\n".join(f"    {line}" for line in outcome.content["log_end"])
        print(
            f"\nFailed: {outcome.run.name}: {outcome.content['error']}\n{end}\n    ({outcome.content['log']})",
            file=sys.stderr,
        )
    missing = [o for o in analysis.outcomes if o.status in ("begun", "waiting")]
    if missing:
        print(
            f"\n{len(missing)} of {len(analysis.outcomes)} runs are not done; --c goes on with them.", file=sys.stderr
        )
    return 1 if failed or missing else 0


@contextmanager
def _ends_cleanly() -> Iterator[None]:
    """A signal to end ends the runs as Ctrl-C does, but for the exit status."""
    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        before.setdefault(number, signal.signal(number, _terminated))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(*_: Any) -> None:
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
