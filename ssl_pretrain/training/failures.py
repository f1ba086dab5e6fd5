"""How real runs end: the machine's errors in plain words, each with what to do. One table."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.training.checkpoints import continue_with


class RunFailedError(RuntimeError):
    """Something outside of the program ended a run: memory, a killed process. The message says what to do."""


class FailureKind(NamedTuple):
    """A way in which runs end.

    Attributes:
        fits: whether an error, of this type and with this text, is one of them.
        words: what happened and what to do; ``{detail}`` is the error's own first line, ``{lighter}`` what makes a step
            smaller.
    """

    fits: Callable[[BaseException, str], bool]
    words: str


def says(*phrases: str) -> Callable[[BaseException, str], bool]:
    """Whether it is an error of PyTorch's, and its text holds one of these in any case."""
    return lambda error, text: isinstance(error, RuntimeError) and any(p.lower() in text.lower() for p in phrases)


def is_of_host_memory(error: BaseException, text: str) -> bool:
    """Whether the machine had no memory left; from a reading process the type may come as text alone."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or "[Errno 12]" in text
    return says("can't allocate memory", "cannot allocate memory", "not enough memory", "MemoryError")(error, text)


def is_of_open_files(error: BaseException, text: str) -> bool:
    """Whether the process may not open more files, sockets and pieces of shared memory."""
    if isinstance(error, OSError):
        return error.errno == errno.EMFILE or "[Errno 24]" in text
    return says("Too many open files", "received 0 items of ancdata")(error, text)


def is_of_full_disk(error: BaseException, _text: str) -> bool:
    """Whether a disk is full, or the user's part of it; what writes files of ours says more itself."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_of_gpu_memory(error: BaseException, text: str) -> bool:
    """Whether the GPU had no memory left."""
    phrases = ("MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or says(*phrases)(error, text)


def is_of_another_process(error: BaseException, text: str) -> bool:
    """Whether the processes of a distributed run lost each other."""
    if torch.distributed.is_available() and isinstance(error, torch.distributed.DistError):
        return True
    return says("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "ProcessGroup")(error, text)


FAILURES = (
    FailureKind(is_of_full_disk, "The disk is full: {detail} Free some space or choose another folder (-o)."),
    FailureKind(is_of_gpu_memory, "The GPU has too little memory for a step: {detail} {lighter}"),
    FailureKind(
        says("Bus error", "shared memory", "torch_shm"),
        "The reading processes ran out of shared memory: {detail} Start the container with a larger --shm-size or with "
        "--ipc=host, take fewer with -num_workers, or read in the training process with -num_workers 0.",
    ),
    FailureKind(
        says("DataLoader worker (pid"),
        "A reading process is gone: {detail} Most often the system killed it because the machine's memory was full "
        "(dmesg tells). Take fewer with -num_workers, 0 to read in the training process, or ask for more memory.",
    ),
    FailureKind(
        is_of_open_files,
        "The process may not open more files: {detail} Raise the limit (ulimit -n 65536), or take fewer reading "
        "processes (-num_workers).",
    ),
    FailureKind(
        is_of_host_memory,
        "The machine has too little memory: {detail} Take fewer reading processes (-num_workers) or ask for more "
        "memory. {lighter}",
    ),
    FailureKind(
        is_of_another_process,
        "Another process of this run is gone or does not answer: {detail} What ended it is said above, or in its "
        "training_log_*_rank*.txt; when nothing is, the system killed it, most often because the memory was full.",
    ),
)


def explain(error: BaseException, config: PretrainConfig, folder: Path | None = None) -> str | None:
    """What an error means and what to do, in one line; None where that is not known.

    Args:
        error: as it came.
        config: of the run.
        folder: the run's, once there is one.
    """
    text = f"{type(error).__name__}: {error}"
    if str(error).startswith("Caught "):
        # From a reading process, with its whole traceback; what stands in that is no sign of anything.
        text = f"{text.splitlines()[0]} {detail_of(error)}"
    for failure in FAILURES:
        if failure.fits(error, text):
            words = failure.words.format(detail=detail_of(error), lighter=lighter(config))
            return words if folder is None else f"{words} {continue_with(folder)}"
    return None


def detail_of(error: BaseException) -> str:
    """An error's own words: two sentences, before the advice of PyTorch, of its first line or a traceback's last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1] if lines[0].startswith("Caught ") else lines[0]
    return ". ".join(line.split(". ")[:2]).rstrip(". ") + "."


def lighter(config: PretrainConfig) -> str:
    """What makes a step smaller; only what computes the same can be changed on the way."""
    other_run = "a smaller -batch_size or -patch_size is another run (-o)."
    if getattr(config.task, "checkpointing", None) is False:
        return f"-set checkpointing=true takes less, and the run goes on with it; {other_run}"
    return f"{other_run[0].upper()}{other_run[1:]}"


@contextmanager
def plain_words(config: PretrainConfig, folder: Path | None = None) -> Iterator[None]:
    """Meanwhile an error of the table becomes a :class:`RunFailedError`; its cause is the error as it came."""
    try:
        yield
    except Exception as error:
        words = explain(error, config, folder)
        if words is None:
            raise
        raise RunFailedError(words) from error
