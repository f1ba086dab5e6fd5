"""A preprocessed dataset and files of weights for studies, and results as runs leave them, without training."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_data import NAME, plans, write_dataset
from made_target import CONFIG, checkpoint

from ssl_pretrain.files import write_json
from ssl_pretrain.study.design import StudyRun, StudySettings
from ssl_pretrain.study.outcomes import mean_dice
from ssl_pretrain.study.study import RESULT, Study

CASES = 10
LABEL = "organ"


def write_home(root: Path, monkeypatch: pytest.MonkeyPatch, cases: int = CASES) -> Path:
    """nnU-Net's folders with the dataset in them, also in the environment; returns the dataset's folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(root / name))
    folder = write_dataset(root / "nnUNet_preprocessed", cases)
    made = {**plans(), "foreground_intensity_properties_per_channel": {}}
    made["configurations"]["3d_fullres"]["batch_dice"] = True
    write_json(made, folder / "nnUNetPlans.json")
    write_json({}, folder / "dataset_fingerprint.json")
    (folder / "gt_segmentations").mkdir()
    for i in range(cases):
        (folder / "gt_segmentations" / f"case_{i:02d}.nii.gz").touch()
    return folder


def write_weights(folder: Path, seed: int = 0, network: str | None = None, **config: Any) -> Path:
    """A checkpoint of ours in a folder of its own; ``network`` is what it says it is."""
    content = checkpoint(config={**CONFIG, "plans": "nnUNetPlans", **config})
    generator = torch.Generator().manual_seed(seed)
    for tensor in content["network_weights"].values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
    content["pretraining"]["network"] = network or "plans"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def settings(*weights: Path, **changes: Any) -> StudySettings:
    """Of a small study on the CPU."""
    base: dict[str, Any] = {"fractions": (), "cases": (2, 4), "seeds": 3, "epochs": 1, "iters": 2, "device": "cpu"}
    given = {**base, **changes}
    return StudySettings(dataset=NAME, configuration="3d_fullres", weights=tuple(map(str, weights)), **given)


def dice_of(study: Study, run: StudyRun, level: float) -> dict[str, dict[str, float]]:
    """Made Dice of the validation cases around a level, another one for each run."""
    rng = np.random.default_rng(zlib.crc32(run.name.encode()))
    names = study.folds[run.fold]["validation"]
    return {case: {LABEL: float(np.clip(level + 0.02 * rng.standard_normal(), 0, 1))} for case in names}


def finish(study: Study, run: StudyRun, level: float) -> dict[str, Any]:
    """Leave a result as a run does."""
    per_case = dice_of(study, run, level)
    mean, labels = mean_dice(per_case)
    content = {
        **{"dice": mean, "labels": labels, "per_case": per_case, "loaded": None, "continued": False},
        "trained": {"steps": 2, "batch_size": 2},
        "seconds": {"training": 1.0, "validation": 1.0, "process": 3.0},
        "machine": {"device": "made"},
    }
    study.run_folder(run).mkdir(parents=True, exist_ok=True)
    write_json(content, study.run_folder(run) / RESULT)
    return content


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(file: Path) -> Any:
    """A JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
