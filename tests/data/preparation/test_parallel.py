"""Processes that fail, die and are ended, and what becomes of the cases."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError
from ssl_pretrain.data.preparation.parallel import THREADS, Failure, run_cases

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to die by")


def cases(*names):
    return [ImageCase(identifier=name, images=(Path(name),)) for name in names]


def work(case):
    """What a case is called says what happens to it."""
    print("nnU-Net prints")
    kind = case.identifier.partition("-")[0]
    if kind == "bad":
        raise ImageError(f"{case.images[0]} is bad. Leave it out.")
    if kind == "bug":
        raise KeyError("nothing")
    if kind == "disk":
        raise OSError("no space left")
    if kind == "memory":
        raise MemoryError("9 GiB")
    if kind == "lambda":
        return lambda: None
    return case.identifier.upper()


def die(case, folder):
    """``once`` dies the first time, ``always`` every time; leaves a file for each try."""
    tries = len(list(folder.glob(f"{case.identifier}_*")))
    (folder / f"{case.identifier}_{tries}").touch()
    if case.identifier.startswith("always") or (case.identifier.startswith("once") and tries == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def surroundings(case):
    return {name: os.environ.get(name) for name in THREADS}


def sleep_after_a(case):
    if case.identifier != "a":
        time.sleep(600)


class NoBeginning:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def outcome(function, names, processes):
    return {case.identifier: result for case, result in run_cases(function, cases(*names), processes)}


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_a_case_that_raises_does_not_stop_the_others(processes, capfd):
    found = outcome(work, ["a", "bad-b", "c", "bug-d", "disk-e", "memory-f", "g"], processes)
    assert {name: r for name, r in found.items() if isinstance(r, str)} == {"a": "A", "c": "C", "g": "G"}
    assert found["bad-b"] == Failure("bad-b is bad. Leave it out.")
    assert found["bug-d"] == Failure("KeyError: 'nothing'")
    assert found["disk-e"] == Failure("no space left")
    assert found["memory-f"] == Failure("Out of memory (9 GiB). Take fewer processes (-np) or a larger machine.")
    # What a child prints would tear the bar.
    assert ("nnU-Net prints" in capfd.readouterr().out) == (processes == 0)


def test_a_result_that_cannot_be_sent_is_a_failure():
    found = outcome(work, ["lambda-a", "b"], 1)
    assert found["b"] == "B"
    assert found["lambda-a"].reason.startswith("Its result cannot be sent: ")


@needs_signals
def test_a_case_whose_process_dies_is_tried_again_alone(tmp_path, caplog):
    names = ["a", "once-b", "c", "always-d", "e", "f"]
    results = list(run_cases(partial(die, folder=tmp_path), cases(*names), 2))
    order = [case.identifier for case, _ in results]
    assert sorted(order) == sorted(names)
    assert set(order[:4]) == {"a", "c", "e", "f"}
    found = {case.identifier: result for case, result in results}
    assert [isinstance(found[name], int) for name in names] == [True, True, True, False, True, True]
    reason = found["always-d"].reason
    assert reason.startswith("Its process died (killed by SIGKILL), and again with nothing running beside it")
    assert "take fewer processes (-np)" in reason
    assert sorted(file.name for file in tmp_path.glob("*[bd]_*")) == [
        "always-d_0",
        "always-d_1",
        "once-b_0",
        "once-b_1",
    ]
    assert "once-b: its process died (killed by SIGKILL); it is tried again at the end" in caplog.messages
    assert multiprocessing.active_children() == []


def test_processes_that_cannot_begin_are_not_started_for_ever(caplog):
    with pytest.raises(OSError, match=r"A process ended before it could begin \(exit status 3\)"):
        outcome(NoBeginning(), ["a", "b"], 2)
    assert "A process ended before it could begin (exit status 3); 1 are left" in caplog.messages
    assert multiprocessing.active_children() == []


def test_closing_ends_processes_that_work():
    with closing(run_cases(sleep_after_a, cases("a", "b", "c"), 2)) as results:
        start = time.monotonic()
        assert next(results)[0].identifier == "a"
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 60


def test_one_thread_per_process_and_nothing_changed_here(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGINT)
    assert outcome(surroundings, ["a"], 1) == {"a": dict.fromkeys(THREADS, "1")}
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_numbers_of_processes(tmp_path):
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        outcome(work, ["a"], -1)
    assert outcome(work, [], 4) == {}
    assert outcome(partial(die, folder=tmp_path), ["a"], 0) == {"a": os.getpid()}
    assert outcome(partial(die, folder=tmp_path), ["b"], 8)["b"] != os.getpid()
