"""What crops are drawn under several settings: a record of it, made once, that later versions must reproduce.

    python tests/data/drawn.py

writes ``drawn_crops.json`` anew, which is right only where runs are meant to see other crops than before. A record
holds of each crop its case, the box that is read for it, the map into that box, a digest of the voxels that were read,
and of the finished crop a digest, or mean and deviation where it was interpolated, which differs from CPU to CPU.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from made_data import write_case, write_unlabelled

from ssl_pretrain.data.batches import Sample, assemble, finish
from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, VALIDATION, CropDataset
from ssl_pretrain.data.places import ViewPlaces
from ssl_pretrain.data.pool import Case, CasePool, Source
from ssl_pretrain.data.spatial import CropConfig, within
from ssl_pretrain.functional.views import Views

RECORD = Path(__file__).with_name("drawn_crops.json")
CROPS = 12

MOVED = {"rotation_p": 0.5, "scale_p": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"config": {"rotation_p": 0.0, "scale_p": 0.0, "mirror_p": 0.0}},
    "moved": {"config": MOVED, "seed": 3},
    "flat": {"config": MOVED, "patch": (4, 16, 14), "stream": VALIDATION},
    "foreground": {"config": {**MOVED, "oversample_foreground": 0.6}},
    "anatomy": {"config": {**MOVED, "sample_in": "anatomy", "oversample_foreground": 0.3}, "seed": 2**31},
    "ignoring": {"config": {**MOVED, "ignore_anonymized": True}, "balance": "datasets"},
}


def made_pool(home: Path, balance: Any = "cases") -> CasePool:
    """Labelled and unlabelled cases of whole numbers, some smaller than the patch, the latter with masks."""
    rng = np.random.default_rng(7)
    labelled, unlabelled = home / "labelled", home / "cases_unlabeled"
    for number, shape in enumerate([(20, 22, 24), (19, 17, 30), (10, 11, 30), (31, 18, 16)]):
        image = rng.integers(-99, 99, (2, *shape)).astype(np.float32)
        write_case(labelled, f"case_{number}", image)
        mask = np.zeros(shape, dtype=bool)
        mask[2:9, 3:9, 4:9] = True
        masks = {"anonymization": mask, "anatomy": mask[::-1, ::-1]} if number else {}
        write_unlabelled(unlabelled, f"scan_{number}", image + 1000, masks=masks)
    sources = [Source("one", Cases(labelled, 2)), Source("two", Cases(unlabelled, 2, labelled=False))]
    members = [
        Case(number, name, name, CaseInfo())
        for number, source in enumerate(sources)
        for name in source.cases.identifiers
    ]
    return CasePool(sources, members, balance)


def digest(voxels: torch.Tensor) -> str:
    return hashlib.sha256(voxels.contiguous().numpy().tobytes()).hexdigest()[:16]


def samples_of(pool: CasePool, setting: dict[str, Any], views: Views, *, finished: bool) -> list[Sample]:
    """As many samples as have all crops of the record."""
    samples = CropDataset(
        pool,
        setting.get("patch", (16, 16, 16)),
        CropConfig(**setting.get("config", {})),
        setting.get("seed", 0),
        setting.get("stream", TRAIN),
        finished,
        ViewPlaces(views),
    )
    return [samples[number] for number in range(CROPS // views.count)]


def recorded(
    home: Path, setting: dict[str, Any], finished: bool = True, views: Views | None = None
) -> list[dict[str, Any]]:
    """What is drawn under a setting, crop after crop.

    Args:
        home: folder for the cases.
        setting: one of :data:`SETTINGS`.
        finished: rotate and scale in the loader; otherwise as the device does.
        views: crops of several cases; one per sample by default.
    """
    views = views or Views()
    pool = made_pool(home, setting.get("balance", "cases"))
    unfinished = [crop for sample in samples_of(pool, setting, views, finished=False) for crop in sample]
    batch = finish(assemble(samples_of(pool, setting, views, finished=finished)), setting.get("patch", (16, 16, 16)))
    rows = []
    for crop, image, number in zip(unfinished, batch["image"], batch["index"], strict=True):
        moved = crop.box is not None
        first = crop.start if crop.box is None else crop.box
        rows.append(
            {
                "case": crop.case,
                "number": number,
                "box": [list(first), np.add(first, crop.voxels.shape[1:]).tolist()],
                "map": within(crop.affine, crop.box).tolist() if crop.box is not None else None,
                "read": digest(crop.voxels),
                "image": [round(float(image.double().mean()), 6), round(float(image.double().std()), 6)]
                if moved
                else digest(image),
            }
        )
        if "ignored" in batch and not moved:
            rows[-1]["ignored"] = digest(batch["ignored"][len(rows) - 1])
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        found = {name: recorded(Path(made) / name, setting) for name, setting in SETTINGS.items()}
        device = {name: recorded(Path(made) / name, setting, False) for name, setting in SETTINGS.items()}
    for name, rows in found.items():
        for ours, theirs in zip(rows, device[name], strict=True):
            moved = ours["map"] is not None
            assert {**ours, "image": moved or ours["image"]} == {**theirs, "image": moved or theirs["image"]}
            assert not moved or np.allclose(ours["image"], theirs["image"], rtol=1e-3, atol=1e-2)
    lines = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in found.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
