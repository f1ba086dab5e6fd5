"""Roads from a pretrained file to another dataset or other plans, each with the commands that a user types, and what
then lies in the network that nnU-Net trains.

Pretraining is on real images, or on phantoms where they are absent, with plans for a small network of three stages.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import STRIDES, architecture
from conftest import SHARED_DATA, TINY, Home, run_command
from integration.test_into_nnunet import CONFIGURATION, FOLD, assert_holds, train, write_short_trainers
from made_data import NAME, volume, write_case
from made_target import target_dataset

from ssl_pretrain.transfer.extension import extension_folder

pytestmark = pytest.mark.slow

ADAPT = "nnUNetv2_adapt_weights"
SMALL, DEEP = "SmallPlans", "DeepPlans"
DEEP_STRIDES = [*STRIDES["isotropic"], [1, 2, 1]]

BASES = {
    # Another class than nnU-Net's only so that the short trainer leaves the validation of whole cases out.
    "Plain": "type('Unvalidated', (nnUNetTrainer,), {})",
    "Warm": 'recursive_find_trainer_class_by_name("ResEncTrainer_ft")',
}


@pytest.fixture(scope="module")
def home(request, tmp_path_factory):
    """A home with a dataset for pretraining, and a made one of two channels and other organs."""
    original = request.getfixturevalue("hippocampus" if SHARED_DATA.is_dir() else "phantoms")
    copied = original.copy(tmp_path_factory.mktemp("roads of a user"))
    plans = json.loads((copied.folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    write_plans(copied, plans, SMALL, STRIDES["isotropic"])
    write_plans(copied, plans, DEEP, DEEP_STRIDES)
    made = replace(copied, dataset=NAME)
    write_plans(made, {**plans, "dataset_name": NAME}, DEEP, DEEP_STRIDES)
    # nnU-Net's trainer copies it; nobody looks into it.
    shutil.copyfile(copied.folder / "dataset_fingerprint.json", made.folder / "dataset_fingerprint.json")
    (made.folder / "dataset.json").write_text(json.dumps(target_dataset(channels=2)), encoding="utf-8")
    identifier = plans["configurations"][CONFIGURATION]["data_identifier"]
    for index in range(6):
        write_case(made.folder / identifier, f"case_{index}", volume(index, (20, 34, 22), channels=2))
    return copied


def write_plans(home: Home, plans: dict[str, Any], name: str, strides: list[list[int]]) -> None:
    written = json.loads(json.dumps({**plans, "plans_name": name}))
    configuration = written["configurations"][CONFIGURATION]
    configuration.update(patch_size=[16, 24, 16], batch_size=2, architecture=architecture("plain", strides))
    home.folder.mkdir(exist_ok=True)
    (home.folder / f"{name}.json").write_text(json.dumps(written), encoding="utf-8")


@pytest.fixture(scope="module")
def file(home):
    """``checkpoint_final.pth`` of a pretraining with the plans of three stages."""
    args = ("nnUNetv2_pretrain", home.number, CONFIGURATION, FOLD, "-p", SMALL, "-m", "SparK", *TINY)
    done = run_command(args, home.environment, cwd=home.root)
    return home.root / re.findall(r"Finished: (.*)", done.stdout)[-1].strip()


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    return write_short_trainers(tmp_path_factory.mktemp("my trainers"), BASES)


def adapt(home: Home, file: Path, out: str, *flags):
    """Run the command from the user's folder; returns what it said, what it wrote, and the command that it names."""
    done = run_command((ADAPT, "-w", file, "-o", out, *flags), home.environment, cwd=home.root)
    command = tuple(shlex.split(done.stdout.strip().splitlines()[-1]))
    return done.stdout, home.root / out, command


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["network_weights"]


@pytest.mark.parametrize("dataset", ["the same", "another"])
def test_stock_nnunet_takes_an_adapted_file(home, file, trainers, dataset):
    """Other plans (a stage more), and another dataset (a channel more, other organs) with other plans."""
    target = home if dataset == "the same" else replace(home, dataset=NAME)
    out = f"for {dataset} dataset.pth"
    stdout, adapted, command = adapt(home, file, out, "-d", target.number, "-c", CONFIGURATION, "-p", DEEP)
    assert command[:6] == ("nnUNetv2_train", target.number, CONFIGURATION, FOLD, "-p", DEEP)
    trained = train(target, [trainers / "Plain"], "Plain", command=(*command, "-device", "cpu"))
    assert trained.facts["ours"] == []
    assert trained.facts["loader"] == "nnunetv2.run.load_pretrained_weights"
    weights, source = weights_of(adapted), weights_of(file)
    assert_holds(trained, weights, lambda key: ".seg_layers." not in key)
    # Of the encoder that was pretrained all is in it; the stage that it did not have is fresh.
    about = torch.load(adapted, weights_only=True)["pretraining"]
    encoder = [key for key in source if key.startswith("encoder.")]
    assert {*encoder} <= {*about["pretrained_keys"]}
    assert not [key for key in about["pretrained_keys"] if ".stages.3." in key and "encoder" in key]
    projections = [key for key in encoder if source[key].shape != weights[key].shape]
    assert bool(projections) == (dataset == "another")
    # An image that is the same in both channels is seen as the source saw it.
    repeated = {key: weights[key].sum(1, keepdim=True) if key in projections else weights[key] for key in encoder}
    assert all(torch.equal(repeated[key], source[key]) for key in encoder)
    report = json.loads((home.root / out.replace(".pth", "_report.json")).read_text(encoding="utf-8"))
    assert all(f"  {tensor['name']} " in stdout for tensor in report["tensors"])


def test_safetensors_go_into_our_trainers_and_back_into_nnunets(home, file, trainers):
    target = replace(home, dataset=NAME)
    flags = ("-d", target.number, "-c", CONFIGURATION, "-p", DEEP)
    _, stored, command = adapt(home, file, "w.safetensors", *flags, "-tr", "ResEncTrainer_ft")
    assert command[command.index("-tr") + 1] == "ResEncTrainer_ft"
    back = run_command((ADAPT, "-w", stored, "-o", "back.pth"), home.environment, cwd=home.root)
    assert back.stdout.split() == ["Written:", "back.pth"]
    direct = weights_of(adapt(home, file, "direct.pth", *flags)[1])
    again = weights_of(home.root / "back.pth")
    assert again.keys() == direct.keys()
    assert all(torch.equal(again[key], direct[key]) for key in direct)
    folders = [extension_folder(), trainers / "Warm"]
    trained = train(target, folders, "Warm", "-p", DEEP, "-pretrained_weights", stored)
    pretrained = set(torch.load(home.root / "back.pth", weights_only=True)["pretraining"]["pretrained_keys"])
    assert_holds(trained, direct, lambda key: key in pretrained)
