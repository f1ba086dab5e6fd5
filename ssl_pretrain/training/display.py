"""What one sees of a run while it goes on: progress bar and pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from ssl_pretrain.data.batches import Sample, assemble
from ssl_pretrain.data.crops import CropDataset
from ssl_pretrain.methods.base import VALIDATION_STREAM, Method
from ssl_pretrain.report.pictures import draw_picture
from ssl_pretrain.training.history import History, format_seconds

log = logging.getLogger("ssl_pretrain")

PICTURE = 10**6
"""Path element that keeps the mask of the picture apart from those of validation batches."""

CANDIDATES = 8
"""Validation crops among which that of the picture is chosen: many crops of a scan are all air."""


class Bar(TQDMProgressBar):
    """Lightning's bar with images per second and the time the whole run has left."""

    def __init__(self, history: History, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.history = history

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What Lightning shows, without the version number, plus pace and time left."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        rate = self.train_progress_bar.format_dict.get("rate") if self._train_progress_bar is not None else None
        if rate:
            metrics["images/s"] = f"{rate * self.history.batch_size:.2f}"
        left = self.history.seconds_left(trainer)
        if not left and rate:
            done = trainer.global_step * trainer.accumulate_grad_batches
            left = ((trainer.max_epochs or 0) * trainer.num_training_batches - done) / rate
        metrics["left"] = format_seconds(left)
        return metrics


class Pictures(Callback):
    """Draws what the method makes of one validation sample, the same in every epoch, under a fixed random state.

    Args:
        folder: where ``epoch_0001.png`` and so on go.
        every: epochs between two pictures; the first and the last epoch always have one.
        spacing: mm per voxel along (D, H, W), for the aspect of the slices.
    """

    def __init__(self, folder: Path, every: int, spacing: tuple[float, float, float]) -> None:
        self.folder = folder
        self.spacing = spacing
        self.every = every

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process."""
        epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero or not (epoch == 1 or epoch % self.every == 0 or epoch == trainer.max_epochs):
            return
        method = cast("Method", pl_module)
        batch = self._fixed_sample(trainer, method)
        with torch.no_grad():
            arrays = method.pictures(batch, method.generator_for(VALIDATION_STREAM, PICTURE))
        title = f"{type(method).__name__}, epoch {epoch}, {', '.join(batch['case'])}"
        try:
            self.folder.mkdir(exist_ok=True)
            draw_picture(self.folder / f"epoch_{epoch:04d}.png", arrays, title=title, spacing=self.spacing)
        except OSError as error:
            log.warning("No picture of epoch %d: %s", epoch, error)

    @staticmethod
    def _fixed_sample(trainer: Trainer, method: Method) -> Any:
        batch = assemble(richest_sample(cast("Any", trainer).datamodule.val_crops, method.crops_per_sample))
        return {key: value.to(method.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def richest_sample(crops: CropDataset | Sequence[Sample], size: int) -> list[Sample]:
    """The one of the first samples with the most contrast, which is where there is something to see.

    Args:
        crops: of the validation, by number, the same in every epoch.
        size: crops of a sample.
    """
    read = [crops[number] for number in range(max(CANDIDATES, size))]
    samples = [read[first : first + size] for first in range(0, len(read) - size + 1, size)]
    return max(samples, key=lambda sample: contrast(sample[0]))


def contrast(sample: Sample) -> float:
    """Standard deviation of a crop's intensities, mean over channels without the mask; -inf where it is not finite."""
    voxels = sample.voxels[: -1 if sample.masked else None]
    # Between channels there is always some: air, too, has another intensity in each.
    found = float(voxels.flatten(1).std(1).mean())
    return found if isfinite(found) else -inf
