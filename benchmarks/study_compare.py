"""Arms of recorded studies against each other, run by run: the same seed, training cases and validation cases.

    python benchmarks/study_compare.py 6 openkbp_adamw/MAE,openkbp/MAE openkbp_adamw/S3D,openkbp/S3D

prints the first minus the second of each pair of arms as Markdown, for as many training cases as the number says.
``openkbp`` is ``benchmarks/results/cpu_study_openkbp.json``. A study compares its arms with scratch; this says what two
ways of pretraining, in one study or in two, differ by.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_pretrain.study.cells import comparison_cells, markdown_table
from ssl_pretrain.study.design import StudyRun
from ssl_pretrain.study.outcomes import Outcome, compare

RESULTS = Path(__file__).resolve().parent / "results"
HEADERS = ("first - second", "pairs", "difference", "95 % bootstrap", "95 % t", "better")


def recorded(study: str) -> dict[str, Any]:
    """Content of a recorded study.

    Args:
        study: its name, without ``cpu_study_``.
    """
    content: dict[str, Any] = json.loads((RESULTS / f"cpu_study_{study}.json").read_text(encoding="utf-8"))
    return content


def runs_of(content: Mapping[str, Any], arm: str, cases: int) -> dict[tuple[int, int, int], Outcome]:
    """Runs of an arm with so many training cases, by what they share with those of other arms.

    Raises:
        ValueError: there are none.
    """
    entries = [entry for entry in content["runs"] if (entry["arm"], entry["cases"]) == (arm, cases)]
    if not entries:
        names = ", ".join(arm["name"] for arm in content["arms"])
        raise ValueError(f"No run of {arm!r} with {cases} training cases. Arms there: {names}.")
    found = [Outcome(StudyRun(arm, entry["fold"], entry["seed"], cases), "done", entry) for entry in entries]
    return {outcome.run.subset: outcome for outcome in found}


def row(first: str, second: str, cases: int) -> list[object]:
    """Cells of :data:`HEADERS` for two arms, each ``study/arm``.

    Raises:
        ValueError: the two were not trained and validated on the same cases.
    """
    names = [arm.split("/", 1) for arm in (first, second)]
    studies = [recorded(study) for study, _ in names]
    # A seed draws the training cases from those of the fold, so equal folds are equal subsets.
    if studies[0]["dataset"] != studies[1]["dataset"]:
        raise ValueError(f"{first} and {second} were not trained and validated on the same cases.")
    ours, theirs = (runs_of(study, arm, cases) for study, (_, arm) in zip(studies, names, strict=True))
    pairs = [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]
    return [f"{first} - {second}", *comparison_cells(compare(pairs))]


def table(cases: int, pairs: Sequence[str]) -> str:
    """The comparisons as Markdown; each pair is two arms with a comma between."""
    return markdown_table(HEADERS, [row(*pair.split(","), cases) for pair in pairs])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int, help="training cases")
    parser.add_argument("pairs", nargs="+", metavar="STUDY/ARM,STUDY/ARM")
    given = parser.parse_args()
    print(table(given.cases, given.pairs))


if __name__ == "__main__":
    main()
