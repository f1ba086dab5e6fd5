"""The commonest ends of real runs: one line each, with what to do."""

import errno
import os
import signal
import sys

import pytest
import torch
from made_data import write_dataset

from ssl_pretrain import PretrainConfig
from ssl_pretrain.cli.pretrain import main
from ssl_pretrain.data.crops import CropDataset
from ssl_pretrain.training.failures import FAILURES, RunFailedError, explain, plain_words

OOM = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.2 GiB of which 1 GiB is free. "
    "See documentation for Memory Management"
)
ARRAY = "Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\n"
SHARED = "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)"


def too_large() -> Exception:
    """PyTorch's own words for a machine without memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    return caught.value


def reader(how: str) -> RuntimeError:
    return RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {how}. ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OOM, ["The GPU has too little memory", "allocate 2.00 GiB.", "checkpointing=true", "-batch_size", "-patch"]),
        (RuntimeError("MPS backend out of memory (allocated: 9 GB)"), ["The GPU has too little memory"]),
        (reader("Killed"), ["A reading process is gone", "pid 7", "-num_workers", "dmesg"]),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), ["A reading process is gone"]),
        (reader("Bus error. It is possible that dataloader's workers are out of shared memory"), ["--shm-size"]),
        (RuntimeError(SHARED), ["out of shared memory", "--shm-size", "--ipc=host", "-num_workers 0"]),
        (OSError(errno.EMFILE, "Too many open files"), ["may not open more files", "ulimit -n", "-num_workers"]),
        (RuntimeError("received 0 items of ancdata"), ["may not open more files"]),
        (too_large(), ["The machine has too little memory", "-num_workers", "-batch_size"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["The disk is full", "Free some space", "(-o)"]),
        (MemoryError(), ["The machine has too little memory: MemoryError. Take"]),
        (RuntimeError(f"{ARRAY}numpy._core._exceptions._ArrayMemoryError: Unable"), ["machine has too little memory"]),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ["The machine has too little memory"]),
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), ["Another process", "_rank"]),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp:1"), ["Another process of this run is gone"]),
    ],
)
def test_an_error_of_the_machine_says_what_happened_and_what_to_do(error, words, tmp_path):
    said = explain(error, PretrainConfig(dataset="7"))
    assert said is not None
    assert "\n" not in said
    for part in words:
        assert part in said
    assert "--c" not in said
    assert explain(error, PretrainConfig(dataset="7"), tmp_path).endswith("Start it again.")
    (tmp_path / "checkpoint_latest.ckpt").touch()
    assert explain(error, PretrainConfig(dataset="7"), tmp_path).endswith("Continue with --c.")


def test_every_row_of_the_table_is_met_above():
    errors = [row[0] for row in test_an_error_of_the_machine_says_what_happened_and_what_to_do.pytestmark[0].args[1]]
    first = {next(i for i, f in enumerate(FAILURES) if f.fits(e, f"{type(e).__name__}: {e}")) for e in errors}
    assert first == set(range(len(FAILURES)))


@pytest.mark.parametrize(
    "error",
    [ValueError("shared memory"), RuntimeError("shapes differ"), PermissionError(errno.EACCES, "Permission denied")],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, plain_words(PretrainConfig(dataset="7")):
        raise error
    assert caught.value is error


def test_only_methods_that_can_compute_feature_maps_again_are_told_so():
    assert "checkpointing" in explain(OOM, PretrainConfig(dataset="7", method="S3D"))
    assert "checkpointing" not in explain(OOM, PretrainConfig(dataset="7", method="MAE"))
    checkpointed = PretrainConfig(dataset="7").with_settings({"checkpointing": True})
    assert "checkpointing" not in explain(OOM, checkpointed)


QUICK = ("-m", "SparK", "-epochs", "2", "-iters", "3", "-val_iters", "1", "-device", "cpu")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_dataset(tmp_path / "preprocessed", cases=6)
    return lambda *extra: main(["7", "3d_fullres", "0", *QUICK, "-o", str(tmp_path / "run"), *extra])


def at_crop(monkeypatch, number: int, action) -> None:
    original = CropDataset.__getitem__

    def read(crops, index):
        if crops.stream == 0 and index == number:
            action()
        return original(crops, index)

    monkeypatch.setattr(CropDataset, "__getitem__", read)


def test_a_reading_process_that_is_killed_ends_the_run_with_one_line_and_the_log_has_the_traceback(
    run, tmp_path, monkeypatch, capsys
):
    at_crop(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert run("-num_workers", "1") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: A reading process is gone: DataLoader worker (pid")
    assert line.endswith("Continue with --c.")
    (log,) = (tmp_path / "run").glob("training_log_*.txt")
    assert "Traceback (most recent call last)" in (text := log.read_text())
    assert "RunFailedError: A reading process is gone" in text
    monkeypatch.setenv("SSL_PRETRAIN_TRACEBACK", "1")
    with pytest.raises(RunFailedError) as caught:
        run("-num_workers", "1", "--c")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(("crop", "words"), [(3, "No checkpoint had been saved yet"), (8, "Continue with --c.")])
def test_ctrl_c_in_training_is_130_and_one_line(run, monkeypatch, capsys, crop, words):
    handler = signal.getsignal(signal.SIGINT)
    at_crop(monkeypatch, crop, lambda: signal.raise_signal(signal.SIGINT))
    assert run("-num_workers", "0") == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"Stopped by Ctrl-C after step {crop // 2}.")
    assert words in line
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_training_is_130_and_one_line(run, monkeypatch, capsys):
    """Most of that time goes by in imports."""

    class Interrupted:
        def find_spec(self, name, *_):
            if name == "ssl_pretrain.cli.dry_run":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "ssl_pretrain.cli.dry_run", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert run() == 130
    assert capsys.readouterr().err.strip() == "Stopped."
