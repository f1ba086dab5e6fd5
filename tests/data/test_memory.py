import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch
from made_data import made_crop

from ssl_pretrain.data.memory import EVERY, Tidy, check_shared_memory, trim_heap


def held() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) * 1024


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="of glibc"
)
def test_holes_in_the_heap_are_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    # Blocks below the threshold of mapping lie in the heap; every tenth stays and keeps the others from being given up.
    blocks = [libc.malloc(100_000) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for number, block in enumerate(blocks):
        if number % 10:
            libc.free(block)
    before = held()
    trim_heap()
    assert before - held() > 100_000_000
    for block in blocks[::10]:
        libc.free(block)


def test_samples_are_handed_on_and_memory_is_given_back_now_and_then(monkeypatch):
    calls = []
    monkeypatch.setattr("ssl_pretrain.data.memory.trim_heap", lambda: calls.append(1))
    tidy = Tidy()
    large = torch.arange(1000.0).reshape(1, 1, 1, -1)
    samples = [[made_crop(torch.full((1, 1, 1, 2), float(i))), made_crop(large[..., :2])] for i in range(2 * EVERY)]
    handed_on = [tidy(sample) for sample in samples]
    assert len(calls) == 2
    for number, crops in enumerate(handed_on):
        assert [crop.voxels.flatten().tolist() for crop in crops] == [[number, number], [0, 1]]
        assert all(crop.voxels.is_shared() for crop in crops), "an error of sharing must be the sample's own"
        assert all(crop.voxels.untyped_storage().nbytes() == 8 for crop in crops), "a part does not bring the whole"


def test_too_little_shared_memory_is_refused_with_both_sizes_and_three_remedies(tmp_path):
    state = os.statvfs(tmp_path)
    free = state.f_bavail * state.f_frsize
    check_shared_memory(free // 2, tmp_path)
    check_shared_memory(0, tmp_path)
    check_shared_memory(free * 2, tmp_path / "a system without it")
    needed = 2 * free + 3 * 2**30
    with pytest.raises(ValueError, match=rf"hold up to {needed / 2**20:.0f} MiB of crops") as caught:
        check_shared_memory(needed, tmp_path)
    words = str(caught.value)
    assert f"{tmp_path} has " in words
    for remedy in ("--shm-size=", "--ipc=host", "-num_workers 0"):
        assert remedy in words
