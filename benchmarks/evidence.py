"""Run a design of pretrainings and studies that a file holds; what is done already is not done again.

    python benchmarks/evidence.py benchmarks/evidence.toml --work FOLDER --jobs 2

Every entry of the file names the flags of the real commands, so the file says what is run and nothing else decides
it. An interruption costs the run that it hits what it did since its last checkpoint: start the command again.
Needs Python 3.11. ``--only NAME`` runs entries whose names begin so; ``--pretrain_only`` leaves the studies for later;
``--show`` prints the commands.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomllib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.small_plans import preprocessed_folder

FINAL, LATEST, STUDY = "checkpoint_final.pth", "checkpoint_latest.ckpt", "study.json"


def plan_commands(entry: Mapping[str, Any]) -> list[list[str]]:
    """Commands that make the plans of an entry, and preprocess for them; none where they are made."""
    number, name = str(entry["dataset"]), str(entry["name"])
    if (preprocessed_folder(int(number)) / f"{name}_small.json").is_file():
        return []
    small = ["python", "benchmarks/small_plans.py", "-d", number, "-p", name, *shlex.split(entry["small"])]
    if "spacing" not in entry:
        return [small]
    spacing = ["-overwrite_target_spacing", *map(str, entry["spacing"]), "-overwrite_plans_name", name]
    return [
        ["nnUNetv2_plan_experiment", "-d", number, *spacing],
        ["nnUNetv2_preprocess", "-d", number, "-plans_name", name, "-c", "3d_fullres", "-np", "2"],
        small,
    ]


def pretrainings(entry: Mapping[str, Any], work: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folder and command of each pretraining of an entry that is not done, from the last checkpoint if there is one."""
    for seed in range(entry["seeds"]):
        folder = work / "pretrained" / entry["name"] / f"seed{seed}"
        if (folder / FINAL).is_file():
            continue
        resume = ["--c"] if (folder / LATEST).is_file() else []
        command = ["nnUNetv2_pretrain", str(entry["dataset"]), "3d_fullres", "0", *shlex.split(entry["flags"])]
        yield folder, [*command, "-seed", str(seed), "-o", str(folder), *resume]


def study_command(entry: Mapping[str, Any], design: Mapping[str, Any], work: Path, jobs: int) -> list[str]:
    """Command of a study with all pretrainings that it names."""
    seeds = {made["name"]: made["seeds"] for made in design["pretraining"]}
    files = [
        str(work / "pretrained" / name / f"seed{seed}" / FINAL)
        for name in entry["pretrainings"]
        for seed in range(seeds[name])
    ]
    folder = work / "studies" / entry["name"]
    resume = ["--c"] if (folder / STUDY).is_file() else []
    what = ["-d", str(entry["dataset"]), "-c", "3d_fullres", "-w", *files, *shlex.split(entry["flags"])]
    return ["nnUNetv2_pretrain_study", *what, "-jobs", str(jobs), "-o", str(folder), *resume]


def run(command: Sequence[str], log: Path | None = None) -> None:
    """Run a command, its output into a file if there is one.

    Raises:
        RuntimeError: it failed.
    """
    print(shlex.join(command), flush=True)
    if log is None:
        done = subprocess.run(command)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}; {log or 'see above'}")


def main() -> int:
    """Plans, then pretrainings, then studies; 1 where one failed, with all others done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("design", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of pretrainings and studies")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="entries whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread")
    parser.add_argument("--pretrain_only", action="store_true")
    parser.add_argument("--show", action="store_true", help="print the commands that are left and run nothing")
    given = parser.parse_args()
    design, work = tomllib.loads(given.design.read_text(encoding="utf-8")), given.work.resolve()
    chosen = {
        kind: [e for e in design[kind] if e["name"].startswith(tuple(given.only))] for kind in ("pretraining", "study")
    }
    studies = [] if given.pretrain_only else chosen["study"]
    plans = [command for entry in design["plans"] for command in plan_commands(entry)]
    # Seed by seed: a design that is stopped has one pretraining of each method rather than three of one.
    waiting = [pair for entry in chosen["pretraining"] for pair in pretrainings(entry, work)]
    waiting.sort(key=lambda pair: pair[0].name)
    if given.show:
        commands = [*plans, *(command for _, command in waiting)]
        commands += [study_command(entry, design, work, given.jobs) for entry in studies]
        print("\n".join(map(shlex.join, commands)))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = []

    def attempt(command: Sequence[str], log: Path | None = None) -> None:
        try:
            run(command, log)
        except RuntimeError as error:
            failed.append(str(error))

    for command in plans:
        run(command)
    with ThreadPoolExecutor(given.jobs) as pool:
        for folder, command in waiting:
            pool.submit(attempt, command, folder.with_suffix(".log"))
    for entry in studies:
        attempt(study_command(entry, design, work, given.jobs))
    print("\n".join(failed), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
