"""Starting the runs of a study: several at once on this machine, or as an array of SLURM."""

from __future__ import annotations

import logging
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from ssl_pretrain.files import write_atomic, write_json
from ssl_pretrain.study import worker
from ssl_pretrain.study.design import StudyRun
from ssl_pretrain.study.machine import available_cores
from ssl_pretrain.study.plot import draw_curves, draw_study
from ssl_pretrain.study.results import Analysis, analyse
from ssl_pretrain.study.study import FAILURE, FILE, Study, read_result
from ssl_pretrain.study.tables import markdown, to_json

log = logging.getLogger("ssl_pretrain")

WORKER = worker.__name__

PAUSE = 10
"""Between two gatherings while runs go on passes so much longer than the first of them took."""


def worker_command() -> list[str]:
    """How a run is started: the current folder is no place to find modules in, whatever lies there."""
    # Python 3.10 has no such option.
    return [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", WORKER]


def gather(study: Study) -> Analysis:
    """Write ``study.json``, ``study.md``, ``study.png`` and ``curves.png`` from the results that are there."""
    analysis = analyse(study)
    write_json(to_json(study, analysis), study.folder / FILE)
    text = markdown(study, analysis)
    write_atomic(study.folder / "study.md", "w", lambda handle: handle.write(text))
    draw_study(study, analysis, study.folder / "study.png")
    if analysis.noted.points:
        draw_curves(study, analysis, study.folder / "curves.png")
    return analysis


def check_jobs(jobs: int) -> None:
    """Refuse a number of jobs that is none.

    Raises:
        ValueError: names it.
    """
    if jobs < 1:
        raise ValueError(f"-jobs must be at least 1, got {jobs}.")


def run_all(study: Study, jobs: int = 1) -> Analysis:
    """Run what is not done yet, each run in a process of its own, and gather after each, unless that takes long.

    Args:
        study: what to run.
        jobs: runs at once; they share the cores, and the GPUs where there are several.

    Raises:
        ValueError: no such number of jobs.
    """
    check_jobs(jobs)
    started = time.perf_counter()
    analysis, pending = gather(study), study.pending
    gathered = time.perf_counter()
    took = gathered - started
    log.info("%d of %d runs to do, %d at once", len(pending), len(study.runs), jobs)
    launcher = Launcher(study, jobs)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {pool.submit(launcher.start, run): run for run in pending}
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                # Runs compute on the same cores.
                if done == len(pending) or time.perf_counter() - gathered > PAUSE * took:
                    before, analysis = time.perf_counter(), gather(study)
                    gathered = time.perf_counter()
                    took = gathered - before
                _report(study, futures[future], done, len(pending), time.perf_counter() - started)
        except BaseException:
            # Before the pool waits for its threads, which wait for the processes.
            pool.shutdown(wait=False, cancel_futures=True)
            launcher.stop()
            raise
    return analysis


class Launcher:
    """Starts runs as processes and ends those that still run.

    Args:
        study: whose runs.
        jobs: runs at once.
    """

    def __init__(self, study: Study, jobs: int) -> None:
        self.study = study
        self.threads = max(1, available_cores() // jobs)
        self.gpus = visible_gpus() if study.settings.device == "cuda" else []
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._stopped = False

    def start(self, run: StudyRun) -> None:
        """Run it and wait for its end; a process that ends without a word leaves its failure, too."""
        slot = self._slots.get()
        try:
            with self._process(run, slot) as process:
                assert process.stdout is not None
                output = process.stdout.read()
                process.wait()
            end_group(process)  # reading processes survive a training that crashes
        finally:
            self._slots.put(slot)
        folder = self.study.run_folder(run)
        if process.returncode == worker.BUSY:
            log.warning("%s is being run by another process and is left to it", run.name)
        elif process.returncode and not self._stopped and not (folder / FAILURE).is_file():
            words = output.strip().splitlines()[-1:] or ["see its log"]
            folder.mkdir(parents=True, exist_ok=True)
            write_json({"error": f"ended with status {process.returncode}: {words[0]}"}, folder / FAILURE)

    def _process(self, run: StudyRun, slot: int) -> subprocess.Popen[str]:
        env = dict(os.environ)
        if len(self.gpus) > 1:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        command = [*worker_command(), str(self.study.folder), run.name, "-threads", str(self.threads)]
        command += ["-trust_plans"] * self.study.trust_plans
        # A group of its own, with all that it starts; and a pipe that closes when this process ends, however it ends.
        process = subprocess.Popen(
            [*command, "--watch"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._running[run.name] = process
        return process

    def stop(self) -> None:
        """End what is running."""
        self._stopped = True
        for process in self._running.values():
            if process.poll() is None:
                end_group(process)


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process that leads a group and all that it has started."""
    if not hasattr(os, "killpg"):  # Windows
        process.terminate()
        return
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def _report(study: Study, run: StudyRun, done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    result = read_result(study.run_folder(run) / "result.json")
    failure = read_result(study.run_folder(run) / FAILURE) or {}
    missing = f"FAILED: {failure['error']}" if failure else "no result yet"
    text = f"Dice {result['dice']:.4f}" if result else missing
    log.info("%d/%d  %s  %s  (%s left)", done, total, run.name, text, _duration(left))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def slurm_script(study: Study, jobs: int) -> str:
    """An array script for SLURM: one task for each run that is not done, and the command that gathers.

    Args:
        study: what to run.
        jobs: tasks at once; 1 for as many as the cluster gives.

    Raises:
        ValueError: everything is done, or SLURM has no way to write the name of the folder.
    """
    pending = study.pending
    if not pending:
        raise ValueError(f"All {len(study.runs)} runs of {study.folder} are done: there is nothing to submit.")
    logs = study.folder / "slurm"
    if re.search(r"[\\\n\r]", str(logs)):
        raise ValueError(
            f"SLURM cannot write logs into {str(logs)!r}: #SBATCH has no way to name a folder with a backslash or a "
            "line break. Move the study."
        )
    logs.mkdir(exist_ok=True)
    limit = f"%{jobs}" if jobs > 1 else ""
    gpu = ["#SBATCH --gres=gpu:1"] if study.settings.device == "cuda" else []
    folder = shlex.quote(str(study.folder))
    trust = " -trust_plans" * study.trust_plans
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=study_{study.dataset}",
        f"#SBATCH --array=0-{len(pending) - 1}{limit}",
        f"#SBATCH --output={_escaped(logs)}/%A_%a.txt",
        *gpu,
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=24:00:00",
        "# Adapt the lines above to your cluster. When all tasks have ended, gather the results with:",
        f"#   nnUNetv2_pretrain_study -o {folder} --gather",
        "runs=(",
        *(f"  {shlex.quote(run.name)}" for run in pending),
        ")",
        f'exec {shlex.join(worker_command())} {folder} "${{runs[$SLURM_ARRAY_TASK_ID]}}"{trust}',
    ]
    return "\n".join(lines) + "\n"


def _escaped(path: Path) -> str:
    # sbatch reads the line without a shell: a blank ends the name, a quote opens a quotation and # a comment unless a
    # backslash stands before it.
    return re.sub(r"([\s\"'#])", r"\\\1", str(path)).replace("%", "%%")
