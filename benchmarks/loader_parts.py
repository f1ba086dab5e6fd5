"""Parts of the loader benchmark: nnU-Net's side, made-up volumes, memory, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, CropDataset, CropSampler
from ssl_pretrain.data.index import Entry, read_index
from ssl_pretrain.data.module import BatchLoader
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.functional.geometry import Triple

ROTATION = (-30 / 180 * np.pi, 30 / 180 * np.pi)
SETTLED = 100
"""Batches after which a loader has opened and cached what it ever will."""


def nnunet_loader(folder: Path, patch: Triple, batch: int, seed: int) -> Callable[[], Any]:
    """Makes nnU-Net's next batch: its loader with its own spatial transform, set to AnatoMask's ranges."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=ROTATION,
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    np.random.seed(seed)  # noqa: NPY002 - what nnU-Net draws from
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        batch,
        get_patch_size(patch, ROTATION, ROTATION, ROTATION, (0.85, 1.25)),
        patch,
        LabelManager({"background": 0, "organ": 1}, None),
        transforms=ComposeTransforms([spatial, MirrorTransform(allowed_axes=(0, 1, 2))]),
    )
    return loader.generate_train_batch


def write_volumes(folder: Path, shape: Triple, patch: Triple, count: int) -> None:
    """Volumes as nnU-Net writes them after resampling: smooth, with noise that does not compress away."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    segmentation = np.zeros((1, *shape), dtype=np.int8)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.standard_normal((1, *shape), dtype=np.float32)
        image += np.sin(np.linspace(0, 20, shape[0], dtype=np.float32))[None, :, None, None]
        blocks, chunks = comp_blosc2_params(image.shape, patch, 4)
        blocks_seg, chunks_seg = comp_blosc2_params(image.shape, patch, 1)
        nnUNetDatasetBlosc2.save_case(
            image,
            segmentation,
            {"class_locations": {1: []}},
            str(folder / f"volume_{number}"),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )


def memory_growth(cases: Cases, patch: Triple, batch: int, batches: int, workers: int) -> dict[str, Any]:
    """MiB of the training process and the reading ones after a hundred batches and after all."""
    crops = CropDataset(CasePool.of(cases), patch, CropConfig(), 0, TRAIN)
    held = []
    # Some more than are asked for: at its end a loader holds what its processes have handed over at last.
    loader = BatchLoader(crops, CropSampler(batches + SETTLED, batch), batch, workers)
    for number, _ in zip(range(1, batches + 1), loader, strict=False):
        if number % SETTLED == 0:
            held.append(round(_proportional_memory() / 2**20, 1))
    return {
        "memory_mib_every_100_batches": held,
        "memory_mib_at_100": held[0],
        "memory_mib_at_the_end": held[-1],
        "growth_mib": round(held[-1] - held[0], 1),
    }


def _proportional_memory() -> int:
    """Bytes that this process and its children allocated; what they share is counted once, files they map are not."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    total = 0
    for process in ("self", *children):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024
    return total


START = """
import json, resource, sys, time
from pathlib import Path
import torch, lightning
import ssl_pretrain.data.selection
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.pool import Case, CasePool, Source
from ssl_pretrain.data.case_info import CaseInfo
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
started = time.perf_counter()
cases = Cases(Path(sys.argv[1]), 1, labelled=False)
index = cases.index()
infos = [CaseInfo.from_dict(about.get("info", {})) for about in index.about]
pool = CasePool(
    [Source("made", cases)],
    [Case(0, name, info.subject, info) for name, info in zip(index.identifiers, infos)],
    "subjects",
)
seconds = time.perf_counter() - started
result = {"cases": len(pool), "seconds": round(seconds, 2), "memory_mib": round(peak() - before, 1)}
print(json.dumps({**result, "memory_mib_with_libraries": round(peak(), 1)}))
"""


def start_up(count: int) -> dict[str, Any]:
    """Seconds and MiB until the cases of an indexed folder can be drawn from, in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "cases"
        folder.mkdir()
        for number in range(count):
            (folder / f"Dataset001_Made__study__sub-{number // 3:06d}__ses-{number % 3}__T1w.b2nd").touch()
        cases = Cases(folder, 1, labelled=False)
        read_index(folder, cases.identifiers, cases.suffix, _made_up)
        done = subprocess.run(
            [sys.executable, "-c", START, str(folder)],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def _made_up(name: str) -> Entry:
    subject = name.rsplit("__", 2)[0]
    info = {"dataset": "study", "subject": subject, "session": "ses-0", "modality": "T1w", "quality": 2.0}
    return Entry((1, 176, 256, 256), {"info": info, "made_with": "0123456789abcdef"})
