"""What one sees of a run while it goes on: progress bar and pictures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.nn.functional import normalize

from ssl_pretrain.data.batches import LoadedCrop, Sample, assemble
from ssl_pretrain.data.crops import CropDataset
from ssl_pretrain.methods.base import VALIDATION_STREAM, Method
from ssl_pretrain.report.pictures import draw_neighbours, draw_picture
from ssl_pretrain.training.history import History, format_seconds

log = logging.getLogger("ssl_pretrain")

PICTURE = 10**6
"""Path element that keeps the mask of the picture apart from those of validation batches."""

WIDEST = 150
"""Columns of a progress bar."""

GALLERY, QUERIES, NEIGHBOURS = 64, 5, 6
"""Validation crops whose embeddings are compared, and how many of them are drawn with how many neighbours each."""

CANDIDATES = 8
"""Validation samples among which that of the picture is chosen: many crops of a scan are all air."""


class NarrowBar(Tqdm):
    """A bar of tqdm that is no wider than :data:`WIDEST`, also where the terminal is.

    A line is wiped out with as many blanks as it has columns, and what runs commands often claims thousands of them.
    """

    @staticmethod
    def format_meter(*args: Any, ncols: int | None = None, **kwargs: Any) -> Any:
        """The text of the bar."""
        return Tqdm.format_meter(*args, ncols=ncols and min(ncols, WIDEST), **kwargs)


class Bar(TQDMProgressBar):
    """Lightning's bar with images per second and the time the whole run has left, once they are known."""

    def __init__(self, history: History, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.history = history

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What Lightning shows, without the version number, plus pace and time left."""
        metrics: dict[str, int | str | float | dict[str, float]] = {}
        # First: what a narrow terminal has no room for is cut off at the end.
        if (left := self.history.seconds_left(trainer)) is not None:
            metrics["left"] = format_seconds(left)
        metrics |= super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if pace := self.history.seconds_per_batch():
            metrics["images/s"] = f"{self.history.batch_size / pace:.2f}"
        return metrics

    def init_train_tqdm(self) -> NarrowBar:
        """Lightning's bar of training, of a readable width."""
        return self._narrow(desc=self.train_description, leave=True, smoothing=0)

    def init_validation_tqdm(self) -> NarrowBar:
        """Lightning's bar of validation, below that of training, of a readable width."""
        return self._narrow(desc=self.validation_description, leave=False, position=1)

    def _narrow(self, **options: Any) -> NarrowBar:
        return NarrowBar(
            disable=self.is_disabled, dynamic_ncols=True, file=sys.stdout, bar_format=self.BAR_FORMAT, **options
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bars as they stand: open ones are wiped out with blanks before every line that follows."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None and not bar.disable:
                bar.leave = True
                bar.close()


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
        method, samples = cast("Method", pl_module), cast("Any", trainer).datamodule.val_crops
        batch = _on(method.device, assemble([richest_sample(samples)]))
        with torch.no_grad():
            seeded = method.seeded(batch, VALIDATION_STREAM, PICTURE)
            columns = method.panels(seeded, method.generator_for(VALIDATION_STREAM, PICTURE))
            found = neighbours(method, samples) if epoch == trainer.max_epochs else None
        title = f"{type(method).__name__}, epoch {epoch}"
        try:
            self.folder.mkdir(exist_ok=True)
            cases = ", ".join(dict.fromkeys(batch["case"]))
            target = self.folder / f"epoch_{epoch:04d}.png"
            draw_picture(target, columns, title=f"{title}, {cases}", spacing=self.spacing)
            if found is not None:
                draw_neighbours(self.folder / "neighbours.png", found, title=title, spacing=self.spacing)
        except OSError as error:
            log.warning("No picture of epoch %d: %s", epoch, error)


def _on(device: torch.device, batch: dict[str, Any]) -> Any:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def neighbours(method: Method, samples: CropDataset | Sequence[Sample]) -> list[list[tuple[str, Tensor]]] | None:
    """Crops with their nearest neighbours by embedding, captioned; None of a method without embeddings.

    Args:
        method: on its device.
        samples: of the validation; the first crop of each of :data:`GALLERY` takes part.

    Returns:
        A row for each query: itself, then crops of other samples by falling cosine.
    """
    crops: list[LoadedCrop] = []
    parts = []
    for first in range(0, GALLERY, method.length.batch_size):
        drawn = [samples[number][:1] for number in range(first, min(GALLERY, first + method.length.batch_size))]
        embedded = method.embed(_on(method.device, assemble(drawn))["image"])
        if embedded is None:
            return None
        crops += [crop for (crop,) in drawn]
        parts.append(normalize(embedded.float(), dim=1).cpu())
    cosines = torch.cat(parts) @ torch.cat(parts).T
    order = cosines.argsort(dim=1, descending=True)
    queries = sorted(range(GALLERY), key=lambda number: contrast(crops[number]))[-QUERIES:]

    def captioned(query: int, other: int) -> tuple[str, Tensor]:
        crop = crops[other]
        name = crop.case if query == other else f"{crop.case}, {cosines[query, other]:.2f}"
        return name, crop.voxels[: -1 if crop.masked else None]

    nearest = {query: [n for n in order[query].tolist() if n != query][:NEIGHBOURS] for query in queries}
    return [[captioned(query, other) for other in (query, *others)] for query, others in nearest.items()]


def richest_sample(samples: CropDataset | Sequence[Sample]) -> Sample:
    """The one of the first samples with the most contrast, which is where there is something to see.

    Args:
        samples: of the validation, by number, the same in every epoch.
    """
    return max((samples[number] for number in range(CANDIDATES)), key=lambda sample: contrast(sample[0]))


def contrast(crop: LoadedCrop) -> float:
    """Standard deviation of a crop's intensities, mean over channels without the mask; -inf where it is not finite."""
    voxels = crop.voxels[: -1 if crop.masked else None]
    # Between channels there is always some: air, too, has another intensity in each.
    found = float(voxels.flatten(1).std(1).mean())
    return found if isfinite(found) else -inf
