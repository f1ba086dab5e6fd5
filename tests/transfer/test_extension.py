"""The plug-in folder is found, and nnU-Net finds the trainers in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_pretrain.transfer.extension as extension
from ssl_pretrain.transfer.extension import extension_folder, hook_file, trainer_environment

TRAINERS = ["ResEncTrainer_ft", "ResEncTrainer_scratch"] + [
    f"STUNetTrainer_{size}{suffix}" for size in ("small", "base", "large", "huge") for suffix in ("", "_ft")
]


def installed_copy(tmp_path, monkeypatch, plugins):
    """A site-packages of our package with its plug-ins at ``plugins``, and the module run from there."""
    site = tmp_path / "site-packages"
    module = site / "ssl_pretrain" / "transfer" / "extension.py"
    module.parent.mkdir(parents=True)
    if plugins is not None:
        shutil.copytree(extension_folder().parents[1], site / plugins)
    monkeypatch.setattr(extension, "__file__", str(module))
    return site


def test_the_folder_directly_holds_the_trainers():
    folder = extension_folder()
    assert folder.is_absolute()
    assert (folder / "STUNetTrainer.py").is_file()
    assert (folder / "ResEncTrainer.py").is_file()
    assert hook_file() == folder.parents[1] / "run" / "load_pretrained_weights.py"
    assert hook_file().is_file()


def test_the_plugin_folder_is_not_a_package():
    root = extension_folder().parents[1]
    assert list(root.rglob("__init__.py")) == []
    import nnunetv2

    assert root.resolve() not in Path(nnunetv2.__file__).resolve().parents


def test_a_wheel_has_it_inside_the_package(tmp_path, monkeypatch):
    site = installed_copy(tmp_path, monkeypatch, Path("ssl_pretrain") / "nnunetv2_plugins")
    expected = (site / "ssl_pretrain" / "nnunetv2_plugins" / "training" / "nnUNetTrainer").resolve()
    assert extension_folder() == expected


def test_the_installed_nnunet_is_not_mistaken_for_it(tmp_path, monkeypatch):
    site = installed_copy(tmp_path, monkeypatch, None)
    (site / "nnunetv2" / "training" / "nnUNetTrainer").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"trainers for nnU-Net are missing.*pip install"):
        extension_folder()


def test_a_missing_hook_says_what_to_put_there(tmp_path, monkeypatch):
    site = installed_copy(tmp_path, monkeypatch, "nnunetv2")
    (site / "nnunetv2" / "run" / "load_pretrained_weights.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"load_pretrained_weights\(network, fname, verbose=False\)"):
        hook_file()


def test_the_environment_gets_our_folder_once_and_keeps_the_rest():
    ours = str(extension_folder())
    assert trainer_environment({"A": "1"}) == {"A": "1", "nnUNet_extTrainer": ours}
    given = {"nnUNet_extTrainer": os.pathsep.join(["mine", ours, "", "yours"])}
    extended = trainer_environment(given)
    assert extended["nnUNet_extTrainer"] == os.pathsep.join([ours, "mine", "yours"])
    assert trainer_environment(extended) == extended
    assert given == {"nnUNet_extTrainer": os.pathsep.join(["mine", ours, "", "yours"])}


def test_the_default_is_a_copy_of_the_current_environment(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.setenv("ANATOMASK_TEST", "kept")
    assert trainer_environment()["ANATOMASK_TEST"] == "kept"
    assert "nnUNet_extTrainer" not in os.environ


def test_nnunet_finds_every_trainer_and_the_hook_is_installed():
    program = f"""
from nnunetv2.run import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from ssl_pretrain.transfer.hook import Dispatcher
stock = run_training.load_pretrained_weights
for name in {TRAINERS!r}:
    print("FOUND", recursive_find_trainer_class_by_name(name).__name__)
assert isinstance(run_training.load_pretrained_weights, Dispatcher), run_training.load_pretrained_weights
import nnunetv2.run.load_pretrained_weights as upstream
assert upstream.load_pretrained_weights is stock
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=trainer_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FOUND")] == TRAINERS
