"""Samples by number: view *v* of sample *s* of a run is a pure function of ``(seed, stream, s, v)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ssl_pretrain.data.batches import LoadedCrop, Sample
from ssl_pretrain.data.cases import Box
from ssl_pretrain.data.places import Place, Places, ViewPlaces
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import (
    CropConfig,
    affine_of,
    box_to_read,
    mirrored,
    resample,
    triple_of,
    within,
)
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views

TRAIN, VALIDATION = 0, 1
"""Streams of crops."""

BLOCK = 32
"""Edge, in voxels, of the blocks in which nnU-Net has most images compressed."""


class CropDataset(Dataset[Sample]):
    """Samples of crops of a pool of cases; any index is valid, so there is no end to them.

    Args:
        pool: where the voxels are.
        patch: voxels of a crop per axis.
        config: sampling and augmentation.
        seed: seed of the run.
        stream: separates training from validation.
        finish: rotate and scale here; otherwise the crops carry what :func:`~ssl_pretrain.data.batches.finish` needs.
        places: where a sample's crops are; one by default.
        modalities: sorted names that the codes of the modalities count; those of the pool by default.
    """

    def __init__(
        self,
        pool: CasePool,
        patch: Triple,
        config: CropConfig,
        seed: int,
        stream: int,
        finish: bool = True,
        places: Places | None = None,
        modalities: Sequence[str] = (),
    ) -> None:
        self.pool = pool
        self.patch = patch
        self.config = config
        self.seed = seed
        self.stream = stream
        self.finish = finish
        self.places = places or ViewPlaces(Views())
        self.codes = np.searchsorted(modalities or pool.modalities, pool.modalities)

    def __getitem__(self, index: int) -> Sample:
        places = self.places.draw(self.pool, self.config, self.patch, index, self._random)
        boxes = [box_to_read(place.transform, place.start, self.patch) for place in places]
        crops = zip(places, boxes, self._read(places, boxes), strict=True)
        return [self._crop(*crop, index * len(places) + view) for view, crop in enumerate(crops)]

    def _random(self, *path: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.stream, *path])

    def _crop(self, place: Place, box: Box, voxels: Tensor, number: int) -> LoadedCrop:
        affine = affine_of(place.transform, place.start, self.patch)
        unfinished = None
        if place.transform.matrix is None:
            voxels = mirrored(voxels, place.transform)
        elif self.finish:
            voxels = resample(voxels[None], torch.from_numpy(within(affine, box[0]))[None], self.patch)[0]
        else:
            unfinished = box[0]
        return LoadedCrop(
            voxels=voxels,
            box=unfinished,
            start=place.start,
            affine=affine,
            spacing=self.pool.sources[self.pool.source_of[place.row]].spacing,
            modality=tuple(self.codes[self.pool.modality[place.row]].tolist()),
            masked=self.config.ignore_anonymized,
            case=str(self.pool.identifiers[place.row]),
            row=place.row,
            number=number,
        )

    def _read(self, places: Sequence[Place], boxes: Sequence[Box]) -> list[Tensor]:
        """Voxels of each box; of one case all from one box around them where that is less to decompress."""
        lows, highs = zip(*boxes, strict=True)
        around = triple_of(np.min(lows, axis=0)), triple_of(np.max(highs, axis=0))
        if len({place.row for place in places}) > 1 or decompressed(around) >= sum(map(decompressed, boxes)):
            return [self._read_box(place.row, box) for place, box in zip(places, boxes, strict=True)]
        voxels = self._read_box(places[0].row, around)
        parts = [
            tuple(slice(a - first, b - first) for a, b, first in zip(*box, around[0], strict=True)) for box in boxes
        ]
        return [voxels[(slice(None), *part)] for part in parts]

    def _read_box(self, row: int, box: Box) -> Tensor:
        """Voxels (C, d, h, w), with the mask of what is to be ignored as one more channel where that is asked for."""
        cases, identifier = self.pool.case(row)
        voxels = torch.from_numpy(cases.read(identifier, box))
        if not self.config.ignore_anonymized:
            return voxels
        return torch.cat([voxels, torch.from_numpy(cases.read_mask(identifier, "anonymization", box))])


def decompressed(box: Box) -> int:
    """Voxels that are decompressed for a box, on average over its places: only whole blocks can be."""
    return prod(b - a + BLOCK - 1 for a, b in zip(*box, strict=True))


class CropSampler(Sampler[int]):
    """The numbers of one epoch's samples for one process; knows where a continued run left off.

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
