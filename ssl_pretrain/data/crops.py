"""Crops by number: crop *i* of a run is a pure function of ``(seed, stream, i)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ssl_pretrain.data.batches import Sample
from ssl_pretrain.data.cases import Box, Cases
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig, affine_of, box_to_read, draw_transform, mirrored, resample
from ssl_pretrain.functional.geometry import Triple

TRAIN, VALIDATION = 0, 1
"""Streams of crops."""


class CropDataset(Dataset[Sample]):
    """Crops of a pool of cases; any index is valid, so there is no end to them.

    Args:
        pool: where the voxels are.
        patch: voxels per axis.
        config: sampling and augmentation.
        seed: seed of the run.
        stream: separates training from validation.
        finish: rotate and scale here; otherwise the samples carry what :func:`~ssl_pretrain.data.batches.finish` needs.
    """

    def __init__(
        self, pool: CasePool, patch: Triple, config: CropConfig, seed: int, stream: int, finish: bool = True
    ) -> None:
        self.pool = pool
        self.patch = patch
        self.config = config
        self.seed = seed
        self.stream = stream
        self.finish = finish

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, self.stream, index])
        cases, identifier = self.pool.draw(rng)
        transform = draw_transform(self.config, self.patch, rng)
        start = self._draw_start(cases, identifier, rng)
        box = box_to_read(transform, start, self.patch)
        voxels = self._read(cases, identifier, box)
        masked = self.config.ignore_anonymized
        if transform.matrix is None:
            return Sample(mirrored(voxels, transform), None, masked, identifier, index)
        affine = affine_of(transform, box, start, self.patch)
        if not self.finish:
            return Sample(voxels, affine, masked, identifier, index)
        return Sample(resample(voxels[None], affine[None], self.patch)[0], None, masked, identifier, index)

    def _read(self, cases: Cases, identifier: str, box: Box) -> Tensor:
        """Voxels (C, d, h, w), with the mask of what is to be ignored as one more channel where that is asked for."""
        voxels = torch.from_numpy(cases.read(identifier, box))
        if not self.config.ignore_anonymized:
            return voxels
        return torch.cat([voxels, torch.from_numpy(cases.read_mask(identifier, "anonymization", box))])

    def _draw_start(self, cases: Cases, identifier: str, rng: np.random.Generator) -> Triple:
        """First voxel of the crop: uniform over all places inside, or around a voxel of a label or of the anatomy."""
        shape = cases.shape(identifier)
        lows, highs = zip(*(place_range(n, p) for n, p in zip(shape, self.patch, strict=True)), strict=True)
        start = rng.integers(lows, np.array(highs) + 1)
        wants_foreground, which_class, which_voxel = rng.random(3)
        candidates: list[npt.NDArray[np.integer[Any]]] = []
        if wants_foreground < self.config.oversample_foreground:
            candidates = [voxels[:, -3:] for voxels in cases.foreground(identifier).values()]
        if not candidates and self.config.sample_in == "anatomy":
            candidates = [voxels for voxels in (cases.anatomy(identifier),) if len(voxels)]
        if candidates:
            voxels = candidates[int(which_class * len(candidates))]
            voxel = np.asarray(voxels[int(which_voxel * len(voxels))])
            start = np.clip(voxel - np.array(self.patch) // 2, lows, highs)
        d, h, w = (int(x) for x in start)
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
