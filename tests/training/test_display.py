"""The progress bar: what it says, and what it leaves behind."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from made_data import write_dataset

from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.cli.console import set_up_console
from ssl_pretrain.data.crops import CropDataset
from ssl_pretrain.training.display import WIDEST, NarrowBar
from ssl_pretrain.training.history import History


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_dataset(tmp_path / "preprocessed", cases=6)
    size = {"epochs": 2, "iters": 4, "val_iters": 1, "num_workers": 0}
    return PretrainConfig(
        dataset="7", fold="0", method="SparK", output_folder=str(tmp_path / "run"), device="cpu", **size
    )


def test_the_bar_says_pace_and_time_left_once_it_knows_them(made, capsys):
    pretrain(made)
    shown = [line for line in re.split(r"[\r\n]", capsys.readouterr().out) if "loss" in line]
    first = [line for line in shown if re.search(r"Epoch 0: .* 1/4 ", line)]
    assert first
    assert not any("left" in line or "images/s" in line for line in first)
    assert any(re.search(r"Epoch 0: .* 4/4 .*left=\d+:\d\d:\d\d, loss=.*images/s=[\d.]+", line) for line in shown)
    assert all("left=" in line for line in shown if "Epoch 1" in line)


def test_the_time_left_is_that_of_the_batches_and_later_that_of_the_epochs(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    history = History(tmp_path, 2)
    trainer = SimpleNamespace(max_epochs=10, num_training_batches=5, global_step=0, accumulate_grad_batches=1)
    module = SimpleNamespace(log=lambda *_, **__: None)
    left = []
    for batch in range(3):
        history.on_train_batch_start(trainer, module, None, batch)
        clock[0] += 30.0 if batch == 0 else 2.0
        trainer.global_step += 1
        history.on_train_batch_end(trainer, module, {"loss": torch.zeros(()), "log": {}}, None, batch)
        left.append(history.seconds_left(trainer))
    assert left == [None, 48 * 2.0, 47 * 2.0], "the first batch, before which readers start, tells nothing"
    history._walls, history.rows, history._wall_started = [60.0, 80.0], [{}, {}], clock[0]
    clock[0] += 10.0
    assert history.seconds_left(trainer) == 8 * 70.0 - 10.0


def test_nothing_is_wiped_out_with_blanks_when_a_run_stops(made, capsys, monkeypatch):
    original = CropDataset.__getitem__

    def broken(crops, index):
        if crops.stream == 0 and index == 5:
            raise ValueError("a broken case")
        return original(crops, index)

    monkeypatch.setattr(CropDataset, "__getitem__", broken)
    set_up_console()
    with pytest.raises(ValueError, match="a broken case"):
        pretrain(made)
    logging.getLogger("ssl_pretrain").error("the next line")
    last = capsys.readouterr().out.rpartition("Epoch 0:")[2]
    assert "the next line" in last
    assert not re.search(r"\s{5,}", last.partition("|")[2].partition("|")[2])


def test_a_bar_is_no_wider_than_one_reads():
    widths = [
        len(NarrowBar.format_meter(n=1, total=2, elapsed=1.0, ncols=columns, prefix="Epoch 0: "))
        for columns in (80, 5000)
    ]
    assert widths == [80, WIDEST]
