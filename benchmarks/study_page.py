"""What a finished study leaves in this repository: its numbers, its plot, and tables to paste into a page.

    python benchmarks/study_page.py study_work/4/unet/study cpu_study_hippocampus

writes ``benchmarks/results/cpu_study_hippocampus.json`` and ``figs/cpu_study_hippocampus.png`` and prints the tables as
Markdown. Paths of the machine are left out of the numbers, and what is the same in every run is in them once.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ONCE = ("machine", "versions", "trained")


def portable(study: dict[str, Any]) -> dict[str, Any]:
    """The content of ``study.json`` without the machine's paths, and without what each run repeats.

    Args:
        study: the content; is not changed.
    """
    content = copy.deepcopy(study)
    content["settings"]["weights"] = [relative(file) for file in content["settings"]["weights"]]
    content["machine"].pop("system", None)
    for arm in content["arms"]:
        arm["weights"] = arm["weights"] and relative(arm["weights"])
    content["trained"] = {key: value for key, value in content["runs"][0]["trained"].items() if key != "train_loss"}
    for run in content["runs"]:
        run["last_loss"] = run["trained"]["train_loss"][-1]
        for name in ONCE:
            run.pop(name, None)
    return content


def relative(file: str) -> str:
    """Method and name of a file of weights."""
    return "/".join(Path(file).parts[-2:])


def tables(markdown: str) -> str:
    """The tables of ``study.md`` about Dice, without its title, arms, notes and figure."""
    lines = markdown[markdown.index("## Dice") :].splitlines()
    return "\n".join(line for line in lines if line.startswith(("|", "#")) or not line)


def main() -> None:
    """Write numbers and plot, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("name", help="of the files")
    given = parser.parse_args()
    content = portable(json.loads((given.study / "study.json").read_text(encoding="utf-8")))
    text = json.dumps(content, separators=(",", ":"))
    (ROOT / "benchmarks" / "results" / f"{given.name}.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(given.study / "study.png", ROOT / "figs" / f"{given.name}.png")
    print(tables((given.study / "study.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
