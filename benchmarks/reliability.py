"""What a run survives: kills, full disks, damaged and hostile files, and JSON that was edited by hand.

    python benchmarks/reliability.py --json benchmarks/results/reliability.json

Each attempt is the real command in a process of its own, forked after the imports, so that a hundred take minutes.
Data and network are made and tiny. Full disks need Linux and root (a tmpfs of its own); without, they are left out.

- kills: a run gets a signal at a random moment and is continued with ``--c``; it must end as the undisturbed run, bit
  for bit, whatever was on disk when it died.
- disk: a run on a disk of some hundred kilobytes must end with one line, and go on with ``--c`` on a larger one.
- damaged: checkpoints with bits flipped, parts zeroed or cut off; refused in one line, or replaced by the one before.
- hostile: crafted files of weights; refused in one line, within 5 s and 1 GiB.
- mutations: the table of the tests, over every JSON file that others write.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import provenance, write

from ssl_pretrain.cli.pretrain import main as pretrain
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.checkpoints import FINAL

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "training", "transfer/sources")]

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TRACEBACK = "Traceback (most recent call last)"
CLONE_NEWNS = 0x00020000
"""Of Linux: a process with mounts of its own."""


class Attempt:
    """One command in a process of its own.

    Args:
        command: returns the exit status.
        log: file for what it prints.
    """

    def __init__(self, command: Callable[[], int], log: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_in_child(command, log))

    def wait(self, limit: float = 300) -> int | None:
        """Exit status as a shell has it; None, and killed, if it is still there after ``limit`` seconds."""
        while time.monotonic() - self.started < limit:
            pid, status, self.usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.seconds = time.monotonic() - self.started
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _in_child(command: Callable[[], int], log: Path) -> int:
    os.setpgrp()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    try:
        return command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_flags(output: Path, workers: int) -> list[str]:
    """The command line of the tiny run."""
    return [
        *("7", "3d_fullres", "0", "-m", "SparK", "-device", "cpu", "-epochs", "4", "-iters", "4", "-val_iters", "1"),
        *("-num_workers", str(workers), "-o", str(output)),
    ]


def same_weights(folder: Path, reference: Path) -> bool:
    """Whether two runs ended with the same network, bit for bit."""
    ours, theirs = (
        torch.load(one / FINAL, map_location="cpu", weights_only=True)["network_weights"] for one in (folder, reference)
    )
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def kills(work: Path, reference: Path, seconds: float, counts: dict[str, int], seed: int) -> list[dict[str, Any]]:
    """Runs that get a signal at a random moment, and are continued until they end.

    Args:
        work: scratch folder.
        reference: folder of the undisturbed run.
        seconds: that it took.
        counts: name of the signal -> runs.
        seed: of the moments.
    """
    rng = random.Random(seed)
    rows = []
    for name, count in counts.items():
        for number in range(count):
            output, workers = work / f"{name}_{number}", 2 * (number % 2)
            moment = rng.uniform(0, 1.05 * seconds)
            first = Attempt(lambda output=output, workers=workers: pretrain(run_flags(output, workers)), work / "log")
            time.sleep(moment)
            os.kill(first.pid, SIGNALS[name])
            status = first.wait()
            row = {"signal": name, "moment": round(moment, 2), "status": status, "traceback": TRACEBACK in first.text}
            flags = run_flags(output, workers)
            again = Attempt(lambda flags=flags: pretrain([*flags, "--c"]), work / "log")
            row["continued"] = again.wait()
            if "Start the run without --c" in again.text:
                # It had not begun.
                again = Attempt(lambda flags=flags: pretrain(flags), work / "log")
                row["continued"] = again.wait()
            row["same"] = row["continued"] == 0 and same_weights(output, reference)
            row["left"] = sorted(p.name for p in output.glob("*.tmp"))
            if not row["same"]:
                row["said"] = again.text[-600:]
            rows.append(row)
            shutil.rmtree(output, ignore_errors=True)
    return rows


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of a size at a folder; yields a function that changes the size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True) and None
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def own_mounts() -> bool:
    """Give this process mounts of its own; False where that is not possible."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def disk(work: Path, reference: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Runs on a disk that is too small, continued on a larger one.

    Args:
        work: scratch folder.
        reference: folder of the undisturbed run.
        sizes: of the disks, in KiB.
    """
    rows = []
    for size in sizes:
        with small_disk(work / "disk", size) as resize:
            output = work / "disk" / "run"
            first = Attempt(lambda output=output: pretrain(run_flags(output, 0)), work / "log")
            row: dict[str, Any] = {"kibibytes": size, "status": first.wait(), "tracebacks": first.text.count(TRACEBACK)}
            row["said"] = first.text.strip().splitlines()[-1][-300:].replace(str(work), "WORK")
            resize(10**6)
            again = Attempt(lambda output=output: pretrain([*run_flags(output, 0), "--c"]), work / "log")
            row["continued"] = again.wait()
            row["same"] = row["continued"] == 0 and same_weights(output, reference)
            rows.append(row)
    return rows


def damage(work: Path, reference: Path) -> dict[str, Any]:
    """Damaged copies of a finished run's files: which are taken as they are, and how the others are answered.

    Args:
        work: scratch folder.
        reference: folder of the undisturbed run.
    """
    from damage import damaged

    from ssl_pretrain.training.checkpoints import LATEST, PREVIOUS, find_resumable
    from ssl_pretrain.transfer.weights_file import read_weights

    folder = shutil.copytree(reference, work / "damaged")
    found: dict[str, Any] = {"latest": {}, "final": {}}
    for name, content in list(damaged(folder / LATEST)):
        (folder / LATEST).write_bytes(content)
        found["latest"][name] = "the one before" if find_resumable(folder) == folder / PREVIOUS else "taken"
    for name, content in list(damaged(folder / FINAL)):
        (folder / FINAL).write_bytes(content)
        try:
            read_weights(folder / FINAL)
            found["final"][name] = "taken"
        except ValueError as error:
            found["final"][name] = "one line" if "\n" not in str(error) else "several lines"
    return found


def hostile(work: Path) -> list[dict[str, Any]]:
    """Crafted files of weights, each opened in a process of its own: what was said, seconds and memory.

    Args:
        work: scratch folder.
    """
    from test_source_bombs import write_all

    from ssl_pretrain.transfer.encoder import load_encoder

    folder = work / "hostile"
    folder.mkdir()
    write_all(folder)
    rows = []
    for file in sorted(folder.iterdir()):

        def open_it(file: Path = file) -> int:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.monotonic()
            try:
                load_encoder(file)
                said = "opened"
            except ValueError as error:
                said = str(error)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps([said.replace(str(folder), "…"), time.monotonic() - began, grown / 1024]))
            return 0

        attempt = Attempt(open_it, work / "log")
        status = attempt.wait(60)
        said, seconds, mebibytes = json.loads(attempt.text.splitlines()[-1]) if status == 0 else (None, None, None)
        rows.append({"file": file.name, "status": status, "said": said, "seconds": seconds, "mebibytes": mebibytes})
    return rows


def mutations(work: Path) -> dict[str, dict[str, int]]:
    """The table of the tests: kind of file -> outcome -> how often.

    Args:
        work: scratch folder.
    """
    from mutations import outcomes

    (work / "mutations").mkdir()
    counted: dict[str, Counter[str]] = {}
    for one in outcomes(work / "mutations"):
        counted.setdefault(one.kind, Counter())[one.outcome] += 1
    return {kind: dict(counts) for kind, counts in counted.items()}


def table_of(rows: Sequence[dict[str, Any]], by: str) -> str:
    """Outcomes of the kills as a table."""
    names = list(dict.fromkeys(row[by] for row in rows))
    cells = []
    for name in names:
        ours = [row for row in rows if row[by] == name]
        statuses = ", ".join(f"{status} x {n}" for status, n in sorted(Counter(str(r["status"]) for r in ours).items()))
        tracebacks = sum(bool(r.get("traceback") or r.get("tracebacks")) for r in ours)
        cells.append((name, len(ours), statuses, sum(bool(r["same"]) for r in ours), tracebacks))
    return format_table((by, "runs", "status", "ended as undisturbed", "tracebacks"), cells)


def main() -> None:
    """Run the parts one after the other, print their tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="runs that get SIGKILL")
    parser.add_argument("--terms", type=int, default=9, help="runs that get SIGTERM, and as many SIGINT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from made_data import write_dataset

    result: dict[str, Any] = {**provenance("cpu"), "settings": vars(given) | {"json": str(given.json)}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ |= {"nnUNet_preprocessed": str(work / "preprocessed"), "nnUNet_results": str(work)}
        write_dataset(work / "preprocessed", cases=6)
        reference = Attempt(lambda: pretrain(run_flags(work / "reference", 0)), work / "log")
        if reference.wait() != 0:
            raise SystemExit(f"The undisturbed run failed:\n{reference.text}")
        counts = {"SIGKILL": given.kills, "SIGTERM": given.terms, "SIGINT": given.terms}
        result["undisturbed_seconds"] = round(reference.seconds, 2)
        result["kills"] = kills(work, work / "reference", reference.seconds, counts, given.seed)
        print(table_of(result["kills"], "signal"), flush=True)
        if own_mounts():
            result["disk"] = disk(work, work / "reference", (16, 64, 256, 1024, 2048, 4096, 8192))
            print(table_of(result["disk"], "kibibytes"), flush=True)
        else:
            print("full disks left out: they need Linux and root", flush=True)
        result["damaged"] = damage(work, work / "reference")
        for name, found in result["damaged"].items():
            print(f"damaged {name}: {dict(Counter(found.values()))}", flush=True)
        result["hostile"] = hostile(work)
        answered = [row for row in result["hostile"] if row["status"] == 0 and row["said"] != "opened"]
        print(
            f"hostile files: {len(answered)} of {len(result['hostile'])} refused, at most "
            f"{max(row['seconds'] for row in answered):.1f} s and {max(row['mebibytes'] for row in answered):.0f} MiB",
            flush=True,
        )
        result["mutations"] = mutations(work)
        print(f"mutations: {dict(sum(map(Counter, result['mutations'].values()), Counter()))}", flush=True)
    write(result, given.json)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
