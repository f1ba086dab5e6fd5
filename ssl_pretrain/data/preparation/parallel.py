"""One function over many cases, in processes of their own that may die without taking anything else down."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from logging import getLogger
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError

R = TypeVar("R")

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "BLOSC_NTHREADS",
)
"""Environment variables from which libraries take their number of threads when they are loaded."""

SECONDS_TO_END = 5.0
"""How long a process may take to end before it is killed."""

logger = getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A case came to nothing.

    Attributes:
        reason: in words for the user.
    """

    reason: str


def run_cases(
    function: Callable[[ImageCase], R], cases: Sequence[ImageCase], processes: int
) -> Iterator[tuple[ImageCase, R | Failure]]:
    """Call a function with every case and give the results as they come.

    A case that raises does not keep the others from being done, and neither does one whose process dies: it is tried
    once more when all others are done and nothing runs beside it. Close the iterator to end all processes.

    Args:
        function: pickled once per process; its results are pickled, too.
        cases: each is given to one process.
        processes: how many; 0 calls the function in this process. Each has one thread.

    Yields:
        A case with its result, or with the reason why it has none, in the order of completion.

    Raises:
        ValueError: a negative number of processes.
        OSError: processes die before they begin.
    """
    if processes < 0:
        raise ValueError(f"The number of processes must be 0 or more, got {processes}.")
    if processes == 0:
        for case in cases:
            yield case, _attempt(function, case)
        return
    again: list[ImageCase] = []
    for case, result in _in_processes(function, cases, min(processes, len(cases))):
        if isinstance(result, _Death):
            logger.warning("%s: its process died (%s); it is tried again at the end", case.identifier, result.how)
            again.append(case)
        else:
            yield case, result
    for case in again:
        for _, result in _in_processes(function, [case], 1):
            yield case, Failure(_died_alone(result)) if isinstance(result, _Death) else result


@dataclass(frozen=True)
class _Death:
    """A process is gone; how it ended."""

    how: str


def _died_alone(death: _Death) -> str:
    return (
        f"Its process died ({death.how}), and again with nothing running beside it. Perhaps it is out of memory: take "
        "fewer processes (-np) or a larger machine."
    )


class _Worker(Generic[R]):
    """A process, the pipe to it, and the case that it has."""

    def __init__(self, function: Callable[[ImageCase], R]) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.case: ImageCase | None = None
        self.is_ready = False
        with _surroundings_of_a_child():
            self.process.start()
        # Only the child may hold its end of the pipe, so that its death is seen here.
        theirs.close()

    def give(self, case: ImageCase) -> None:
        """Hand over a case. If the process is gone, :meth:`receive` will say so."""
        self.case = case
        try:
            self.connection.send(case)
        except OSError:
            logger.debug("%s was given to a process that is gone", case.identifier)

    def receive(self) -> Any:
        """What the process sent, or how it ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return _Death(self.end())

    def end(self) -> str:
        """End the process, which may be dead already; how it ended."""
        self.connection.close()
        self.process.join(timeout=SECONDS_TO_END)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(timeout=SECONDS_TO_END)
        code = self.process.exitcode
        return f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"


def _in_processes(
    function: Callable[[ImageCase], R], cases: Sequence[ImageCase], processes: int
) -> Iterator[tuple[ImageCase, R | Failure | _Death]]:
    """Every case with what became of it. A process that dies is replaced."""
    waiting = deque(cases)
    workers: list[_Worker[R]] = []
    try:
        for _ in range(processes):
            workers.append(_Worker(function))
        while workers:
            readable = wait([worker.connection for worker in workers])
            for worker in [worker for worker in workers if worker.connection in readable]:
                answer, case = worker.receive(), worker.case
                if isinstance(answer, _Death):
                    workers.remove(worker)
                    if not worker.is_ready:
                        _note_stillborn(answer, len(workers))
                    elif waiting:
                        workers.append(_Worker(function))
                else:
                    worker.is_ready, worker.case = True, None
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        workers.remove(worker)
                        worker.process.terminate()
                        worker.end()
                if case is not None:
                    yield case, answer
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _note_stillborn(death: _Death, left: int) -> None:
    """A process that could not even begin is not replaced: that might go on for ever.

    Raises:
        OSError: no other is left.
    """
    if left:
        logger.warning("A process ended before it could begin (%s); %d are left", death.how, left)
        return
    raise OSError(
        f"A process ended before it could begin ({death.how}). Perhaps there is no memory for it: take fewer processes "
        "(-np)."
    )


def _serve(connection: Any, function: Callable[[ImageCase], R]) -> None:
    """What a process does until its parent closes the pipe or is gone."""
    # The terminal sends Ctrl-C to all processes; it is the parent that ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # nnU-Net prints, which would tear the parent's progress bar.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), suppress(EOFError, OSError):
        connection.send(None)
        while True:
            answer = _attempt(function, connection.recv())
            try:
                connection.send(answer)
            except OSError:
                raise
            except Exception as error:
                connection.send(Failure(f"Its result cannot be sent: {type(error).__name__}: {error}"))


def _attempt(function: Callable[[ImageCase], R], case: ImageCase) -> R | Failure:
    try:
        return function(case)
    except (ImageError, OSError) as error:
        return Failure(str(error))
    except MemoryError as error:
        return Failure(f"Out of memory ({error}). Take fewer processes (-np) or a larger machine.")
    except Exception as error:
        # Whatever goes wrong with one case is reported with it, and the others go on.
        return Failure(f"{type(error).__name__}: {error}")


@contextmanager
def _surroundings_of_a_child() -> Iterator[None]:
    """What a process inherits when it is started: one thread, and Ctrl-C ignored while it imports."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
