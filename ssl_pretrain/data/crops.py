"""Crops by number: crop *i* of a run is a pure function of ``(seed, stream, i)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.spatial import CropConfig, box_to_read, draw_transform, resample
from ssl_pretrain.functional.geometry import Triple

TRAIN, VALIDATION = 0, 1
"""Streams of crops."""


class CropDataset(Dataset[dict[str, Any]]):
    """Crops of a set of cases; any index is valid, so there is no end to them.

    Args:
        cases: where the voxels are.
        identifiers: cases to draw from, uniformly and with replacement.
        patch: voxels per axis.
        config: sampling and augmentation.
        seed: seed of the run.
        stream: separates training from validation.
    """

    def __init__(
        self, cases: Cases, identifiers: Sequence[str], patch: Triple, config: CropConfig, seed: int, stream: int
    ) -> None:
        self.cases = cases
        self.identifiers = list(identifiers)
        self.patch = patch
        self.config = config
        self.seed = seed
        self.stream = stream

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, self.stream, index])
        identifier = self.identifiers[int(rng.integers(len(self.identifiers)))]
        transform = draw_transform(self.config, self.patch, rng)
        start = self._draw_start(identifier, rng)
        box = box_to_read(transform, start, self.patch)
        voxels = torch.from_numpy(self.cases.read(identifier, box))
        image = resample(voxels, box, transform, start, self.patch)
        return {"image": image.contiguous(), "case": identifier, "index": index}

    def _draw_start(self, identifier: str, rng: np.random.Generator) -> Triple:
        """First voxel of the crop: uniform over all places inside, or around a labelled voxel."""
        shape = self.cases.shape(identifier)
        lows, highs = zip(*(place_range(n, p) for n, p in zip(shape, self.patch, strict=True)), strict=True)
        uniform = rng.integers(lows, np.array(highs) + 1)
        wants_foreground, which_class, which_voxel = rng.random(3)
        if wants_foreground < self.config.oversample_foreground:
            locations = self.cases.foreground(identifier)
            if locations:
                voxels = list(locations.values())[int(which_class * len(locations))]
                voxel = np.asarray(voxels[int(which_voxel * len(voxels))])[1:]
                uniform = np.clip(voxel - np.array(self.patch) // 2, lows, highs)
        d, h, w = (int(x) for x in uniform)
        return d, h, w


def place_range(size: int, patch: int) -> tuple[int, int]:
    """First and last start of a patch along an axis; a smaller volume is centred in it, as in nnU-Net."""
    missing = max(patch - size, 0)
    if missing:
        return -missing // 2, -(missing // 2)
    return 0, size - patch


class CropSampler(Sampler[int]):
    """The indices of one epoch's crops for one process; knows where a continued run left off.

    Args:
        iterations: batches per epoch.
        batch_size: samples per batch and process.
        rank: number of this process.
        world: number of processes.
        epoch: epoch to begin with.
        skip: batches of that epoch that were already trained on.
    """

    def __init__(
        self, iterations: int, batch_size: int, rank: int = 0, world: int = 1, epoch: int = 0, skip: int = 0
    ) -> None:
        self.iterations = iterations
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.epoch = epoch
        self.skip = skip

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    def __iter__(self) -> Iterator[int]:
        for iteration in range(self.skip, self.iterations):
            step = self.epoch * self.iterations + iteration
            first = (step * self.world + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        return self.iterations * self.batch_size
