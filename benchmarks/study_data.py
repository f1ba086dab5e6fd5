"""Labelled cases of the decoder study: nnU-Net's preprocessed files held in memory, and crops of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_pretrain.data.crops import place_range
from ssl_pretrain.functional.geometry import Triple


@dataclass(frozen=True)
class LabelledCase:
    """A case in memory, padded to a patch at least.

    Attributes:
        name: identifier.
        image: (C, D, H, W).
        labels: (D, H, W); 0 is background.
        voxels: of each class that the case has, (n, 3).
    """

    name: str
    image: Tensor
    labels: Tensor
    voxels: dict[int, npt.NDArray[np.int64]]


def load_cases(folder: Path, names: Sequence[str], patch: Triple) -> dict[str, LabelledCase]:
    """Read cases with nnU-Net's own dataset class."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder), list(names))
    cases = {}
    for name in names:
        data, segmentation = dataset.load_case(name)[:2]
        # -1 marks what lies outside of the nonzero region; nnU-Net trains on it as background.
        labels = torch.from_numpy(np.maximum(np.asarray(segmentation[0]), 0).astype(np.int64))
        image = torch.from_numpy(np.asarray(data[:], dtype=np.float32))
        cases[name] = _case(name, padded(image, patch), padded(labels, patch))
    return cases


def _case(name: str, image: Tensor, labels: Tensor) -> LabelledCase:
    classes = [int(value) for value in labels.unique() if value > 0]
    return LabelledCase(name, image, labels, {c: (labels == c).nonzero().numpy() for c in classes})


def padded(volume: Tensor, patch: Triple) -> Tensor:
    """Zeros on both sides of an axis that is shorter than the patch."""
    padding: list[int] = []
    for size, target in zip(reversed(volume.shape[-3:]), reversed(patch), strict=True):
        missing = max(target - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(volume, padding)


def draw_batch(
    cases: Sequence[LabelledCase], patch: Triple, batch_size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Crops (B, C, D, H, W) and their labels (B, 1, D, H, W); the last third of a batch, one at least, is centred on
    a voxel of a random class, as in nnU-Net.
    """
    images, labels = [], []
    centred = max(1, round(batch_size / 3))
    for i in range(batch_size):
        case = cases[int(rng.integers(len(cases)))]
        start = _start(case, patch, rng, centred=i >= batch_size - centred)
        box = tuple(slice(int(s), int(s) + p) for s, p in zip(start, patch, strict=True))
        images.append(case.image[(slice(None), *box)])
        labels.append(case.labels[box][None])
    return torch.stack(images), torch.stack(labels)


def _start(case: LabelledCase, patch: Triple, rng: np.random.Generator, *, centred: bool) -> npt.NDArray[np.int64]:
    ranges = [place_range(size, p) for size, p in zip(case.labels.shape, patch, strict=True)]
    lows, highs = np.array(ranges).T
    if not centred or not case.voxels:
        return rng.integers(lows, highs + 1)
    voxels = case.voxels[list(case.voxels)[int(rng.integers(len(case.voxels)))]]
    return np.clip(voxels[int(rng.integers(len(voxels)))] - np.array(patch) // 2, lows, highs)
