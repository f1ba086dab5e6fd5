"""Batches of crops for Lightning."""

from __future__ import annotations

import atexit
import signal
import weakref
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ssl_pretrain.data.batches import Sample, assemble, finish
from ssl_pretrain.data.crops import TRAIN, VALIDATION, CropDataset, CropSampler
from ssl_pretrain.data.memory import Tidy
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.functional.geometry import Triple

AugmentOn = Literal["loader", "device"]


class BatchLoader(DataLoader[Any]):
    """Batches of crops whose samples are made in parallel, so that one slow case holds up one process only.

    The reading processes hand over single samples in shared memory; they are put together here, in page-locked memory
    where that is asked for.

    The position in the data follows from the number of steps taken: Lightning asks loaders for a state before it lets a
    run continue within an epoch, but the sampler derives its position from the trainer's step, and the state is empty.
    """

    def __init__(
        self, crops: CropDataset, sampler: CropSampler, batch_size: int, num_workers: int, *, pinned: bool = False
    ) -> None:
        self.samples_per_batch, self.pinned = batch_size, pinned
        super().__init__(
            crops,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # In the training process itself freed memory is better kept: ssl_pretrain.allocator.
            collate_fn=Tidy() if num_workers else as_it_is,  # type: ignore[arg-type]  # of a sample, not of a batch
            # At least a batch is under way besides the one that is being waited for.
            prefetch_factor=max(2, -(-2 * batch_size // num_workers)) if num_workers else None,
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker if num_workers else None,
            # A generator of its own: making an iterator must not advance the global random state.
            generator=torch.Generator(),
        )
        atexit.register(kill_workers, weakref.ref(self))

    def __len__(self) -> int:
        return super().__len__() // self.samples_per_batch

    def __iter__(self) -> Any:
        samples: list[Sample] = []
        for sample in super().__iter__():
            samples.append(sample)
            if len(samples) == self.samples_per_batch:
                yield assemble(samples, pinned=self.pinned)
                samples = []

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is a function of the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def as_it_is(sample: Sample) -> Sample:
    """What a loader does to a sample."""
    return sample


class CropData(LightningDataModule):
    """Training and validation crops.

    Args:
        train: cases to train on.
        validation: cases to validate on.
        patch: voxels per axis.
        config: sampling and augmentation; validation is not augmented.
        batch_size: crops per batch and device.
        iterations: optimiser steps per epoch.
        val_iterations: validation batches per epoch, the same crops every time.
        seed: seed of the run.
        num_workers: processes that read; 0 reads in the training process.
        accumulate: batches per optimiser step.
        augment_on: rotate and scale in the reading processes (``loader``), or whole batches on the ``device``.
        pinned: put batches into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        train: CasePool,
        validation: CasePool,
        patch: Triple,
        config: CropConfig,
        *,
        batch_size: int,
        iterations: int,
        val_iterations: int,
        seed: int,
        num_workers: int,
        accumulate: int = 1,
        augment_on: AugmentOn = "loader",
        pinned: bool = False,
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.batches = iterations * accumulate
        self.val_iterations = val_iterations
        self.num_workers = num_workers
        self.pinned = pinned
        self.patch = patch
        self.train_crops = CropDataset(train, patch, config, seed, TRAIN, finish=augment_on == "loader")
        self.val_crops = CropDataset(validation, patch, config.without_augmentation(), seed, VALIDATION)

    def train_dataloader(self) -> BatchLoader:
        """Batches of the current epoch, from the step at which the trainer stands."""
        trainer = self.trainer
        step, rank, world = (trainer.global_step, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        epoch, skip = divmod(step * self.accumulate, self.batches)
        return self._loader(self.train_crops, CropSampler(self.batches, self.batch_size, rank, world, epoch, skip))

    def val_dataloader(self) -> BatchLoader:
        """The same batches in every epoch."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._loader(self.val_crops, FixedSampler(self.val_iterations, self.batch_size, rank, world))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """What is left to do of the augmentation, on the device."""
        return finish(batch, self.patch)

    def _loader(self, crops: CropDataset, sampler: CropSampler) -> BatchLoader:
        return BatchLoader(crops, sampler, self.batch_size, self.num_workers, pinned=self.pinned)


class FixedSampler(CropSampler):
    """Validation: the first epoch's indices in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Ignored: every epoch validates on the same crops."""


def start_worker(_: int) -> None:
    """Set up a reading process: one thread, and deaf to SIGTERM.

    Clusters and ``kill`` of a process group send SIGTERM to the reading processes too. One that dies of it makes the
    training process fail in the middle of a step, before it can save.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def kill_workers(reference: weakref.ref[BatchLoader]) -> None:
    """Kill the reading processes of a loader that are left when the interpreter ends.

    Python would send them SIGTERM and wait, which would be for ever. Registered later, this runs earlier.
    """
    loader = reference()
    for process in getattr(getattr(loader, "_iterator", None), "_workers", ()):
        process.kill()
