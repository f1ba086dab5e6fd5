"""``python -m ssl_pretrain.study.worker FOLDER RUN``: one run of a study, from its place in the design to its result.

Everything that the run needs is in the study's folder, so it can be started on any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.data.environment import check_environment
from ssl_pretrain.files import BusyError, archive_fault, locked, read_json, remove_leftovers, write_json
from ssl_pretrain.study.arms import Arm, check_weights
from ssl_pretrain.study.design import StudyRun
from ssl_pretrain.study.machine import PREPROCESSED, RESULTS, available_cores, machine, run_environment
from ssl_pretrain.study.mirror import read_mirrored_plans
from ssl_pretrain.study.outcomes import dice_of
from ssl_pretrain.study.stored import PredictionSummary
from ssl_pretrain.study.study import FAILURE, LOG, RESULT, Study, versions

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")
BUSY = 75
"""Exit status of a run that another process is at; ``EX_TEMPFAIL`` of sysexits.h."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, unless it is done; returns the exit status. Output goes into the run's log, errors into its failure."""
    parser = argparse.ArgumentParser(description="One run of nnUNetv2_pretrain_study, which starts this itself.")
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("run", help="name of the run: its folder in FOLDER/runs")
    parser.add_argument("-threads", type=int, help="cores that are the run's (default: all that may be used)")
    parser.add_argument("-trust_plans", action="store_true", help="as of nnUNetv2_pretrain_study")
    parser.add_argument("--watch", action="store_true", help="end when standard input does")
    given = parser.parse_args(arguments)
    if given.watch:
        threading.Thread(target=end_with_parent, daemon=True).start()
    study = replace(Study.read(given.folder.resolve()), trust_plans=given.trust_plans)
    run = study.run(given.run)
    folder = study.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            remove_leftovers(folder)
            return perform(study, run, given.threads or available_cores())
    except BusyError:
        sys.stderr.write(f"{run.name} is being run by another process.\n")
        return BUSY


def perform(study: Study, run: StudyRun, threads: int) -> int:
    """Do a run that nobody else is at, unless it is done; returns the exit status."""
    folder = study.run_folder(run)
    if not study.is_done(run):
        (folder / FAILURE).unlink(missing_ok=True)
        checkpoint = unfinished(folder)
        if checkpoint is None:
            shutil.rmtree(folder / RESULTS, ignore_errors=True)
        write_output_to(folder / LOG, append=checkpoint is not None)
        try:
            write_json(fine_tune(study, run, checkpoint, threads), folder / RESULT)
        except Exception as error:
            traceback.print_exc()
            write_json({"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"}, folder / FAILURE)
            return 1
    if not study.settings.keep_checkpoints:
        for file in (folder / RESULTS).rglob("checkpoint_*.pth"):
            file.unlink()
    return 0


def end_with_parent() -> None:
    """Wait for the end of standard input, which whoever started this holds open; then end, with all that was started.

    Else a study whose command is killed would leave runs behind, and continuing it would start them once more.
    """
    # Not sys.stdin: a process that is forked while another thread waits in its read() waits for its lock for ever.
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGTERM)
    os._exit(1)


def unfinished(folder: Path) -> Path | None:
    """The checkpoint from which a run that was stopped goes on, if it has written one that is not damaged."""
    for file in (file for name in CHECKPOINTS for file in sorted((folder / RESULTS).rglob(name))):
        fault = archive_fault(file) if zipfile.is_zipfile(file) else "it is cut off"
        if fault is None:
            return file
        logging.getLogger("ssl_pretrain").warning("%s is damaged (%s) and left out.", file, fault)
    return None


def write_output_to(log: Path, *, append: bool) -> None:
    """Send everything that this process and its children print into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab" if append else "wb") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)


def fine_tune(study: Study, run: StudyRun, checkpoint: Path | None, threads: int) -> dict[str, Any]:
    """Train, validate with nnU-Net's own evaluation, and return what is to be known about the run.

    Args:
        study: what the run is part of.
        run: which one.
        checkpoint: to go on from; None to begin.
        threads: cores that are the run's.
    """
    folder, settings, arm = study.run_folder(run), study.settings, study.arm(run.arm)
    if checkpoint is None:
        check_weights([arm])
    if settings.device == "cpu":
        keep_freed_memory()
    started = time.perf_counter()
    # Before nnU-Net is imported: it reads some of it then.
    env = run_environment(settings.device, threads, study.folder / PREPROCESSED, folder / RESULTS)
    os.environ.update(env)
    check_environment()
    import torch

    from ssl_pretrain.study import training
    from ssl_pretrain.study.probe import probe
    from ssl_pretrain.study.watch import Watch

    torch.set_num_threads(threads if settings.device == "cpu" else 1)
    if env["nnUNet_def_n_proc"] == "1":
        training.validate_in_threads()
    check_plans(study, arm)
    number = study.numbers[run.subset]
    trainer, loaded = training.build_trainer(settings, study.dataset, arm, number, run.seed, checkpoint)
    # Again: networks and files of weights have drawn differently, and a run that goes on must not see the same again.
    training.seed_everything(run.seed + 1000 * trainer.current_epoch)
    training.seed_readers(run.seed + 1000 * trainer.current_epoch)
    torch.backends.cudnn.benchmark = True

    def validate() -> dict[str, Any]:
        return training.validate_as_preprocessed(trainer, study.labels)

    watch = Watch(trainer, validate, settings.curve)
    if settings.probe and not watch.done:
        watch.note(probe=probe(watch, settings.probe))
        training.seed_everything(run.seed)  # the training does not depend on whether there was a probe
    trainer.run_training()
    if not settings.mirroring:
        trainer.inference_allowed_mirroring_axes = None
    trained = time.perf_counter()
    trainer.perform_actual_validation(False)
    now = time.perf_counter()
    summary = Path(trainer.output_folder) / "validation" / "summary.json"
    cases, ending = study.folds[run.fold]["validation"], trainer.dataset_json["file_ending"]
    found, facts = read_summary(summary, study.labels, cases, ending), facts_about(trainer)
    return {
        **found,
        **watch.notes.model_dump(),
        "loaded": loaded,
        "continued": checkpoint is not None,
        "trained": facts,
        "seconds": durations(trainer, validation=now - trained, process=now - started),
        "machine": {**machine(settings.device), "threads": threads},
        "versions": versions(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def check_plans(study: Study, arm: Arm) -> None:
    """Look again at the plans that nnU-Net is about to build a network by: a study's folder may come from elsewhere.

    Raises:
        FileNotFoundError, ValueError: see :func:`~.mirror.read_mirrored_plans` and
            :func:`~ssl_pretrain.transfer.adapt.check_target`.
    """
    from ssl_pretrain.transfer.adapt import FineTuningTarget, check_target

    plans = read_mirrored_plans(study.folder / PREPROCESSED / study.dataset, arm.plans)
    check_target(FineTuningTarget(plans, {}, study.settings.configuration, arm.trainer, study.trust_plans))


def durations(trainer: Any, validation: float, process: float) -> dict[str, float]:
    """Seconds that a run took; of one that was stopped, the epochs of earlier processes count as well."""
    times = (trainer.logger.get_value(f"epoch_{end}_timestamps", None) for end in ("start", "end"))
    training = sum(end - start for start, end in zip(*times, strict=True))
    taken = {"training": training, "validation": validation, "process": max(process, training + validation)}
    return {name: round(value, 2) for name, value in taken.items()}


def facts_about(trainer: Any) -> dict[str, Any]:
    """What was trained, and for how long."""
    return {
        "trainer": type(trainer).__name__,
        "network": type(trainer.network).__name__,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "epochs": int(trainer.num_epochs),
        "steps": int(trainer.num_epochs * trainer.num_iterations_per_epoch),
        "batch_size": int(trainer.batch_size),
        "initial_lr": float(trainer.initial_lr),
        "train_loss": [round(float(loss), 5) for loss in trainer.logger.get_value("train_losses", None)],
    }


def read_summary(summary: Path, labels: Mapping[str, str], cases: Sequence[str], ending: str) -> dict[str, Any]:
    """Dice of every validation case and label from nnU-Net's ``summary.json``, and their means.

    Args:
        summary: the file.
        labels: its keys of labels -> their names.
        cases: that were to be predicted.
        ending: of the files of predictions.

    Raises:
        ValueError: other cases were predicted, or the file is damaged; names it.
    """
    entries = read_json(summary, PredictionSummary, not_finite=True).metric_per_case
    if lacking := sorted(key for key in labels if any(key not in entry.metrics for entry in entries)):
        raise ValueError(f"{summary} has cases without the metrics of label {lacking[0]}, which dataset.json names.")
    found = {Path(entry.prediction_file).name.removesuffix(ending): entry.metrics for entry in entries}
    if set(found) != set(cases):
        raise ValueError(f"{summary} is about {len(found)} cases, not the {len(cases)} validation cases of the study.")
    return dice_of(found, labels)


if __name__ == "__main__":
    sys.exit(main())
