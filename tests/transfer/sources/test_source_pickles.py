"""What is opened, and what is refused with everything that it wanted to run."""

import argparse
import os
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from conftest import run_command
from made_weights import save, stunet

from ssl_pretrain.transfer.sources import bounds, pickles
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
    assert (opened["slice"], opened["range"], opened["set"]) == (slice(0, 3), slice(0, 4, 1), frozenset({1}))
    assert (list(opened["array"]), len(opened["array"]), opened["array"][2]) == ([0, 1, 2], 3, 2)
    assert not any(entry in (argparse.Namespace, defaultdict) for entry in torch.serialization.get_safe_globals())


def test_an_array_of_objects_is_refused_without_running_them(tmp_path):
    marker = tmp_path / "marker"
    array = np.array([Runs(os.mkdir, str(marker))], dtype=object)
    with pytest.raises(ValueError, match=r"is refused: opening it would run (posix|nt)\.mkdir,"):
        open_pickle(save({"a": array}, tmp_path / "objects.pth"))
    assert not marker.exists()


# ------------------------------------------------------------------- what is allowed is not called with anything else


def pickled(call, tmp_path):
    return save({"network_weights": {"a.weight": torch.zeros(2)}, "x": call}, tmp_path / "calls.pth")


OBJECTS = Runs(np.ndarray, (1,), "O", b"AAAAAAAA")
"""Once looked at, it reads the place in memory that the file says."""


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Runs(list, OBJECTS), r"numpy\.ndarray\(…\)"),
        (Runs(np.ndarray, (4,), "f8"), r"numpy\.ndarray\(…\)"),
        (Runs(list, Runs(range, 10**10)), r"builtins\.list\(…\)"),
    ],
    ids=["pointer", "uninitialised", "endless"],
)
def test_attempts_at_the_memory_are_one_line_and_status_1(call, name, tmp_path):
    file = pickled(call, tmp_path)
    done = run_command(["nnUNetv2_adapt_weights", "-w", file, "-o", tmp_path / "out.pth"], check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=rf"is refused: opening it would run {name}, and a file"):
        open_pickle(file)


class Restores:
    """Pickled, it is an object that a function makes and a state that it is given."""

    def __init__(self, made, state):
        self.made, self.state = made, state

    def __reduce__(self):
        return (*self.made, self.state)


RECONSTRUCT, RECONSTRUCT_ARGUMENTS = np.ones(1).__reduce__()[:2]
SCALAR = np.float64(1).__reduce__()[0]
FLOATS = np.dtype("<f8")


def array_with(*state):
    return Restores((RECONSTRUCT, RECONSTRUCT_ARGUMENTS), state)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (OBJECTS, "numpy.ndarray(…)"),
        (array_with(1, (2,), FLOATS, False, bytes(range(1, 9))), "numpy.ndarray.__setstate__(…) with 8 bytes for a s"),
        (array_with(1, (-1,), FLOATS, False, bytes(range(1, 9))), "numpy.ndarray.__setstate__(…)"),
        (array_with(1, (1,), FLOATS, False, ["text"]), "numpy.ndarray.__setstate__(…)"),
        (array_with(1, (1,), "O", False, b"AAAAAAAA"), "numpy.ndarray.__setstate__(…)"),
        (array_with(1, (1,), np.dtype(object), False, b"AAAAAAAA"), "numpy.dtype('O8') for an array of objects"),
        (np.zeros(2, [("a", "f4")]), "numpy.dtype('V4')"),
        (Restores((np.dtype, ("f8",)), (3, "<", (FLOATS, (9,)), None, None, -1, -1, 0)), "numpy.dtype.__setstate__(…)"),
        (Restores((np.dtype, ("f8",)), (3, "x", None, None, None, -1, -1, 0)), "numpy.dtype.__setstate__(…)"),
        (Runs(RECONSTRUCT, list, (0,), b"b"), "numpy._core.multiarray._reconstruct(…)"),
        (Runs(SCALAR, FLOATS, b"short"), "numpy._core.multiarray.scalar(…)"),
        (Runs(SCALAR, "O", b"AAAAAAAA"), "numpy._core.multiarray.scalar(…)"),
        (Runs(dict, [(1, 2)]), "builtins.dict(…)"),
        (Runs(bytes, 10**12), "builtins.bytes(…)"),
        (Runs(frozenset, Runs(range, 10**10)), "builtins.frozenset(…)"),
        (Runs(slice, [1]), "builtins.slice(…)"),
        (Runs(PurePosixPath, Runs(PurePosixPath, "b")), "pathlib.PurePosixPath(…)"),
    ],
)
def test_what_no_honest_file_calls_is_refused(call, name, tmp_path):
    with pytest.raises(ValueError, match="is refused: opening it would run") as refusal:
        open_pickle(pickled(call, tmp_path))
    assert f"would run {name}" in str(refusal.value)


def test_what_another_library_allows_does_not_replace_the_stand_ins(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([np.ndarray])
    try:
        with pytest.raises(ValueError, match=r"numpy\.ndarray\(…\)"):
            open_pickle(pickled(Runs(np.ndarray, (4,), "f8"), tmp_path))
        assert np.ndarray in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array([True, False]),
        np.zeros((0, 2)),
        np.array([1 + 2j], dtype="c8"),
    ],
)
def test_arrays_are_sequences_of_their_rows(array, tmp_path):
    read = open_pickle(pickled(array, tmp_path))["x"]
    assert [np.asarray(row).tolist() for row in read] == array.tolist()


@pytest.mark.parametrize("number", [np.float16(0.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.str_("")])
def test_numbers_and_text_of_numpy_are_themselves(number, tmp_path):
    read = open_pickle(pickled(number, tmp_path))["x"]
    assert (read, type(read)) == (number, type(number))


# ----------------------------------------------------------------------------------------------- no more than is there


def archive(file, *contents, name="data.pkl"):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for index, content in enumerate(contents):
            made.writestr(f"archive{index}/{name}", content)
    return file


@pytest.mark.parametrize("parts", [1, 5])
def test_a_pickle_that_unpacks_into_gigabytes_is_not_unpacked(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "LARGEST_PICKLE", 2**20)
    file = archive(tmp_path / "bomb.pth", *[b"\x80\x02" + b"0" * (2**21 // parts)] * parts)
    with pytest.raises(ValueError, match=r"bomb\.pth is refused: .* into 2 MB, and checkpoints have at most 1 MB"):
        open_pickle(file)


def test_a_long_pickle_is_read_for_names_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPERATIONS", 1000)
    content = b"\x80\x02cos\nsystem\n" + b"N" * 2000 + b"cos\nmkdir\n."
    file = archive(tmp_path / "long.pth", content, b"\x80\x02cos\nremove\n.")
    assert unsafe_globals(file) == ["os.system"]
    with pytest.raises(ValueError, match=r"would run os\.system and possibly more, and a file"):
        open_pickle(file)


def test_names_are_few_short_and_printable(tmp_path):
    names = b"".join(b"cevil\nf%d\n0" % index for index in range(30))
    file = archive(tmp_path / "many.pth", b"\x80\x02cos\n\x1b[2J" + b"x" * 10**5 + b"\n0" + names + b"N.")
    with pytest.raises(ValueError, match=r"would run os\.\?\[2Jx+, evil\.f0, .*evil\.f18 and 11 more, and") as refusal:
        open_pickle(file)
    assert len(str(refusal.value)) < 1000


def test_more_memory_than_there_is_is_one_line(tmp_path):
    file = pickled(Runs(torch.FloatTensor, 2**50), tmp_path)
    with pytest.raises(ValueError, match=r"calls\.pth cannot be opened: it asks for more memory than there is\."):
        open_pickle(file)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_a_truncated_file_is_called_truncated(zipped, part, tmp_path):
    file = save(stunet().state_dict(), tmp_path / "half.pth", _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"half\.pth cannot be opened as a checkpoint.*truncated"):
        read_weights(file)


def test_an_archive_with_a_damaged_directory_is_no_checkpoint(tmp_path):
    file = save({"a": torch.ones(2)}, tmp_path / "odd.pth")
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(ValueError, match=r"odd\.pth cannot be opened as a checkpoint \(BadZipFile"):
        open_pickle(file)


def test_an_archive_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(ValueError, match=r"photos\.pth cannot be opened as a checkpoint"):
        read_weights(tmp_path / "photos.pth")
