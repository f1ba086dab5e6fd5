"""Plain pickles of others: what they hold comes out as it was, and what they would run is named instead."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pytest

from ssl_pretrain.harmless import RefusalError, read_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)

LOCATIONS = np.arange(12).reshape(3, 4)
CASE = {
    "sitk_stuff": {"spacing": (1.0, 0.5, 0.5), "direction": (1.0,) * 9},
    "nibabel_stuff": {"original_affine": np.eye(4, dtype=np.float32), "order": np.asfortranarray(LOCATIONS)},
    "bbox_used_for_cropping": [[0, 20], [np.int64(1), 22]],
    "class_locations": {1: LOCATIONS, (1, 2): LOCATIONS, np.int64(3): np.zeros((0, 4), np.int64)},
    "other": [OrderedDict(a=1), defaultdict(list, b=[2]), {3}, frozenset({4}), b"five", bytearray(b"six")],
    "file": PurePosixPath("a/b"),
}
"""Properties as nnU-Net's readers and their extensions keep them."""


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def same(ours, theirs):
    if isinstance(theirs, np.ndarray):
        return type(ours) is np.ndarray and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and all(same(*pair) for pair in zip(ours, theirs, strict=True))
    return ours == theirs


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_nnunet_keeps_with_a_case_comes_out_as_it_was(protocol, tmp_path):
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(CASE, protocol))
    assert same(read_pickle(tmp_path / "case.pkl"), CASE)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Runs(os.system, "touch marker"), "(posix|nt).system"),
        (Runs(eval, "open('marker', 'w')"), "(builtins|__builtin__).eval"),
        (Runs(np.ndarray, (4,), "f8"), "numpy.ndarray"),
        (Runs(bytearray, 10**12), "builtins.bytearray"),
        (np.array([Runs(os.mkdir, "marker")], dtype=object), "(posix|nt).mkdir|numpy.dtype"),
    ],
)
def test_what_a_pickle_would_run_is_named_and_not_run(call, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case.pkl").write_bytes(pickle.dumps({"class_locations": call}, protocol))
    with pytest.raises(RefusalError, match=name):
        read_pickle(tmp_path / "case.pkl")
    assert not (tmp_path / "marker").exists()


def test_containers_that_share_or_contain_themselves_do_not_hang(tmp_path):
    doubled = []
    for _ in range(60):
        doubled = [doubled, doubled]
    (tmp_path / "case.pkl").write_bytes(pickle.dumps({"a": doubled}))
    content = read_pickle(tmp_path / "case.pkl")["a"]
    assert content[0] is content[1]
    doubled.append(doubled)
    (tmp_path / "case.pkl").write_bytes(pickle.dumps({"a": doubled}))
    with pytest.raises(RecursionError):
        read_pickle(tmp_path / "case.pkl")
