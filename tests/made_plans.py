"""Images without labels in a scratch home of nnU-Net, to be planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Home
from made_images import write_image

from ssl_pretrain.data.phantoms import make_phantom
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.planning import Planned, PlanRequest, plan_unlabeled
from ssl_pretrain.data.preparation.sources import find_images

SHAPE = (24, 32, 32)
MADE = PlanRequest(number=745, name="Made", processes=0)


def empty_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """nnU-Net's folders with nothing in them, also in the environment."""
    home = Home(root, "Dataset745_Made")
    for folder in (home.raw, home.preprocessed, home.results):
        folder.mkdir()
        monkeypatch.setenv(folder.name, str(folder))
    return home


def made_cases(
    folder: Path,
    count: int = 3,
    shape: tuple[int, int, int] = SHAPE,
    channels: int = 1,
    spacing: Sequence[float] = (2, 2, 2),
) -> list[ImageCase]:
    """Phantoms on disk; ``spacing`` in the order of the array's axes."""
    for index in range(count):
        for channel in range(channels):
            voxels = make_phantom(shape, seed=channel, index=index)[0]
            write_image(folder / f"phantom_{index}_{channel:04d}.nii.gz", voxels, spacing[::-1])
    return find_images([str(folder)], channels=channels, file_ending=".nii.gz")


def plan(cases: Sequence[ImageCase], **changes: Any) -> Planned:
    """Plan dataset 745; ``changes`` are settings of the request."""
    return plan_unlabeled(replace(MADE, **changes), cases, ".nii.gz")


def fullres(planned: Planned) -> dict[str, Any]:
    return planned.plans["configurations"]["3d_fullres"]


def contents(root: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
