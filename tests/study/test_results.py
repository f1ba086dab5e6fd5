"""From results of runs to tables, plot, study.json: on made results, against direct computation."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from made_study import LABEL, finish, read, settings, write_home, write_weights

from ssl_pretrain.files import write_json
from ssl_pretrain.study.cells import size_lines
from ssl_pretrain.study.launch import gather, slurm_script
from ssl_pretrain.study.outcomes import mean_dice
from ssl_pretrain.study.results import analyse
from ssl_pretrain.study.statistics import bootstrap_means, interval
from ssl_pretrain.study.study import FAILURE, LOG, Study, begin
from ssl_pretrain.study.tables import console, markdown
from ssl_pretrain.study.worker import read_summary, unfinished

LEVELS = {"scratch": 0.6, "SparK": 0.7}


@pytest.fixture
def study(tmp_path, monkeypatch):
    write_home(tmp_path / "home", monkeypatch)
    return begin(settings(write_weights(tmp_path / "weights")), tmp_path / "my study")


@pytest.fixture
def results(study):
    """All runs but two: one has failed, one has begun; one has collapsed."""
    found = {}
    for run in study.runs:
        if run.name == "SparK/4cases_fold0_seed2":
            study.run_folder(run).mkdir(parents=True)
            (study.run_folder(run) / LOG).write_text("\n".join(f"line {i}" for i in range(40)), encoding="utf-8")
            write_json({"error": "RuntimeError: boom"}, study.run_folder(run) / FAILURE)
        elif run.name == "scratch/4cases_fold0_seed1":
            study.run_folder(run).mkdir(parents=True)
            (study.run_folder(run) / LOG).touch()
        else:
            level = 0.2 if run.name == "scratch/2cases_fold0_seed1" else LEVELS[run.arm]
            found[run.name] = finish(study, run, level)
    return found


def dice(results, arm, cases):
    return {
        seed: results[name]["dice"] for seed in range(3) if (name := f"{arm}/{cases}cases_fold0_seed{seed}") in results
    }


def test_what_became_of_every_run(study, results):
    statuses = {o.run.name: o.status for o in analyse(study).outcomes}
    assert [name for name, status in statuses.items() if status == "failed"] == ["SparK/4cases_fold0_seed2"]
    assert [name for name, status in statuses.items() if status == "begun"] == ["scratch/4cases_fold0_seed1"]
    assert {name for name, status in statuses.items() if status == "done"} == set(results)


def test_the_summary_is_that_of_the_runs(study, results):
    rows = {(row["size"], row["arm"]): row for row in analyse(study).summary}
    assert list(rows) == [("2 cases", "scratch"), ("2 cases", "SparK"), ("4 cases", "scratch"), ("4 cases", "SparK")]
    values = list(dice(results, "scratch", 2).values())
    row = rows["2 cases", "scratch"]
    assert row["mean"] == pytest.approx(sum(values) / 3)
    assert row["median"] == sorted(values)[1]
    assert row["sd"] == pytest.approx(statistics.stdev(values))
    assert (row["lowest"], row["highest"], row["runs"], row["cases"]) == (min(values), max(values), 3, 2)
    assert [r["collapsed"] for r in rows.values()] == [1, 0, 0, 0]
    assert [r["failed"] for r in rows.values()] == [0, 0, 0, 1]


def test_differences_are_of_pairs_of_one_seed(study, results):
    two, four = analyse(study).differences
    ours, theirs = dice(results, "SparK", 2), dice(results, "scratch", 2)
    differences = [ours[seed] - theirs[seed] for seed in range(3)]
    assert two["difference"] == pytest.approx(sum(differences) / 3)
    assert (two["pairs"], two["better"], two["baseline"]) == (3, sum(d > 0 for d in differences), "scratch")
    assert two["pairs_without_collapsed"] == 2
    assert two["difference_without_collapsed"] == pytest.approx((differences[0] + differences[2]) / 2)
    assert two["t_low"] < two["difference"] < two["t_high"]
    # Seed 1 lacks its scratch, seed 2 its pretrained run.
    assert (four["pairs"], four["low"], four["t_low"]) == (1, None, None)
    assert four["difference"] == pytest.approx(dice(results, "SparK", 4)[0] - dice(results, "scratch", 4)[0])


def test_the_interval_is_the_bootstraps(study, results):
    def scores(arm):
        runs = [results[f"{arm}/2cases_fold0_seed{seed}"]["per_case"] for seed in range(3)]
        return np.array([[[values[LABEL]] for _, values in sorted(run.items())] for run in runs])

    row = analyse(study).differences[0]
    draws = bootstrap_means([np.stack([scores("SparK"), scores("scratch")])[:, None]])
    assert (row["low"], row["high"]) == interval(draws[:, 0] - draws[:, 1])
    assert row["low"] < row["difference"] < row["high"]


def test_labels_have_their_own_rows(study, results):
    analysis = analyse(study)
    assert [(r["size"], r["label"], r["arm"]) for r in analysis.labels] == [
        ("2 cases", LABEL, "SparK"),
        ("4 cases", LABEL, "SparK"),
    ]
    # With one label it is the whole.
    assert analysis.labels[0]["difference"] == pytest.approx(analysis.differences[0]["difference"])
    assert analysis.labels[0]["scratch"] == pytest.approx(statistics.fmean(dice(results, "scratch", 2).values()))


def test_gathering_writes_numbers_tables_and_plot(study, results):
    gather(study)
    content = read(study.folder / "study.json")
    assert Study.read(study.folder) == study
    runs = {run["name"]: run for run in content["runs"]}
    assert len(runs) == 12
    done = runs["SparK/2cases_fold0_seed0"]
    assert (done["status"], done["collapsed"]) == ("done", False)
    assert done["per_case"] == results["SparK/2cases_fold0_seed0"]["per_case"]
    assert runs["scratch/2cases_fold0_seed1"]["collapsed"]
    failed = runs["SparK/4cases_fold0_seed2"]
    assert (failed["error"], failed["log_end"][-1], len(failed["log_end"])) == ("RuntimeError: boom", "line 39", 15)
    assert {"versions", "machine", "begun", "settings", "differences", "summary", "labels", "notes"} <= set(content)
    assert (study.folder / "study.png").read_bytes().startswith(b"\x89PNG")
    page = (study.folder / "study.md").read_text(encoding="utf-8")
    assert (
        "10 of 12 runs. Validation cases: 2 of fold 0. Each run: 2 steps of batch 2; 0.0 hours in all on made." in page
    )
    assert "RuntimeError: boom" in page and "line 39" in page and "line 24" not in page
    assert "resamples pairs and validation cases at once" in page
    assert "NaN" not in (study.folder / "study.json").read_text(encoding="utf-8")


def test_the_tables_say_the_same_on_the_console_and_in_markdown(study, results):
    analysis = analyse(study)
    row = analysis.differences[0]
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
    for text in (console(analysis), markdown(study, analysis)):
        assert interval in text
        assert f"{row['difference']:+.4f}" in text
        assert f"{row['better']} of 3" in text
        assert f"({row['pairs_without_collapsed']})" in text
        assert "nan" not in text.lower().replace("nnunet", "")


def test_a_study_without_results_has_tables_too(study):
    analysis = gather(study)
    assert {row["runs"] for row in analysis.summary} == {0}
    assert {row["pairs"] for row in analysis.differences} == {0}
    assert "0 of 12 runs" in (study.folder / "study.md").read_text(encoding="utf-8")


def test_mean_dice_is_nnunets_foreground_mean():
    per_case = {"b": {"x": 0.5, "y": None, "z": None}, "a": {"x": 1.0, "y": 0.0, "z": None}}
    mean, labels = mean_dice(per_case)
    assert (mean, labels) == (0.375, {"x": 0.75, "y": 0.0, "z": None})


def summary(tmp_path: Path, n_ref: dict[str, int] = MappingProxyType({}), **cases: dict[str, float]) -> Path:
    rows = [
        {
            "prediction_file": f"/r/{case}.nii.gz",
            "metrics": {k: {"Dice": v, "IoU": 0, "n_ref": n_ref.get(k, 5)} for k, v in values.items()},
        }
        for case, values in cases.items()
    ]
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"metric_per_case": rows}), encoding="utf-8")
    return file


def test_dice_is_read_from_nnunets_summary(tmp_path):
    file = summary(tmp_path, a={"1": 0.5, "(1, 2)": math.nan}, b={"1": 0.7, "(1, 2)": 0.2})
    found = read_summary(file, {"1": "tip", "(1, 2)": "whole"}, ["b", "a"], ".nii.gz")
    assert found["per_case"] == {"a": {"tip": 0.5, "whole": None}, "b": {"tip": 0.7, "whole": 0.2}}
    assert found["labels"] == {"tip": pytest.approx(0.6), "whole": 0.2}
    assert found["dice"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="is about 2 cases, not the 3 validation cases of the study"):
        read_summary(file, {"1": "tip"}, ["a", "b", "c"], ".nii.gz")
    file = summary(tmp_path, a={"1": math.nan})
    with pytest.raises(ValueError, match=r"No validation case has a label: .*Choose another fold"):
        read_summary(file, {"1": "tip"}, ["a"], ".nii.gz")


def test_a_label_that_no_validation_case_has_does_not_count_even_if_it_was_predicted(tmp_path):
    labels = {"1": "tip", "2": "rare"}
    missed = summary(tmp_path, {"2": 0}, a={"1": 0.5, "2": math.nan}, b={"1": 0.7, "2": math.nan})
    quiet = read_summary(missed, labels, ["a", "b"], ".nii.gz")
    found = summary(tmp_path, {"2": 0}, a={"1": 0.5, "2": 0.0}, b={"1": 0.7, "2": math.nan})
    assert read_summary(found, labels, ["a", "b"], ".nii.gz") == quiet
    assert (quiet["dice"], quiet["labels"]["rare"]) == (pytest.approx(0.6), None)


def test_pairs_count_for_a_label_where_both_runs_have_it(tmp_path, monkeypatch, recwarn):
    write_home(tmp_path / "home", monkeypatch)
    study = begin(settings(write_weights(tmp_path / "weights"), folds=(0, 1), cases=(2,)), tmp_path / "study")
    for run in study.runs:
        content = finish(study, run, LEVELS[run.arm])
        for i, values in enumerate(content["per_case"].values()):
            # Nobody has it in fold 1, and one run lost it in a case of fold 0.
            values["rare"] = None if run.fold == 1 else (run.seed + i) / 10 + (0.25 if run.arm == "SparK" else 0)
        content["dice"], content["labels"] = mean_dice(content["per_case"])
        write_json(content, study.run_folder(run) / "result.json")
    study.labels["9"] = "rare"
    organ, rare = analyse(study).labels
    assert (organ["label"], organ["pairs"]) == (LABEL, 6)
    assert (rare["pairs"], rare["difference"]) == (3, pytest.approx(0.25))
    assert (rare["low"], rare["high"]) == pytest.approx((0.25, 0.25))
    assert not [w for w in recwarn.list if "NaN" in str(w.message)]


def test_an_amount_is_told_in_cases_once():
    assert size_lines("4 cases", 4) == ["4 cases"]
    assert size_lines("10 %", 10) == ["10 %", "(10 cases)"]
    assert size_lines("5 %", 1) == ["5 %", "(1 case)"]
    assert size_lines("50 %", 4.5) == ["50 %", "(4.5 cases)"]


def test_warnings_are_in_the_tables(study):
    warned = replace(study, warnings=["SparK has seen it all."])
    assert "**SparK has seen it all.**" in markdown(warned, analyse(warned))
    gather(warned)
    assert Study.read(study.folder).warnings == ["SparK has seen it all."]


def test_a_damaged_result_is_named(study):
    file = study.run_folder(study.runs[0]) / "result.json"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(ValueError, match=r"seed0/result.json is not valid JSON.*Remove this file, and --c runs"):
        analyse(study)


def test_a_finished_training_is_validated_and_a_stopped_one_goes_on_but_not_from_a_damaged_file(tmp_path, caplog):
    assert unfinished(tmp_path) is None
    latest = tmp_path / "nnUNet_results" / "D" / "fold_0" / "checkpoint_latest.pth"
    latest.parent.mkdir(parents=True)
    torch.save({"network_weights": {"a": torch.ones(100)}}, latest)
    (latest.parent / "checkpoint_final.pth.tmp").touch()
    assert unfinished(tmp_path) == latest
    final = latest.with_name("checkpoint_final.pth")
    shutil.copyfile(latest, final)
    assert unfinished(tmp_path) == final
    whole = final.read_bytes()
    final.write_bytes(whole.replace(torch.ones(100).numpy().tobytes(), torch.ones(100).numpy().tobytes()[:-1] + b"!"))
    assert unfinished(tmp_path) == latest
    assert f"{final} is damaged (" in caplog.text
    latest.write_bytes(whole[:-100])
    assert unfinished(tmp_path) is None
    assert f"{latest} is damaged (it is cut off)" in caplog.text


def test_the_array_script_has_a_task_for_each_run_that_is_not_done(study, results):
    script = slurm_script(study, 4)
    assert "#SBATCH --array=0-1%4" in script
    assert script.count("_seed") == 2
    assert "  scratch/4cases_fold0_seed1\n" in script
    assert "gpu" not in script
    assert f"nnUNetv2_pretrain_study -o '{study.folder}' --gather" in script
    assert str(study.folder).replace(" ", "\\ ") + "/slurm/%A_%a.txt" in script
    assert slurm_script(study, 1).count("%4") == 0


def test_sbatch_finds_the_logs_whatever_the_folder_is_called(study, tmp_path):
    folder = tmp_path / "Anna's #1 study, 50%"
    folder.mkdir()
    script = slurm_script(replace(study, folder=folder), 1)
    (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --output=")]
    # As sbatch, shlex knows quotes, backslashes and comments; sbatch then puts numbers for %A and %a and % for %%.
    assert shlex.split(line.removeprefix("#SBATCH "), comments=True) == [
        f"--output={folder}/slurm/%A_%a.txt".replace("50%", "50%%")
    ]


@pytest.mark.parametrize("name", ["back\\slash", "two\nlines"])
def test_folders_that_sbatch_cannot_name_are_refused(study, tmp_path, name):
    with pytest.raises(ValueError, match=r"SLURM cannot write logs into .* Move the study"):
        slurm_script(replace(study, folder=tmp_path / name), 1)


def test_there_is_nothing_to_submit_when_all_is_done(study):
    for run in study.runs:
        finish(study, run, 0.5)
    with pytest.raises(ValueError, match=r"All 12 runs of .* are done: there is nothing to submit"):
        slurm_script(study, 1)
