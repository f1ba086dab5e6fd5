"""Batches of crops for Lightning."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable, Iterator
from math import prod
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ssl_pretrain.data.batches import Sample, assemble, finish
from ssl_pretrain.data.crops import TRAIN, VALIDATION, CropDataset, CropSampler
from ssl_pretrain.data.memory import Tidy
from ssl_pretrain.data.places import places_of
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig, box_to_read, draw_transform, voxels_in
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views

AugmentOn = Literal["loader", "device"]

PATIENCE = 600.0
"""Seconds without a single crop after which a run ends. A crop takes a fraction of a second, or minutes from a network
drive that wakes up or is mounted anew; one that has not answered by then keeps a job waiting until its time is over."""

LOOK = 5
"""Seconds after which somebody who waits for a crop asks whether to go on waiting."""


class BatchLoader(DataLoader[Any]):
    """Batches of crops whose samples are made in parallel, so that one slow case holds up one process only.

    The reading processes hand over single samples in shared memory; they are put together here, in page-locked memory
    where that is asked for.

    Who waits for a crop for more than :data:`LOOK` seconds asks ``waiting`` whether to go on.

    The position in the data follows from the number of steps taken: Lightning asks loaders for a state before it lets a
    run continue within an epoch, but the sampler derives its position from the trainer's step, and the state is empty.
    """

    def __init__(
        self,
        crops: CropDataset,
        sampler: CropSampler,
        batch_size: int,
        num_workers: int,
        *,
        pinned: bool = False,
        waiting: Callable[[float], None] | None = None,
    ) -> None:
        self.samples_per_batch, self.pinned = batch_size, pinned
        self.waiting = waiting or wait_patiently
        super().__init__(
            crops,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # In the training process itself freed memory is better kept: ssl_pretrain.allocator.
            collate_fn=Tidy() if num_workers else as_it_is,  # type: ignore[arg-type]  # of a sample, not of a batch
            prefetch_factor=samples_ahead(batch_size, num_workers) if num_workers else None,
            timeout=LOOK if num_workers else 0,
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker if num_workers else None,
            # A generator of its own: making an iterator must not advance the global random state.
            generator=torch.Generator(),
        )
        # Not those of the iterator: it may be gone while its processes still wait for a disk.
        self.processes: list[BaseProcess] = []
        atexit.register(kill_processes, self.processes)

    def __len__(self) -> int:
        return super().__len__() // self.samples_per_batch

    def __iter__(self) -> Any:
        samples: list[Sample] = []
        reading = super().__iter__()
        self.processes[:] = getattr(reading, "_workers", ())
        while (sample := self._next(reading)) is not None:
            samples.append(sample)
            if len(samples) == self.samples_per_batch:
                yield assemble(samples, pinned=self.pinned)
                samples = []

    def _next(self, reading: Iterator[Sample]) -> Sample | None:
        """The next sample, or None after the last one."""
        began = time.monotonic()
        while True:
            try:
                return next(reading, None)
            except RuntimeError as error:
                # PyTorch gives up after each time-out; to ask again is to go on waiting.
                if not str(error).startswith("DataLoader timed out"):
                    raise
            try:
                self.waiting(time.monotonic() - began)
            except BaseException:
                abandon(self.processes)
                raise

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is a function of the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def samples_ahead(batch_size: int, num_workers: int) -> int:
    """Samples that each reading process has under way: together a batch besides the one that is being waited for."""
    return max(2, -(-2 * batch_size // num_workers))


def wait_patiently(seconds: float) -> None:
    """Go on waiting for a crop.

    Raises:
        TimeoutError: after :data:`PATIENCE` seconds.
    """
    if seconds < PATIENCE:
        return
    raise TimeoutError(
        f"No crop came from the reading processes for {PATIENCE / 60:.0f} minutes, though they live: most often a disk "
        "or a network drive does not answer. See whether the preprocessed cases can be read (-num_workers 0 reads in "
        "the training process), then continue with --c."
    )


def as_it_is(sample: Sample) -> Sample:
    """What a loader does to a sample."""
    return sample


class CropData(LightningDataModule):
    """Training and validation crops.

    Args:
        train: cases to train on.
        validation: cases to validate on.
        patch: voxels of a crop per axis, where ``views`` do not say it.
        config: sampling and augmentation; validation is not augmented.
        batch_size: samples per batch and device.
        iterations: optimiser steps per epoch.
        val_iterations: validation batches per epoch, the same samples every time.
        seed: seed of the run.
        num_workers: processes that read; 0 reads in the training process.
        accumulate: batches per optimiser step.
        augment_on: rotate and scale in the reading processes (``loader``), or whole batches on the ``device``.
        pinned: put batches into page-locked memory, for a GPU.
        views: the crops of a sample; one by default.

    Attributes:
        modalities: names behind the codes of the batches' ``modality``, sorted; of all cases of the run.
        waiting: asked with the seconds so far by who waits for a crop; raises to end it. The owner of a run may set it.
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
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.batches = iterations * accumulate
        self.val_iterations = val_iterations
        self.num_workers = num_workers
        self.pinned = pinned
        self.views = views or Views()
        self.patch = self.views.size or patch
        self.waiting: Callable[[float], None] = wait_patiently
        self.modalities = tuple(sorted({*train.modalities, *validation.modalities}))

        def samples(pool: CasePool, crops: CropConfig, stream: int, finish: bool) -> CropDataset:
            return CropDataset(pool, self.patch, crops, seed, stream, finish, places_of(self.views), self.modalities)

        self.train_crops = samples(train, config, TRAIN, augment_on == "loader")
        self.val_crops = samples(validation, config.without_augmentation(), VALIDATION, True)

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

    def shared_bytes(self, channels: int) -> int:
        """Bytes of shared memory that the crops of one training process take at most, a few per cent more or less.

        Those under way in all reading processes, and a batch that is being put together; training and validation take
        turns. Crops that the device finishes are boxes of any size: of many the mean counts.

        Args:
            channels: of the images.
        """
        if not self.num_workers:
            return 0
        crops, rng = self.train_crops, np.random.default_rng(0)
        voxels = [prod(self.patch)]
        if not crops.finish:
            transforms = (draw_transform(crops.config, self.patch, rng) for _ in range(99))
            voxels = [voxels_in(box_to_read(transform, (0, 0, 0), self.patch)) for transform in transforms]
        samples = self.num_workers * samples_ahead(self.batch_size, self.num_workers) + self.batch_size
        return int(
            samples * self.views.count * np.mean(voxels) * (channels + crops.config.ignore_anonymized) * 4
        )  # of float32

    def _loader(self, crops: CropDataset, sampler: CropSampler) -> BatchLoader:
        return BatchLoader(
            crops,
            sampler,
            self.batch_size,
            self.num_workers,
            pinned=self.pinned,
            # Looked up anew each time: who owns the run may come later.
            waiting=lambda seconds: self.waiting(seconds),
        )


class FixedSampler(CropSampler):
    """Validation: the first epoch's indices in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Ignored: every epoch validates on the same crops."""


def start_worker(_: int) -> None:
    """Set up a reading process: one thread, and deaf to SIGTERM and Ctrl-C.

    Clusters and ``kill`` of a process group send SIGTERM to the reading processes too. One that dies of it makes the
    training process fail in the middle of a step, before it can save. Ctrl-C reaches every process of the terminal; the
    training process answers it for all.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def abandon(processes: list[BaseProcess]) -> None:
    """Kill reading processes that nobody waits for any more; PyTorch would ask each to end, and wait seconds for it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return
    # PyTorch takes the end of a reading process for an error, and raises it wherever the main thread is.
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        kill_processes(processes)
        for process in processes:
            process.join(1)
    finally:
        signal.signal(signal.SIGCHLD, earlier)


def kill_processes(processes: list[BaseProcess]) -> None:
    """Kill the reading processes of a loader that are left when the interpreter ends.

    Python would send them SIGTERM and wait, which would be for ever. Registered later, this runs earlier.
    """
    for process in processes:
        if process.is_alive():
            process.kill()
