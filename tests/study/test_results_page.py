"""The tables of ``documentation/results.md`` are what the recorded runs say."""

from __future__ import annotations

import importlib
import json
import re
import shlex

import pytest
from conftest import REPOSITORY

from ssl_pretrain.study.results import analyse
from ssl_pretrain.study.study import RESULT, Study
from ssl_pretrain.study.tables import markdown

PAGE = REPOSITORY / "documentation" / "results.md"
RECORDED = sorted((REPOSITORY / "benchmarks" / "results").glob("cpu_study_*.json"))


def restored(content, folder):
    """The study's folder, as far as a page needs it."""
    (folder / "study.json").write_text(json.dumps(content))
    study = Study.read(folder)
    for run, entry in zip(study.runs, content["runs"], strict=True):
        assert run.name == entry["name"]
        place = study.run_folder(run)
        place.mkdir(parents=True)
        trained = {**content["trained"], **entry.get("trained", {})}
        filled = {**entry, "trained": trained, "machine": content["machine"]}
        (place / RESULT).write_text(json.dumps(filled))
    return study


@pytest.fixture
def study_page(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module("benchmarks.study_page")


@pytest.fixture
def study_compare(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module("benchmarks.study_compare")


def section_of(name):
    """The part of the page, from a heading to the next, that names the file of a study."""
    (found,) = [part for part in PAGE.read_text().split("\n## ") if f"results/{name}.json)" in part]
    return found


def comparisons(section):
    """Training cases and pairs of arms of the commands in a section that compare arms."""
    commands = re.findall(r"^python benchmarks/study_compare\.py ((?:.+\\\n)*.+)$", section, re.MULTILINE)
    given = [shlex.split(command.replace("\\\n", " ")) for command in commands]
    return [(int(cases), pairs) for cases, *pairs in given]


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_the_tables_of_a_section_are_what_the_recorded_runs_say(file, tmp_path, study_page, study_compare):
    content = json.loads(file.read_text())
    study = restored(content, tmp_path)
    rows = rows_of(study_page.tables(markdown(study, analyse(study)))) + rows_of(study_page.pretraining_table(content))
    assert len(rows) > len(content["summary"]) + len(content["differences"]) + len(content["labels"])
    section = section_of(file.stem)
    for cases, pairs in comparisons(section):
        rows += rows_of(study_compare.table(cases, pairs))
    assert sorted(rows_of(section)) == sorted(rows)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_no_run_is_missing_and_none_was_validated_on_its_training_cases(file):
    content = json.loads(file.read_text())
    assert {run["status"] for run in content["runs"]} == {"done"}
    assert len(content["runs"]) == len(content["arms"]) * len(content["sizes"]) * content["settings"]["seeds"]
    for run in content["runs"]:
        fold = content["dataset"]["folds"][str(run["fold"])]
        assert set(run["per_case"]) == set(fold["validation"])
        assert not set(fold["train"]) & set(fold["validation"])


def test_every_recorded_study_is_on_the_page():
    assert RECORDED
    named = set(re.findall(r"results/(cpu_study_\w+)\.json", PAGE.read_text()))
    assert named == {file.stem for file in RECORDED}


def test_what_is_recorded_has_no_path_of_a_machine(study_page, tmp_path):
    arm = {"name": "MAE", "weights": str(tmp_path / "MAE" / "checkpoint_final.pth")}
    (tmp_path / "MAE").mkdir()
    (tmp_path / "MAE" / "metrics.csv").write_text("epoch,val_loss,epoch_seconds\n0,1.5,60.04\n1,0.1234567,30\n")
    run = {"trained": {"steps": 2, "train_loss": [0.5, 0.25]}, "machine": {"system": "a"}, "versions": {}, "dice": 0.5}
    study = {
        "settings": {"weights": [arm["weights"]]},
        "arms": [{"name": "scratch", "weights": None}, arm],
        "machine": {"device": "b", "system": "a"},
        "runs": [run],
    }
    assert study_page.portable(study) == {
        "settings": {"weights": ["MAE/checkpoint_final.pth"]},
        "arms": [{"name": "scratch", "weights": None}, {"name": "MAE", "weights": "MAE/checkpoint_final.pth"}],
        "machine": {"device": "b"},
        "pretraining": {"MAE": {"seconds": 90.0, "val_loss": [1.5, 0.12346]}},
        "trained": {"steps": 2},
        "runs": [{"dice": 0.5, "last_loss": 0.25}],
    }
    assert "trained" in run

    other = {**run, "trained": {"steps": 2, "lr": 0.1, "train_loss": [0.5]}}
    run["trained"]["lr"] = 0.01
    found = study_page.portable({**study, "runs": [run, other]})
    assert found["trained"] == {"steps": 2}
    assert [entry["trained"] for entry in found["runs"]] == [{"lr": 0.01}, {"lr": 0.1}]


def test_two_arms_of_recorded_studies_are_compared_as_a_study_does(study_compare):
    content = json.loads(RECORDED[0].read_text())
    name = RECORDED[0].stem.removeprefix("cpu_study_")
    found = content["differences"][0]
    row = study_compare.row(f"{name}/{found['arm']}", f"{name}/scratch", int(found["cases"]))
    assert row[1] == content["settings"]["seeds"]
    assert row[2] == f"{found['difference']:+.4f}"
    assert row[3] == f"{found['low']:+.4f} to {found['high']:+.4f}"
    assert row[5] == f"{found['better']} of {found['pairs']}"
    swapped = study_compare.row(f"{name}/scratch", f"{name}/{found['arm']}", int(found["cases"]))
    assert swapped[2] == f"{-found['difference']:+.4f}"


def test_runs_of_other_cases_are_not_compared(study_compare):
    with pytest.raises(ValueError, match="openkbp/MAE and hippocampus/MAE were not trained and validated on the same"):
        study_compare.row("openkbp/MAE", "hippocampus/MAE", 6)
    with pytest.raises(ValueError, match=r"No run of 'SimMIM' with 6 training cases\. Arms there: scratch, AnatoMask"):
        study_compare.row("openkbp/SimMIM", "openkbp/scratch", 6)
    with pytest.raises(ValueError, match="No run of 'MAE' with 7 training cases"):
        study_compare.row("openkbp/MAE", "openkbp/scratch", 7)


def test_the_page_compares_arms_of_studies():
    assert [cases for file in RECORDED for cases, _ in comparisons(section_of(file.stem))]
