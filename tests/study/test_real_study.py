"""A real study of a tiny network on phantoms: the real command, nnU-Net's own training and evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from architectures import architecture
from conftest import FEW_PROCESSES, Home, run_command
from made_study import contents, read

from ssl_pretrain.files import write_json
from ssl_pretrain.transfer.adapt import FineTuningTarget, build_target

pytestmark = pytest.mark.slow

COMMAND = ("python", "-m", "ssl_pretrain.cli.pretrain_study")


@pytest.fixture(scope="module")
def home(phantoms: Home, tmp_path_factory) -> Home:
    """The phantoms with plans of a network of a few channels."""
    copied = phantoms.copy(tmp_path_factory.mktemp("a study"))
    plans = read(copied.folder / "nnUNetPlans.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["architecture"] = architecture()
    configuration["patch_size"] = [16, 16, 16]
    write_json(plans, copied.folder / "nnUNetPlans.json")
    return copied


@pytest.fixture(scope="module")
def weights(home, monkeypatch_module) -> Path:
    """Another initialisation of the same network stands for pretrained weights."""
    for name, value in home.environment.items():
        monkeypatch_module.setenv(name, value)
    plans, dataset = read(home.folder / "nnUNetPlans.json"), read(home.folder / "dataset.json")
    network = build_target(FineTuningTarget(plans, dataset, "3d_fullres"), seed=99).network
    file = home.root / "pretrained" / "weights.pth"
    file.parent.mkdir()
    torch.save({"network_weights": network.state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def study(home, weights) -> Path:
    """Two arms, one amount of data, one seed, run by the command."""
    folder = home.root / "study"
    flags = ("-d", home.number, "-c", "3d_fullres", "-w", weights, "-cases", "2", "-seeds", "1", "-device", "cpu")
    length = ("-epochs", "2", "-iters", "2", "-val_iters", "1", "--no_mirroring", "-o", folder)
    before = contents(home.preprocessed), contents(home.raw)
    done = run_command((*COMMAND, *flags, *length), home.environment)
    assert (contents(home.preprocessed), contents(home.raw)) == before, "nothing of the user's is changed"
    assert not list(home.results.iterdir())
    assert "pretrained - scratch" in done.stdout
    return folder


def run_folders(study: Path) -> list[Path]:
    return sorted(file.parent for file in study.glob("runs/*/*/result.json"))


def test_dice_is_that_of_nnunets_own_evaluation_of_the_untouched_cases(study, home):
    folders = run_folders(study)
    assert [f.relative_to(study / "runs").as_posix() for f in folders] == [
        "pretrained/2cases_fold0_seed0",
        "scratch/2cases_fold0_seed0",
    ]
    content = read(study / "study.json")
    held = content["dataset"]["folds"]["0"]
    assert len(held["validation"]) == 2 and not set(held["validation"]) & set(held["train"])
    for folder in folders:
        (file,) = folder.rglob("summary.json")
        summary, result = read(file), read(folder / "result.json")
        assert result["dice"] == pytest.approx(summary["foreground_mean"]["Dice"])
        assert set(result["per_case"]) == set(held["validation"])
        assert set(result["labels"]) == {"ellipsoid", "tube", "lobes"}
        for number, name in content["dataset"]["labels"].items():
            assert result["labels"][name] == pytest.approx(summary["mean"][number]["Dice"])
        assert (result["trained"]["epochs"], result["trained"]["steps"]) == (2, 4)
        assert not list(folder.rglob("checkpoint_*")), "checkpoints of finished runs are not kept"
    log = (folders[0] / "log.txt").read_text(encoding="utf-8")
    assert "This split has 2 training and 2 validation cases." in log
    assert "weights.pth" in log
    assert read(folders[0] / "result.json")["loaded"] > 0.9
    assert read(folders[1] / "result.json")["loaded"] is None


def test_a_seed_more_runs_only_what_is_new(study, home):
    before = {folder: (folder / "result.json").stat().st_mtime_ns for folder in run_folders(study)}
    done = run_command((*COMMAND, "-o", study, "--c", "-seeds", "2", "-jobs", "2"), home.environment)
    assert "2 of 4 runs to do, 2 at once" in done.stdout
    assert len(run_folders(study)) == 4
    assert {folder: (folder / "result.json").stat().st_mtime_ns for folder in before} == before
    (row,) = read(study / "study.json")["differences"]
    assert (row["pairs"], row["arm"]) == (2, "pretrained")
    assert row["low"] <= row["difference"] <= row["high"]


def test_a_run_that_is_killed_goes_on_from_its_checkpoint(home, weights):
    folder = home.root / "stopped"
    flags = ("-d", home.number, "-c", "3d_fullres", "-w", weights, "-cases", "2", "-seeds", "1", "-device", "cpu")
    length = ("-epochs", "6", "-iters", "2", "-val_iters", "1", "--no_mirroring", "-o", folder)
    run_command((*COMMAND, *flags, *length, "--emit", "slurm"), home.environment)
    name = "pretrained/2cases_fold0_seed0"
    env = {**FEW_PROCESSES, **home.environment}
    worker = [sys.executable, "-m", "ssl_pretrain.study.worker", str(folder), name]
    process = subprocess.Popen(worker, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(folder.rglob("checkpoint_latest.pth")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(folder.rglob("checkpoint_latest.pth")), "it was stopped in its course"
    assert subprocess.run(worker, env=env, check=False).returncode == 0
    result = read(folder / "runs" / name / "result.json")
    assert result["continued"]
    assert len(result["trained"]["train_loss"]) == 6
    again = subprocess.run(worker, env=env, check=False)
    assert again.returncode == 0 and read(folder / "runs" / name / "result.json") == result
