"""What the benchmarks share: machine, clock, memory, table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks import Backbone, build_backbone
from ssl_pretrain.networks.registry import NETWORKS, shown_names
from ssl_pretrain.study.machine import processor

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]]
"""Of the published STU-Net for nnU-Net v2; the sixth stage does not step."""


def build_network(name: str, channels: int, patch: Triple, classes: int = 105) -> Backbone:
    """A network by its name; the strides are those of :data:`STRIDES`. Needs neither nnU-Net nor data.

    Raises:
        ValueError: another name.
    """
    architecture = {"arch_kwargs": {"strides": STRIDES, "kernel_sizes": [[3, 3, 3]] * len(STRIDES)}}
    return build_backbone(name, architecture=architecture, input_channels=channels, num_classes=classes, patch=patch)


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Mixed precision as asked for: ``32`` or ``bf16``."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one call."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """GiB that one call needs on top of what is held before it: what PyTorch allocates, on the CPU and on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    return _peak_on_cpu(run)


def _peak_on_cpu(run: Callable[[], Any]) -> float:
    """Runs under PyTorch's profiler, which sees every allocation and release."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = highest = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 2**30


def provenance(device: str) -> dict[str, Any]:
    """Machine, versions and date, for the JSON."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else processor()
    return {
        "machine": {"device": name, "system": platform.platform(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Of the code that is measured, with a mark where it was changed since; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def write(result: dict[str, Any], file: Path | None) -> None:
    """The result as JSON, where a file was asked for."""
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the settings that all benchmarks of networks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="STUNet_base", help=shown_names(list(NETWORKS)[1:]))
    parser.add_argument("--patch", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--cell", type=int, nargs=3, default=[16, 16, 16])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default_allocator", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--json", type=Path)
    return parser
