"""Batches of crops for Lightning."""

from __future__ import annotations

import atexit
import signal
import weakref
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, VALIDATION, CropDataset, CropSampler
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.data.splits import Fold
from ssl_pretrain.functional.geometry import Triple


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader whose position follows from the number of steps taken, so that there is no state to keep.

    Lightning asks loaders for a state before it lets a run continue within an epoch; the sampler derives its position
    from the trainer's step instead, and the state is empty.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is a function of the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class CropData(LightningDataModule):
    """Training and validation crops of a fold.

    Args:
        cases: where the voxels are.
        fold: which cases to train and validate on.
        patch: voxels per axis.
        config: sampling and augmentation; validation is not augmented.
        batch_size: samples per step and device.
        iterations: optimiser steps per epoch.
        val_iterations: validation batches per epoch, the same crops every time.
        seed: seed of the run.
        num_workers: processes that read; 0 reads in the training process.
        accumulate: batches per optimiser step.
    """

    def __init__(
        self,
        cases: Cases,
        fold: Fold,
        patch: Triple,
        config: CropConfig,
        *,
        batch_size: int,
        iterations: int,
        val_iterations: int,
        seed: int,
        num_workers: int,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.batches = iterations * accumulate
        self.val_iterations = val_iterations
        self.num_workers = num_workers
        self.train_crops = CropDataset(cases, fold.train, patch, config, seed, TRAIN)
        self.val_crops = CropDataset(cases, fold.validation, patch, config.without_augmentation(), seed, VALIDATION)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the current epoch, from the step at which the trainer stands."""
        trainer = self.trainer
        step, rank, world = (trainer.global_step, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        epoch, skip = divmod(step * self.accumulate, self.batches)
        return self._loader(self.train_crops, CropSampler(self.batches, self.batch_size, rank, world, epoch, skip))

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The same batches in every epoch."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._loader(self.val_crops, FixedSampler(self.val_iterations, self.batch_size, rank, world))

    def _loader(self, crops: CropDataset, sampler: CropSampler) -> DataLoader[dict[str, Any]]:
        loader = ResumableLoader(
            crops,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=start_worker if self.num_workers else None,
            # A generator of its own: making an iterator must not advance the global random state.
            generator=torch.Generator(),
        )
        atexit.register(kill_workers, weakref.ref(loader))
        return loader


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


def kill_workers(reference: weakref.ref[ResumableLoader]) -> None:
    """Kill the reading processes of a loader that are left when the interpreter ends.

    Python would send them SIGTERM and wait, which would be for ever. Registered later, this runs earlier.
    """
    loader = reference()
    for process in getattr(getattr(loader, "_iterator", None), "_workers", ()):
        process.kill()
