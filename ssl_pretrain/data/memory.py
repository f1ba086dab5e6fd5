"""Memory of reading processes: what they share with the training process, and what they give back."""

from __future__ import annotations

import ctypes
import os
import sys
from math import ceil
from pathlib import Path

from ssl_pretrain.data.batches import Sample

SHARED_MEMORY = Path("/dev/shm")

EVERY = 50
"""Samples after which a reading process gives memory back: a few milliseconds each time."""


class Tidy:
    """Puts samples into shared memory, and gives freed memory back to the system now and then.

    Left alone, a sample is shared by a thread of the reading process, after it was handed on: where there is no room,
    that thread alone dies, and the training process waits for the sample for ever. Here it is an error that arrives.

    Boxes of voxels have a different size in every sample. The holes that they leave in glibc's heap fit the next ones
    badly, so a process that is left alone holds several times what it needs, and ever a little more.
    """

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, sample: Sample) -> Sample:
        """The sample as it is, in shared memory."""
        # A part of what was read for several crops would bring all of it along.
        whole = [crop._replace(voxels=crop.voxels.clone()) if crop.voxels._is_view() else crop for crop in sample]
        for crop in whole:
            crop.voxels.share_memory_()  # type: ignore[no-untyped-call]
        self.samples += 1
        if self.samples % EVERY == 0:
            trim_heap()
        return whole


def trim_heap() -> None:
    """Give freed memory back to the system where the C library is glibc; nothing elsewhere."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def check_shared_memory(needed: int, folder: Path = SHARED_MEMORY) -> None:
    """Refuse reading processes for whose crops there is no room: they could not deliver them.

    Args:
        needed: bytes that the reading processes of this machine hold at most.
        folder: where the system keeps shared memory; nothing is checked where it is absent, as outside of Linux.

    Raises:
        ValueError: names both sizes, and what to do in a container and without one.
    """
    if not needed or not folder.is_dir():
        return
    state = os.statvfs(folder)
    # A file system without a limit says that it has no blocks.
    free = state.f_bavail * state.f_frsize
    if state.f_blocks == 0 or free >= needed:
        return
    raise ValueError(
        f"The reading processes hold up to {mebibytes(needed)} of crops in shared memory, and {folder} has "
        f"{mebibytes(free)} free. Start the container with --shm-size={ceil(needed / 2**29)}g (Docker gives 64 MB by "
        "default) or --ipc=host, take fewer with -num_workers, or read in the training process with -num_workers 0."
    )


def mebibytes(size: int) -> str:
    """``64 MiB``."""
    return f"{size / 2**20:.0f} MiB"
