"""What runs noted on their way, as tables and plots: on made notes, against direct computation."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from made_study import LABEL, finish, read, settings, write_home, write_weights

from ssl_pretrain.files import write_json
from ssl_pretrain.study.arms import Arm
from ssl_pretrain.study.curves import NEVER
from ssl_pretrain.study.design import StudyRun
from ssl_pretrain.study.launch import gather
from ssl_pretrain.study.results import analyse
from ssl_pretrain.study.statistics import area_under
from ssl_pretrain.study.study import RESULT, Study, begin
from ssl_pretrain.study.tables import console, markdown

STEPS = (5, 10, 50, 100)
HEIGHTS = {"scratch": (0.1, 0.2, 0.5, 0.6), "SparK": (0.3, 0.5, 0.62, 0.64), "slow": (0.1, 0.1, 0.2, 0.3)}
"""Mean Dice of the arms after these steps."""


def leave_notes(study: Study, run: StudyRun, heights: tuple[float, ...], shift: float) -> list[dict[str, Any]]:
    """Leave a result with a curve, a probe and a movement; returns the points of the curve."""
    content = finish(study, run, heights[-1])
    cases = study.folds[run.fold]["validation"]
    rng = np.random.default_rng(run.seed)
    points = []
    for steps, height in zip(STEPS, heights, strict=True):
        per_case = {case: {LABEL: float(height + shift + 0.002 * rng.standard_normal())} for case in cases}
        mean = statistics.fmean(values[LABEL] for values in per_case.values())
        points.append({"steps": steps, "dice": mean, "labels": {LABEL: mean}, "per_case": per_case, "seconds": 1.0})
    moved = {"distance": 0.5 * heights[0], "cosine": 0.75}
    movement = [{"steps": 1, "parts": {"encoder": moved, "rest": {**moved, "cosine": None}}}]
    write_json({**content, "curve": points, "probe": points[0], "movement": movement}, study.run_folder(run) / RESULT)
    return points


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two arms and two amounts of data, whose three seeds are one half of a percent apart."""
    root = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        write_home(root / "home", patch)
        weights = write_weights(root / "SparK"), write_weights(root / "slow", seed=1, method="slow")
        made = begin(settings(*weights, primary=("SparK@2",), curve=(0.05,), probe=5), root / "study")
    names = {"SparK": "SparK", "SparK slow": "slow"}
    for run in made.runs:
        leave_notes(made, run, HEIGHTS[names.get(run.arm, "scratch")], 0.005 * run.seed)
    return made


def rows(entries, arm, size="2 cases"):
    return [row for row in entries if (row["arm"], row["size"]) == (arm, size)]


def test_points_are_means_over_runs_with_what_they_differ_from_scratch(study):
    noted = analyse(study).noted
    found = rows(noted.points, "SparK")
    assert [row["steps"] for row in found] == list(STEPS)
    assert [row["mean"] for row in found] == pytest.approx([h + 0.005 for h in HEIGHTS["SparK"]], abs=0.003)
    assert [row["sd"] for row in found] == pytest.approx([0.005] * 4, abs=0.002)
    apart = [a - b for a, b in zip(HEIGHTS["SparK"], HEIGHTS["scratch"], strict=True)]
    assert [row["difference"] for row in found] == pytest.approx(apart, abs=0.003)
    # What a seed adds to both sides widens the interval of the mean and not that of the difference.
    assert all(row["high"] - row["low"] > 0.005 > row["difference_high"] - row["difference_low"] for row in found)
    assert rows(noted.points, "scratch")[0]["difference"] is None


def test_steps_to_scratch_are_between_points_and_never_is_said(study):
    noted = analyse(study).noted
    final, most = rows(noted.reach, "SparK")
    assert (final["share"], final["target"]) == (1.0, pytest.approx(0.605, abs=0.003))
    # From 0.5 after 10 steps to 0.62 after 50: 0.6 after 43.
    assert final["steps"] == pytest.approx(10 + 40 * 0.1 / 0.12, abs=1)
    assert final["scratch_steps"] == 100
    assert final["ratio"] == pytest.approx(final["steps"] / 100)
    assert final["ratio_low"] <= final["ratio"] <= final["ratio_high"]
    assert most["target"] == pytest.approx(0.9 * final["target"])
    slow, _ = rows(noted.reach, "SparK slow")
    assert (slow["steps"], slow["steps_high"], slow["ratio"]) == (NEVER, NEVER, NEVER)
    (area,) = rows(noted.areas, "SparK")
    assert area["area"] == pytest.approx(area_under(np.array(STEPS), np.array(HEIGHTS["SparK"])) + 0.005, abs=0.003)
    assert area["difference_low"] <= area["difference"] <= area["difference_high"]
    assert (area["collapsed"], area["runs"]) == (0, 3)


def test_probes_and_movement_have_rows(study):
    noted = analyse(study).noted
    (probe,) = rows(noted.probes, "SparK")
    assert (probe["mean"], probe["difference"]) == (pytest.approx(0.305, abs=0.003), pytest.approx(0.2, abs=0.003))
    assert "difference" not in rows(noted.probes, "scratch")[0]
    (moved,) = rows(noted.movement, "SparK")
    assert moved["parts"]["encoder"] == {"distance": pytest.approx(0.15), "cosine": 0.75}
    assert moved["parts"]["rest"]["cosine"] is None


def test_primary_comparisons_are_corrected_and_all_others_called_exploratory(study):
    analysis = analyse(study)
    found = {(row["arm"], row["size"]): row for row in analysis.differences}
    primary = found["SparK", "2 cases"]
    assert primary["p_holm"] == primary["p"], "there is one"
    assert not any("p_holm" in row for key, row in found.items() if key != ("SparK", "2 cases"))
    text = markdown(study, analysis)
    assert text.count("| exploratory |") == 3 and f"| {primary['p_holm']:.4f} |" in text
    assert "named before the runs, are SparK@2" in text


def test_tables_and_plots_show_them(study):
    gather(study)
    text, shown = (study.folder / "study.md").read_text(encoding="utf-8"), console(analyse(study))
    for section in ("## Learning curves", "## Frozen encoder", "## How far the weights moved"):
        assert section in text
    assert "| 2 cases | SparK slow | 100 % of scratch |" in text and NEVER in shown
    assert "| 2 cases | SparK | 1 | encoder | 0.1500 | 0.7500 |" in text
    assert (study.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(read(study.folder / "study.json")["reach"]) == 2 * 3 * 2
    assert Study.read(study.folder) == study


def test_pretrainings_of_one_arm_are_one_row_with_a_wider_interval(tmp_path, monkeypatch):
    write_home(tmp_path / "home", monkeypatch)
    study = begin(settings(write_weights(tmp_path / "a"), cases=(2,)), tmp_path / "study")
    scratch, first = study.arms
    second = Arm(**{**first.to_dict(), "name": "SparK b", "group": "SparK", "sha256": "other"})
    runs = [*study.runs, *(StudyRun("SparK b", r.fold, r.seed, r.cases) for r in study.runs if r.arm == "SparK")]
    grouped = Study(**{**vars(study), "arms": [scratch, first, second], "runs": runs})
    for run in runs:
        leave_notes(grouped, run, HEIGHTS["SparK" if run.arm != "scratch" else "scratch"], 0.1 * (run.arm == "SparK b"))
    (row,) = analyse(grouped).differences
    (alone,) = analyse(study).differences
    assert (row["pairs"], row["pretrainings"], alone["pretrainings"]) == (6, 2, 1)
    assert [r["runs"] for r in analyse(grouped).summary] == [3, 6]
    points, one = analyse(grouped).noted.points[-1], analyse(study).noted.points[-1]
    assert points["difference"] == pytest.approx(one["difference"] + 0.05, abs=0.005)
    # Half of the draws have one pretraining twice.
    assert points["difference_high"] - points["difference_low"] == pytest.approx(0.1, abs=0.01)
    assert one["difference_high"] - one["difference_low"] < 0.02
