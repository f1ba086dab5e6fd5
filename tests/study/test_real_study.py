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


@pytest.fixture(scope="module")
def watched(home, weights) -> Path:
    """Two pretrainings of one arm with all that can be looked at, and beside it the same without."""
    files = []
    for seed in range(2):
        content = torch.load(weights, weights_only=True)
        first = next(iter(content["network_weights"].values()))
        first += 0.01 * seed
        said = {"method": "MAE", "network": "plans", "config": {"plans": "nnUNetPlans"}, "seed": seed}
        content["pretraining"] = {**said, "pretrained_keys": list(content["network_weights"]), "fresh_keys": []}
        files.append(home.root / "MAE" / f"seed{seed}.pth")
        files[-1].parent.mkdir(exist_ok=True)
        torch.save(content, files[-1])
    base = ("-d", home.number, "-c", "3d_fullres", "-cases", "2", "-seeds", "1", "-device", "cpu", "--keep_checkpoints")
    length = ("-epochs", "2", "-iters", "3", "-val_iters", "1", "--no_mirroring")
    looks = ("-curve", "0.2", "0.6", "-probe", "3", "-primary", "MAE@2")
    # Without reading processes a run depends on its seed alone.
    env = {**home.environment, "nnUNet_n_proc_DA": "0"}
    done = run_command((*COMMAND, *base, *length, *looks, "-w", *files, "-o", home.root / "watched"), env)
    assert "of scratch's steps" in done.stdout and "p (Holm)" in done.stdout
    run_command((*COMMAND, *base, *length, "-w", files[0], "-o", home.root / "plain"), env)
    return home.root / "watched"


def test_a_watched_run_is_the_run_that_it_would_have_been(watched):
    for ours, theirs in (("scratch", "scratch"), ("MAE_seed0", "MAE")):
        place = "2cases_fold0_seed0"
        folders = watched / "runs" / ours / place, watched.parent / "plain" / "runs" / theirs / place
        results = [read(folder / "result.json") for folder in folders]
        assert results[0]["per_case"] == results[1]["per_case"]
        assert results[0]["trained"]["train_loss"] == results[1]["trained"]["train_loss"]
        states = [
            torch.load(next(folder.rglob("checkpoint_final.pth")), weights_only=False)["network_weights"]
            for folder in folders
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_watched_run_has_its_points_its_probe_and_its_movement(watched):
    content = read(watched / "study.json")
    assert [(arm["name"], arm["group"]) for arm in content["arms"]] == [
        ("scratch", None),
        ("MAE seed0", "MAE"),
        ("MAE seed1", "MAE"),
    ]
    for run in content["runs"]:
        assert [point["steps"] for point in run["curve"]] == [1, 4, 6]
        assert run["curve"][-1]["per_case"] == run["per_case"], "nothing is resampled"
        assert run["probe"]["steps"] == 3 and set(run["probe"]["per_case"]) == set(run["per_case"])
        assert [entry["steps"] for entry in run["movement"]] == [1, 4, 6]
        moved = [entry["parts"]["encoder"] for entry in run["movement"]]
        assert 0 < moved[0]["distance"] < moved[-1]["distance"] and moved[-1]["cosine"] < 1
        assert not list((watched / "runs").rglob("watched")), "predictions of points do not stay"
    (row,) = content["differences"]
    assert (row["arm"], row["pairs"], row["pretrainings"], row["primary"]) == ("MAE", 2, 2, True)
    assert (watched / "curves.png").is_file()


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
    length = ("-epochs", "6", "-iters", "2", "-val_iters", "1", "--no_mirroring", "-curve", "0.1", "0.5", "-o", folder)
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
    assert [point["steps"] for point in result["curve"]] == [1, 6, 12]
    assert [entry["steps"] for entry in result["movement"]] == [1, 6, 12]
    again = subprocess.run(worker, env=env, check=False)
    assert again.returncode == 0 and read(folder / "runs" / name / "result.json") == result
