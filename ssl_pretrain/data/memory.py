"""Keeping the memory of reading processes from growing."""

from __future__ import annotations

import ctypes
import sys

from ssl_pretrain.data.batches import Sample

EVERY = 50
"""Samples after which a reading process gives memory back: a few milliseconds each time."""


class Tidy:
    """Hands samples on and gives freed memory back to the system now and then.

    Boxes of voxels have a different size in every sample. The holes that they leave in glibc's heap fit the next ones
    badly, so a process that is left alone holds several times what it needs, and ever a little more.
    """

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, sample: Sample) -> Sample:
        """The sample as it is."""
        self.samples += 1
        if self.samples % EVERY == 0:
            trim_heap()
        return sample


def trim_heap() -> None:
    """Give freed memory back to the system where the C library is glibc; nothing elsewhere."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
