"""What a finished study and its pretraining leave in this repository: numbers, plot, and tables to paste into a page.

    python benchmarks/study_page.py study_work/4/unet/study cpu_study_hippocampus

writes ``benchmarks/results/cpu_study_hippocampus.json`` and ``figs/cpu_study_hippocampus.png`` and prints the tables as
Markdown. Paths of the machine are left out of the numbers, and what is the same in every run is in them once.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_pretrain.study.cells import markdown_table

ROOT = Path(__file__).resolve().parents[1]
ONCE = ("machine", "versions", "trained")
PRETRAINING = (
    *("method", "pretraining, one core", "validation loss, first and last epoch"),
    "share of nnU-Net's network that it gives",
)


def portable(study: dict[str, Any]) -> dict[str, Any]:
    """The content of ``study.json`` without the machine's paths, and without what each run repeats.

    Args:
        study: the content; is not changed.
    """
    content = copy.deepcopy(study)
    content["pretraining"] = {arm["name"]: course(Path(arm["weights"])) for arm in content["arms"] if arm["weights"]}
    content["settings"]["weights"] = [relative(file) for file in content["settings"]["weights"]]
    content["machine"].pop("system", None)
    for arm in content["arms"]:
        arm["weights"] = arm["weights"] and relative(arm["weights"])
    settings = [run["trained"] for run in content["runs"]]
    content["trained"] = {key: v for key, v in settings[0].items() if all(other[key] == v for other in settings)}
    content["trained"].pop("train_loss", None)
    for run in content["runs"]:
        run["last_loss"] = run["trained"]["train_loss"][-1]
        own = {key: v for key, v in run["trained"].items() if key not in {*content["trained"], "train_loss"}}
        for name in ONCE:
            run.pop(name, None)
        # Arms may have trainers of their own.
        if own:
            run["trained"] = own
    return content


def course(weights: Path) -> dict[str, Any]:
    """Seconds of training and validation loss after every epoch, of the run that a file of weights lies beside."""
    with (weights.parent / "metrics.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    seconds = sum(float(row["epoch_seconds"]) for row in rows)
    return {"seconds": round(seconds, 1), "val_loss": [round(float(row["val_loss"]), 5) for row in rows]}


def pretraining_table(content: Mapping[str, Any]) -> str:
    """The table of what was pretrained, of a recorded study."""
    rows = []
    for arm in content["arms"]:
        if found := content["pretraining"].get(arm["name"]):
            losses = f"{found['val_loss'][0]:.3f} → {found['val_loss'][-1]:.3f}"
            rows.append([arm["name"], f"{found['seconds'] / 60:.1f} min", losses, f"{100 * arm['loaded']:.0f} %"])
    return markdown_table(PRETRAINING, rows)


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
    if (given.study / "curves.png").is_file():
        shutil.copyfile(given.study / "curves.png", ROOT / "figs" / f"{given.name}_curves.png")
    print(pretraining_table(content), end="\n\n")
    print(tables((given.study / "study.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
