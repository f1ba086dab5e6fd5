"""What a run makes of damaged files, of a folder that another one is at, and of what killed runs have left."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from damage import damaged
from made_data import write_dataset

from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.files import BusyError, archive_fault, locked, written_beside
from ssl_pretrain.training.checkpoints import BEST, FINAL, LATEST, PREVIOUS, find_resumable
from ssl_pretrain.training.log_files import LogFile
from ssl_pretrain.transfer.weights_file import read_weights

SETTINGS = {"dataset": "7", "fold": "0", "epochs": 2, "iters": 2, "val_iters": 1, "num_workers": 0, "device": "cpu"}
DEAD = 2**22 + 1
"""No process has this number: it is beyond the largest one that Linux gives."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
        write_dataset(root / "preprocessed", cases=6)
        pretrain(PretrainConfig(**SETTINGS, output_folder=str(root / "run")))
        yield root


@pytest.fixture
def run(home, tmp_path):
    """A copy of a finished run of two epochs."""
    return shutil.copytree(home / "run", tmp_path / "run")


def config(folder) -> PretrainConfig:
    return PretrainConfig(**SETTINGS, output_folder=str(folder))


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / FINAL, weights_only=True)["network_weights"]


def test_every_damage_of_the_latest_checkpoint_is_seen_and_the_one_before_is_taken(run, caplog):
    latest, taken = run / LATEST, {}
    for name, content in list(damaged(latest)):
        latest.write_bytes(content)
        taken[name] = find_resumable(run)
    assert len(taken) > 25
    assert set(taken.values()) == {run / PREVIOUS}, [name for name, file in taken.items() if file == latest]
    assert f"{LATEST} is damaged" in caplog.text
    assert "Falling back" in caplog.text


def test_every_damage_of_a_file_of_weights_is_refused_in_one_line(run, tmp_path):
    file, taken, words = tmp_path / "weights.pth", [], set()
    for name, content in list(damaged(run / FINAL)):
        file.write_bytes(content)
        try:
            read_weights(file)
            taken.append(name)
        except ValueError as error:
            words.add(str(error))
    assert taken == []
    assert all(str(file) in line and "\n" not in line for line in words)
    assert any("is not what it was when it was written. Copy or download it again." in line for line in words)


def test_what_was_saved_without_checksums_is_read(tmp_path):
    file = tmp_path / "weights.pth"
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, file)
    finally:
        torch.serialization.set_crc32_options(options)
    assert archive_fault(file) is None
    assert torch.equal(read_weights(file).tensors["a"], torch.ones(3))


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_restored(run):
    content = torch.load(run / LATEST, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(1, 2, 3)
    torch.save(content, run / LATEST)
    with pytest.raises(ValueError, match=rf"{LATEST} is of another network: {name} is \(1, 2, 3\) in the file"):
        pretrain(config(run), resume=True)


def test_a_checkpoint_without_an_entry_counts_as_damaged(run, caplog):
    content = torch.load(run / LATEST, weights_only=True)
    del content["loops"]
    torch.save(content, run / LATEST)
    assert find_resumable(run) == run / PREVIOUS
    assert "it has no loops" in caplog.text


def test_a_final_file_that_is_not_there_is_not_named(run):
    content = torch.load(run / LATEST, weights_only=True)
    history = next(state for state in content["callbacks"].values() if "rows" in state)
    history["rows"] = history["rows"][:1]
    torch.save(content, run / LATEST)
    (run / FINAL).unlink()
    with pytest.raises(ValueError, match=rf"ended after 1 of 2 epochs and left no .*{FINAL}"):
        pretrain(config(run), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_died_before_its_first_checkpoint_can_be_begun_anew(home, run, caplog, resume):
    for name in (LATEST, PREVIOUS, FINAL):
        (run / name).unlink()
    best = torch.load(run / BEST, weights_only=True)
    best["pretraining"]["epoch"] = 1
    torch.save(best, run / BEST)
    pretrain(config(run), resume=resume)
    assert all(torch.equal(value, weights(home / "run")[key]) for key, value in weights(run).items())
    assert ("ended before its first checkpoint. It begins anew" in caplog.text) == resume


@pytest.mark.parametrize("kept", [FINAL, BEST])
def test_weights_of_a_longer_run_are_not_written_over(run, kept):
    for name in {LATEST, PREVIOUS, FINAL} - {kept}:
        (run / name).unlink()
    if kept == BEST:
        best = torch.load(run / BEST, weights_only=True)
        best["pretraining"]["epoch"] = 2
        torch.save(best, run / BEST)
    with pytest.raises(FileNotFoundError, match=f"holds {kept} and no {LATEST}"):
        pretrain(config(run), resume=True)
    with pytest.raises(ValueError, match=r"already holds a run\. Continue it with --c, or choose another folder"):
        pretrain(config(run))


def test_two_runs_do_not_share_a_folder(run):
    with locked(run), pytest.raises(BusyError, match=r"Another process is at work in .*Wait for its end, or choose"):
        pretrain(config(run), resume=True)


def test_what_killed_runs_were_writing_is_removed_and_what_living_ones_write_is_not(run):
    left = [run / f"{LATEST}.{DEAD}.tmp", run / f"{BEST}.another-node-{os.getpid()}.tmp"]
    mine, foreign = written_beside(run / LATEST), run / "notes.tmp"
    for file in (*left, mine, foreign):
        file.touch()
    pretrain(config(run), resume=True)
    assert [file.exists() for file in (*left, mine, foreign)] == [False, False, True, True]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_log_file_on_a_full_disk_is_one_line(caplog, capfd):
    handler, log = LogFile(Path("/dev/full")), logging.getLogger("ssl_pretrain")
    log.addHandler(handler)
    try:
        for line in range(3):
            log.warning("line %d", line)
    finally:
        log.removeHandler(handler)
    assert caplog.text.count("The log file /dev/full cannot be written to: [Errno 28]") == 1
    assert "Traceback" not in capfd.readouterr().err
