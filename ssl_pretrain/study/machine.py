"""What computes, and how nnU-Net is to use it for a run of a study."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREPROCESSED = "nnUNet_preprocessed"
RESULTS = "nnUNet_results"

AUGMENTATION_PROCESSES = 12
"""nnU-Net's own upper end for a GPU."""


def machine(device: str) -> dict[str, Any]:
    """Name of the device, cores that may be used, operating system."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else processor()
    return {"device": name, "cores": available_cores(), "system": platform.platform()}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor; ``platform.processor()`` is empty on many Linux systems."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"


def run_environment(
    device: str, threads: int, preprocessed: Path, results: Path, env: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of one run; what the user has set about processes and compilation stays.

    Args:
        device: ``cuda``, ``cpu`` or ``mps``.
        threads: cores that are the run's.
        preprocessed: what nnU-Net takes for ``nnUNet_preprocessed``.
        results: what it takes for ``nnUNet_results``.
        env: to start from; default the current one.
    """
    from ssl_pretrain.transfer.extension import trainer_environment

    base = trainer_environment(env)
    # On the CPU the network takes all the time, and starting processes costs more than they give.
    readers = 0 if device == "cpu" else max(1, min(AUGMENTATION_PROCESSES, threads - 1))
    # Compiling takes a minute each, of many runs that last minutes.
    ours = {"nnUNet_n_proc_DA": str(readers), "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    return {**ours, **base, PREPROCESSED: str(preprocessed), RESULTS: str(results)}
