"""``nnUNetv2_pretrain_study`` as a user types it, on made data; no run trains to its end."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from made_data import NAME
from made_study import finish, read, write_home, write_weights

from ssl_pretrain.cli.pretrain_study import build_parser, main, settings_from
from ssl_pretrain.study.launch import run_all
from ssl_pretrain.study.study import Study


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """The flags of a small study."""
    write_home(tmp_path / "home", monkeypatch)
    file = write_weights(tmp_path / "weights")
    return [
        *("-d", "7", "-c", "3d_fullres", "-w", str(file), "-cases", "2", "-seeds", "1", "-device", "cpu"),
        *("-epochs", "1", "-iters", "1", "--no_mirroring", "-o", str(tmp_path / "study")),
    ]


@pytest.fixture
def begun(typed, tmp_path, capsys):
    """The study, prepared but not run."""
    assert main([*typed, "--emit", "slurm"]) == 0
    return Study.read(tmp_path / "study"), capsys.readouterr().out


def test_emitting_prints_the_script_and_nothing_else(begun):
    study, out = begun
    assert out.startswith("#!/bin/bash\n") and out.rstrip().endswith('"${runs[$SLURM_ARRAY_TASK_ID]}"')
    assert len(study.pending) == 2


def test_emitting_warns_beside_the_script(typed, tmp_path, capsys):
    file = write_weights(tmp_path / "all", dataset="7", fold="all")
    assert main([*typed, "-w", str(file), "--emit", "slurm"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!/bin/bash\n") and "transductive" not in shown.out
    assert "SparK was pretrained on images of 2 of the 2 validation cases" in shown.err
    assert "transductive" in Study.read(tmp_path / "study").warnings[0]


def test_the_array_script_is_a_script(begun, tmp_path):
    """bash runs it as SLURM would, here with a program that only shows what it was called with."""
    script = begun[1].replace(f"exec {sys.executable}", "exec echo")
    (tmp_path / "array.sh").write_text(script, encoding="utf-8")
    for task, arm in enumerate(("scratch", "SparK")):
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(["bash", tmp_path / "array.sh"], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-3:] == [
            "ssl_pretrain.study.worker",
            str(begun[0].folder),
            f"{arm}/2cases_fold0_seed0",
        ]


def test_gathering_shows_the_tables_and_says_what_is_missing(begun, capsys):
    study, _ = begun
    finish(study, study.runs[0], 0.5)
    folder = str(study.folder)
    assert main(["-o", folder, "--gather"]) == 1
    shown = capsys.readouterr()
    assert "training data" in shown.out and "study.json" in shown.out
    assert "1 of 2 runs are not done; --c goes on with them." in shown.err
    finish(study, study.runs[1], 0.1)
    assert main(["-o", folder, "--gather", "-collapsed_below", "0.1"]) == 0
    assert read(study.folder / "study.json")["summary"][1]["collapsed"] == 0
    assert main(["-o", folder, "--c"]) == 0, "nothing is left to run"
    assert "0 of 2 runs to do" in capsys.readouterr().out


def test_a_run_that_fails_is_reported_with_the_end_of_its_log_and_repeated(begun, capsys):
    """The made dataset has no labels to compare with, so nnU-Net's validation ends with an error of its own."""
    study, _ = begun
    finish(study, study.runs[0], 0.5)
    before = (study.run_folder(study.runs[0]) / "result.json").stat()
    assert main(["-o", str(study.folder), "--c"]) == 1
    shown = capsys.readouterr()
    assert "1/1  SparK/2cases_fold0_seed0  FAILED: " in shown.out
    assert "Failed: SparK/2cases_fold0_seed0: " in shown.err
    assert "\n    KeyError: " in shown.err and "log.txt)" in shown.err
    assert "scratch     1  0." in shown.out, "the other run is in the table"
    assert (study.run_folder(study.runs[0]) / "result.json").stat() == before, "what is done is not done again"
    assert read(study.folder / "study.json")["runs"][1]["status"] == "failed"
    log = (study.run_folder(study.runs[1]) / "log.txt").read_text(encoding="utf-8")
    assert "Training done." in log, "it failed after its training"
    assert [run.name for run in Study.read(study.folder).pending] == ["SparK/2cases_fold0_seed0"]


def test_a_run_ends_with_the_command_that_started_it(typed, tmp_path):
    assert main([*typed, "-iters", "100000", "--emit", "slurm"]) == 0
    study = Study.read(tmp_path / "study")
    run = study.runs[0]
    command = [sys.executable, "-m", "ssl_pretrain.study.worker", str(study.folder), run.name, "--watch"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    log = study.run_folder(run) / "log.txt"
    while process.poll() is None and not (log.is_file() and "Epoch 0" in log.read_text(encoding="utf-8")):
        time.sleep(0.05)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait() != 0
    assert study.pending == study.runs


def test_other_settings_are_refused(begun, typed, capsys):
    assert main([*typed, "--c", "-epochs", "9"]) == 1
    assert "holds a study with other settings: -epochs was 1 and is 9." in capsys.readouterr().err
    assert main(typed) == 1
    assert "holds a study already. Continue it with --c" in capsys.readouterr().err


def test_what_is_not_typed_stays_as_it_was(begun, typed):
    stored = begun[0].settings
    assert settings_from({"folder": "x", "resume": True, "jobs": 3, "seeds": 4}, stored).seeds == 4
    assert settings_from({"folder": "x", "jobs": 3}, stored) == stored
    assert stored.mirroring is False and stored.fractions == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-fractions", "0.01"], "-fractions 0.01 of the 8 training cases of fold 0 is less than one case"),
        (["-p", "Unknown"], "Plans Unknown, which -p asks for, do not exist"),
        (["-w", "nowhere.pth"], "nowhere.pth does not exist (-w). Check the path."),
        (["-d", "77"], "Dataset 77 is not in"),
        (["-seeds", "0"], "-seeds must be at least 1, got 0."),
        (["-jobs", "0"], "-jobs must be at least 1, got 0."),
        (["-c", "3d_planned_only"], "is not preprocessed yet"),
        (["--c", "-o", "not_there"], "holds no study: there is no study.json"),
        (["--c", "-o", "not_there", "-device", "mps"], "holds no study: there is no study.json"),
    ],
)
def test_bad_input_is_one_line(typed, change, message, capsys):
    assert main([*typed, *change]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_new_study_needs_three_flags(tmp_path, capsys):
    assert main(["-o", str(tmp_path / "s"), "-device", "cpu", "-d", "7"]) == 1
    assert (
        "Missing arguments: -c, -w. A new study needs -d DATASET -c CONFIGURATION -w FILE." in capsys.readouterr().err
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(typed, capsys):
    assert main([*typed, "-device", "cuda"]) == 1
    assert (
        "PyTorch finds no cuda device here. Choose another with -device, e.g. -device cpu." in capsys.readouterr().err
    )


def test_the_design_is_that_of_the_flags(begun):
    study, _ = begun
    assert study.dataset == NAME
    given = build_parser().parse_args(["-o", "x", "-w", "a", "b", "-fractions", "0.1", "1", "--c"])
    assert (given.weights, given.fractions, given.resume, given.jobs) == (["a", "b"], [0.1, 1.0], True, 1)
    given = build_parser().parse_args(["-o", "x", "-probe", "-primary", "A@1", "B@2", "-primary", "C@3"])
    assert (given.probe, given.primary) == (100, ["A@1", "B@2", "C@3"])


def test_the_page_has_every_flag_and_its_commands_are_accepted():
    text = (REPOSITORY / "documentation" / "how-to" / "does-it-help.md").read_text(encoding="utf-8")
    options = {option for action in build_parser()._actions for option in action.option_strings}
    rows = set(re.findall(r"^\| `(--?\w+)", text, re.MULTILINE))
    assert rows == options - {"-h", "--help"}
    lines = re.findall(r"^nnUNetv2_pretrain_study (.*)$", text, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        build_parser().parse_args(shlex.split(line.partition(">")[0]))


def test_jobs_must_be_a_number_of_runs(begun):
    with pytest.raises(ValueError, match="-jobs must be at least 1, got -1"):
        run_all(begun[0], -1)
