"""The function that nnU-Net calls: ours, the one the user edits, or a trainer's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run import run_training

import ssl_pretrain.transfer.extension as extension
from ssl_pretrain.transfer.extension import extension_folder, hook_file
from ssl_pretrain.transfer.hook import Dispatcher, install_hook, read_hook


@pytest.fixture(autouse=True)
def nnunet_as_it_was(monkeypatch):
    monkeypatch.setattr(run_training, "load_pretrained_weights", run_training.load_pretrained_weights)


@pytest.fixture
def editable_hook(tmp_path, monkeypatch):
    """A copy of the plug-in folder that takes the place of the real one, so that it can be edited."""
    shutil.copytree(extension_folder().parents[1], tmp_path / "nnunetv2")
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "ssl_pretrain" / "transfer" / "extension.py"))
    return hook_file()


def test_the_shipped_function_loads_and_shows_it(tmp_path, capsys):
    network, donor = torch.nn.Conv3d(1, 2, 3), torch.nn.Conv3d(1, 2, 3)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    install_hook()
    run_training.load_pretrained_weights(network, str(tmp_path / "weights.pth"), verbose=True)
    assert torch.equal(network.weight, donor.weight)
    output = capsys.readouterr().out
    assert "100.0 % of the network" in output
    assert "2x1x3x3x3" in output
    report = run_training.load_pretrained_weights(network, str(tmp_path / "weights.pth"))
    assert {entry.name for entry in report.loaded} == {"weight", "bias"}
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_the_user_saved_last_is_what_runs(editable_hook):
    install_hook()
    for answer in ("one", "two", "six"):
        editable_hook.write_text(
            f"def load_pretrained_weights(network, fname, verbose=False):\n    return ('{answer}', fname, verbose)\n",
            encoding="utf-8",
        )
        assert run_training.load_pretrained_weights(None, "f.pth", verbose=True) == (answer, "f.pth", True)


def test_a_function_of_the_user_sees_its_own_module(editable_hook):
    editable_hook.write_text(
        "FACTOR = 3\ndef helper(): return FACTOR\ndef load_pretrained_weights(network, fname, verbose=False):\n"
        "    return helper()\n",
        encoding="utf-8",
    )
    assert read_hook(editable_hook)(None, "x") == 3


def test_a_hook_without_the_function_is_refused(editable_hook):
    editable_hook.write_text("def load(network, fname): pass\n", encoding="utf-8")
    install_hook()
    with pytest.raises(ValueError, match=r"does not define load_pretrained_weights.*verbose=False"):
        run_training.load_pretrained_weights(None, "f.pth")


def test_a_loader_of_its_own_goes_first_and_the_last_call_decides(editable_hook):
    editable_hook.write_text("def load_pretrained_weights(*_): return 'file'\n", encoding="utf-8")
    install_hook(lambda network, fname, verbose: ("own", fname))
    assert run_training.load_pretrained_weights(None, "f.pth", verbose=True) == ("own", "f.pth")
    install_hook()
    assert run_training.load_pretrained_weights(None, "f.pth") == "file"


def test_installing_twice_is_installing_once(editable_hook):
    calls = editable_hook.with_name("calls.txt")
    editable_hook.write_text(
        f"def load_pretrained_weights(*_):\n    with open({str(calls)!r}, 'a') as f: f.write('x')\n", encoding="utf-8"
    )
    for _ in range(3):
        install_hook()
    assert isinstance(run_training.load_pretrained_weights, Dispatcher)
    run_training.load_pretrained_weights(None, "f.pth")
    assert calls.read_text(encoding="utf-8") == "x"


def test_importing_the_module_does_not_import_nnunet():
    program = "import sys, ssl_pretrain.transfer.hook; sys.exit('nnunetv2' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
