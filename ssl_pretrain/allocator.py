"""Keeping freed memory in the process, where that makes a step on the CPU faster."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed feature maps instead of giving it back to the system.

    PyTorch has a caching allocator for GPUs and none for the CPU: glibc maps every large tensor afresh, and the system
    fills each page with zeros on first touch. That was up to 37 % of an encoder's forward and backward pass
    (``benchmarks/README.md``). Acts on the whole process, for good. glibc's own settings in the environment
    (``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``) win.

    Returns:
        Whether anything was set: True on Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or _is_decided():
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, MOST))


def _is_decided() -> bool:
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return True
    return any(name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
