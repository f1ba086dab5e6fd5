import platform
import subprocess
import sys

import pytest

from ssl_pretrain.allocator import keep_freed_memory

SCRIPT = """
import resource, sys, torch
from ssl_pretrain.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)  # 64 MB; a few go by until a freed block fits an aligned one of the same size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(what: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_a_tensor_of_the_same_size_takes_no_new_pages():
    assert page_faults("keep") < 0.1 * page_faults("default")


def test_settings_in_the_environment_win(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not keep_freed_memory()
