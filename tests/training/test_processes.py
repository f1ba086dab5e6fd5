"""Several processes through the real commands, on the CPU: they compute what one does on the same global batch."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made_data import write_dataset

from ssl_pretrain.cli.pretrain import main

REPOSITORY = Path(__file__).resolve().parents[2]
CONSOLE = (str(Path(sys.executable).parent / "nnUNetv2_pretrain"),)
SCRIPT = (sys.executable, str(REPOSITORY / "ssl_pretrain" / "pretrain_AnatoMask.py"))
RUN = "7 3d_fullres 0 -m SparK -optimizer sgd -lr 0.001 -epochs 6 -iters 5 -val_iters 2 -num_workers 0 -device cpu"
"""AdamW divides by the size of a gradient, and so makes as much of a rounding error as of a gradient."""


def result(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    with (folder / "metrics.csv").open() as handle:
        losses = [float(row[name]) for row in csv.DictReader(handle) for name in ("train_loss", "val_loss")]
    return torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"], losses


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM from outside")
@pytest.mark.parametrize(("count", "program"), [(2, CONSOLE), (3, SCRIPT)])
def test_processes_stopped_and_continued_compute_what_one_process_does(tmp_path, monkeypatch, count, program):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_dataset(tmp_path / "preprocessed", cases=6)
    one, several = tmp_path / "one", tmp_path / "several"
    command = [*program, *RUN.split(), "-batch_size", "1", "-num_gpus", str(count), "-o", str(several)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 900
    while not (several / "checkpoint_latest.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 143, error
    assert error.startswith("Asked to terminate: stopped after step")
    assert error.count("\n") == 1, "the first process speaks for all"
    done = subprocess.run([*command, "--c"], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished: ") == done.stdout.count("Fine-tune with:") == 1
    assert main([*RUN.split(), "-batch_size", str(count), "-o", str(one)]) == 0
    (weights, losses), (expected, expected_losses) = result(several), result(one)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no gloo that is tested")
@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("SimCLR", ["projector=32", "temperature=0.1"]),
        ("VoCo", ["projector=32", "targets=2"]),
        ("SwinUNETRPretraining", ["embedding=32", "temperature=0.1", "reconstruction_weight=0"]),
        ("TwoViewMAE", ["projector=32", "predictor=16", "contrast=1"]),
    ],
)
def test_what_two_processes_compare_is_what_one_does(tmp_path, monkeypatch, method, own):
    """Loss and gradients: a few steps of SGD end at the same weights."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_dataset(tmp_path / "preprocessed", cases=6)
    run = (
        f"7 3d_fullres 0 -m {method} -optimizer sgd -lr 0.01 -epochs 1 -iters 2 -val_iters 2 -num_workers 0 -device cpu"
    )
    settings = ("-set", "momentum=0", "clip=1000", *own)
    one, two = tmp_path / "one", tmp_path / "two"
    command = [*CONSOLE, *run.split(), *settings, "-batch_size", "2", "-num_gpus", "2", "-o", str(two)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert main([*run.split(), *settings, "-batch_size", "4", "-o", str(one)]) == 0
    (weights, losses), (expected, expected_losses) = result(two), result(one)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    start = tmp_path / "start"
    assert main([*run.split(), *settings, "-batch_size", "4", "-lr", "1e-12", "-o", str(start)]) == 0
    untrained = result(start)[0]
    moved = [name for name, tensor in expected.items() if not torch.equal(tensor, untrained[name])]
    assert any(name.startswith("encoder") for name in moved)
    for name in moved:
        # What the steps changed, not what is left of the start.
        torch.testing.assert_close(
            weights[name] - untrained[name], expected[name] - untrained[name], rtol=1e-2, atol=1e-6
        )
