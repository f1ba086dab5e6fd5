"""What is opened, and what is refused with everything that it wanted to run."""

import argparse
import os
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from made_weights import save, stunet

from ssl_pretrain.transfer.sources.pickles import open_pickle, unsafe_globals
from ssl_pretrain.transfer.weights_file import read_weights


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(marker):
    """A harmless attempt: each of these would leave a trace."""
    return {
        "network_weights": stunet().state_dict(),
        "log": np.float64(1.0),
        "a": Runs(os.system, f"touch {marker}"),
        "b": [Runs(eval, f"open({str(marker)!r}, 'w')"), {"c": Runs(os.mkdir, str(marker))}],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_refused_with_the_names_of_all_of_it(zipped, protocol, tmp_path):
    marker = tmp_path / "marker"
    file = tmp_path / "evil.model"
    save(harmful(marker), file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    system = "nt" if os.name == "nt" else "posix"
    with pytest.raises(ValueError, match=r"evil\.model is refused") as refusal:
        read_weights(file)
    assert f"opening it would run {system}.system, builtins.eval, {system}.mkdir, and a file" in str(refusal.value)
    assert "torch.save({'network_weights'" in str(refusal.value)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_with_code_is_refused_by_name_too(protocol, tmp_path):
    marker = tmp_path / "marker"
    content = [Runs(os.mkdir, str(marker)), Runs(os.mkdir, str(marker)), Runs(eval, "1")]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    names = unsafe_globals(tmp_path / "evil.pkl")
    assert names == ["nt.mkdir" if os.name == "nt" else "posix.mkdir", "builtins.eval"]
    with pytest.raises(ValueError, match=rf"evil\.pkl is refused: opening it would run {names[0]}, builtins\.eval,"):
        open_pickle(tmp_path / "evil.pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "names"),
    [
        (b"(S'touch x'\nios\nsystem\n.", ["os.system"]),
        (b"cos\nsystem\n(S'touch x'\ntR", ["os.system"]),
        (b"\x80\x02\x82\x07.", ["copyreg.extension(7)"]),
    ],
)
def test_old_and_cut_off_pickles_give_their_names_as_well(pickled, names, tmp_path):
    (tmp_path / "odd.pth").write_bytes(pickled)
    assert unsafe_globals(tmp_path / "odd.pth") == names
    with pytest.raises(ValueError, match="is refused"):
        open_pickle(tmp_path / "odd.pth")


def test_a_module_saved_whole_is_refused_by_the_names_of_its_classes(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"would run torch\.nn\.modules\.container\.Sequential, .*linear\.Linear, and"):
        read_weights(tmp_path / "module.pt")


def test_what_only_holds_values_is_opened(tmp_path):
    log = defaultdict(list)
    log["dice"].append(np.float64(0.5))
    content = {
        "state_dict": {"a": torch.ones(2)},
        "args": argparse.Namespace(lr=1e-3, out=Path("some") / "folder"),
        "log": log,
        "windows": PureWindowsPath("c:/x"),
        "slice": slice(0, 3),
        "range": range(4),
        "set": frozenset({1}),
        "array": np.arange(3),
    }
    opened = open_pickle(save(content, tmp_path / "full.pth"))
    assert opened["args"].lr == 1e-3
    assert opened["args"].out.as_posix() == "some/folder"
    assert opened["log"] == {"dice": [0.5]}
    assert (opened["slice"], opened["range"], opened["set"]) == (slice(0, 3), range(4), frozenset({1}))
    assert not any(entry in (argparse.Namespace, defaultdict) for entry in torch.serialization.get_safe_globals())


def test_an_array_of_objects_is_refused_without_running_them(tmp_path):
    marker = tmp_path / "marker"
    array = np.array([Runs(os.mkdir, str(marker))], dtype=object)
    with pytest.raises(ValueError, match=r"is refused: opening it would run (posix|nt)\.mkdir,"):
        open_pickle(save({"a": array}, tmp_path / "objects.pth"))
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_a_truncated_file_is_called_truncated(zipped, part, tmp_path):
    file = save(stunet().state_dict(), tmp_path / "half.pth", _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"half\.pth cannot be opened as a checkpoint.*truncated"):
        read_weights(file)


def test_an_archive_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(ValueError, match=r"photos\.pth cannot be opened as a checkpoint"):
        read_weights(tmp_path / "photos.pth")
