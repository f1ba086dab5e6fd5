"""The real commands with a trainer that exists in its name alone."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_command
from made_trainers import NETWORKS

from ssl_pretrain.transfer.extension import trainer_environment

pytestmark = pytest.mark.slow

NAME = "ResEncTrainer_scratch_2ep_frozen1"
WAIT = 900
"""Seconds that an epoch may take on a busy machine; it takes about ten."""


@pytest.fixture
def home(phantoms, tmp_path):
    """Phantoms, and plans of a network in which 250 steps of nnU-Net take seconds."""
    copied = phantoms.copy(tmp_path / "home")
    file = copied.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"].update(architecture=NETWORKS["plain"][1], patch_size=[16, 16, 16])
    file.write_text(json.dumps(plans), encoding="utf-8")
    return copied


def logs(folder):
    return "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("training_log*.txt")))


def start_and_stop(command, env, folder):
    """Kill a training in its second epoch."""
    program = shutil.which(command[0], path=str(Path(sys.executable).parent))
    started = subprocess.Popen([program, *command[1:]], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT
        while "Epoch 1" not in logs(folder):
            assert started.poll() is None, f"the training ended with {started.returncode}"
            assert time.monotonic() < deadline, "the first epoch did not end"
            time.sleep(0.2)
    finally:
        started.kill()
        started.wait()


def test_a_training_is_stopped_continued_and_predicts(home, tmp_path):
    env = {**home.environment, **trainer_environment({}), "nnUNet_n_proc_DA": "0"}
    where = ("-tr", NAME, "-device", "cpu")
    folder = home.results / home.dataset / f"{NAME}__nnUNetPlans__3d_fullres" / "fold_0"
    start_and_stop(("nnUNetv2_train", home.number, "3d_fullres", "0", *where), env, folder)
    assert not (folder / "checkpoint_final.pth").exists()
    run_command(("nnUNetv2_train", home.number, "3d_fullres", "0", *where, "--c"), env)
    text = logs(folder)
    assert text.count("Phase 1 of 2: encoder frozen, warm-up, epochs 0 to 0") == 1
    assert "Phase 2 of 2: whole network, decay, epochs 1 to 1" in text.split("Phase 1 of 2")[1]
    assert (folder / "progress.png").is_file()
    assert (folder / "validation" / "summary.json").is_file()
    image = min((home.raw / home.dataset / "imagesTr").iterdir())
    (tmp_path / "in").mkdir()
    shutil.copyfile(image, tmp_path / "in" / image.name)
    task = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-d", home.number, "-c", "3d_fullres", "-f", "0")
    run_command(("nnUNetv2_predict", *task, *where, "-npp", "1", "-nps", "1", "--disable_tta"), env)
    assert (tmp_path / "out" / image.name.replace("_0000", "")).is_file()


def test_a_name_that_does_not_fit_the_grammar_ends_the_command_with_it(home):
    env = {**home.environment, **trainer_environment({})}
    command = ("nnUNetv2_train", home.number, "3d_fullres", "0", "-tr", "ResEncTrainer_ft_sawtoth", "-device", "cpu")
    done = run_command(command, env, check=False)
    assert done.returncode != 0
    assert "There is no trainer ResEncTrainer_ft_sawtoth: 'sawtoth' is unknown" in done.stderr.splitlines()[-1]
    assert "<Network>Trainer[_<size>]_<ft|scratch>[_<N>ep][_<schedule>]" in done.stderr.splitlines()[-1]
