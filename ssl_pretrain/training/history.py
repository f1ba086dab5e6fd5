"""What a run did, epoch by epoch: metrics.csv, the log file, TensorBoard and progress.png."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_pretrain.files import write_atomic
from ssl_pretrain.report.progress import COLUMNS, draw_progress

log = logging.getLogger("ssl_pretrain")


class History(Callback):
    """Averages losses over epochs and writes one row per epoch.

    The sums are part of the run's checkpoint, so a run continued within an epoch reports what the uninterrupted one
    would have.

    Args:
        folder: where ``metrics.csv`` and ``progress.png`` go.
        batch_size: samples per step over all devices.
        show_every: steps between two looks at the loss in the progress bar; each waits for the GPU.

    Attributes:
        rows: one per finished epoch.
        extra: more numbers for the row of the running epoch, from whoever measures them.
    """

    def __init__(self, folder: Path, batch_size: int, show_every: int = 1) -> None:
        self.folder = folder
        self.show_every = show_every
        self._walls: list[float] = []
        self._wall_started = time.perf_counter()
        self._batch_ends: tuple[float, float, int] | None = None
        self.batch_size = batch_size
        self.rows: list[dict[str, float]] = []
        self.extra: dict[str, float] = {}
        self._running: Trainer | None = None
        self._train, self._validation = LossMean(), LossMean()
        self._log: dict[str, float] = {}
        self._means: dict[str, LossMean] = {}
        self._seconds = 0.0
        self._started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember whose processes a checkpoint is written for."""
        self._running = trainer

    def state_dict(self) -> dict[str, Any]:
        """Rows so far and the sums of the running epoch."""
        total, count = self._train.state()
        if self._running is not None:
            # One process writes for all; every process goes on from the mean of their sums.
            total = over_devices(self._running, total)
        means = {name: mean.state() for name, mean in self._means.items()}
        if self._running is not None:
            means = {name: (over_devices(self._running, part), n) for name, (part, n) in means.items()}
        train = {"train": (total, count), "means": means}
        return {"rows": self.rows, **train, "log": dict(self._log), "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.rows = list(state_dict["rows"])
        self._train = LossMean(*state_dict["train"])
        self._log = dict(state_dict["log"])
        self._means = {name: LossMean(*state) for name, state in state_dict.get("means", {}).items()}
        self._seconds = float(state_dict["seconds"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock with the first step that this process takes of an epoch."""
        if not self._started:
            self._started, self._batch_ends = time.perf_counter(), None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the step's loss and show it in the progress bar."""
        now = time.perf_counter()
        # From the end of the first batch on: before it readers start and kernels are chosen.
        first, _, batches = self._batch_ends or (now, now, -1)
        self._batch_ends = first, now, batches + 1
        # Lightning has divided it for the mean over accumulated batches.
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._train.add(loss)
        self._log = {}
        for name, value in outputs["log"].items():
            if isinstance(value, Tensor):
                self._means.setdefault(name, LossMean()).add(value)
            else:
                self._log[name] = value
        if batch_idx % self.show_every == 0:
            pl_module.log("loss", loss, prog_bar=True, logger=True, rank_zero_only=True)
            if "masked_fraction" in self._log:
                masked = self._log["masked_fraction"]
                pl_module.log("masked", masked, prog_bar=True, logger=False, rank_zero_only=True)
        if batch_idx + 1 == trainer.num_training_batches:
            self._seconds, self._started = self._elapsed(), 0.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the mean anew."""
        self._validation = LossMean()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Add the batch's loss."""
        self._validation.add(cast("Tensor", outputs))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch: one row."""
        train, validation = (over_devices(trainer, mean.value()) for mean in (self._train, self._validation))
        seconds = max(self._seconds, 1e-9)
        images = self._train.count * self.batch_size
        row = {
            "epoch": float(trainer.current_epoch),
            "train_loss": train,
            "val_loss": validation,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "images_per_second": images / seconds,
            "epoch_seconds": seconds,
            **self._log,
            **{name: over_devices(trainer, mean.value()) for name, mean in self._means.items()},
            **self.extra,
        }
        self.rows.append(row)
        self.extra, self._means = {}, {}
        self._train, self._seconds = LossMean(), 0.0
        now = time.perf_counter()
        self._walls, self._wall_started = [*self._walls, now - self._wall_started], now
        if trainer.is_global_zero:
            self._report(trainer, row)

    def _elapsed(self) -> float:
        return self._seconds + (time.perf_counter() - self._started if self._started else 0.0)

    def _report(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        self.write_csv()
        try:
            draw_progress(self.folder / "metrics.csv", self.folder / "progress.png")
        except OSError as error:
            # A viewer may hold the picture open (Windows); no reason to end a run.
            log.warning("progress.png was not redrawn: %s", error)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=trainer.global_step)
        log.info(
            "epoch %d of %d: train loss %.5f, validation loss %.5f, lr %.3g, %.2f images/s, %.1f s, %s left",
            int(row["epoch"]) + 1,
            trainer.max_epochs or 0,
            row["train_loss"],
            row["val_loss"],
            row["lr"],
            row["images_per_second"],
            row["epoch_seconds"],
            format_seconds(self.seconds_left(trainer) or 0.0),
        )

    def seconds_per_batch(self) -> float | None:
        """Pace of this process in the running epoch; None before its second batch."""
        if self._batch_ends is None or not self._batch_ends[2]:
            return None
        first, last, batches = self._batch_ends
        return (last - first) / batches

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Time that the rest of the run will take at this process's pace; None while that is unknown.

        In its first epoch the pace is that of the batches, without validation, later that of whole epochs.
        """
        epochs = trainer.max_epochs or 0
        if self._walls:
            whole = sum(self._walls) / len(self._walls) * (epochs - len(self.rows))
            return max(0.0, whole - (time.perf_counter() - self._wall_started))
        pace = self.seconds_per_batch()
        if pace is None:
            return None
        done = trainer.global_step * trainer.accumulate_grad_batches
        return (epochs * trainer.num_training_batches - done) * pace

    def write_csv(self) -> None:
        """All rows, written beside and renamed."""
        extra = [name for row in self.rows[-1:] for name in row if name not in COLUMNS]
        text = StringIO()
        writer = csv.DictWriter(text, [*COLUMNS, *extra], restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "epoch": int(row["epoch"])} for row in self.rows)
        write_atomic(self.folder / "metrics.csv", "w", lambda handle: handle.write(text.getvalue()))


class LossMean:
    """Running mean of a loss that stays on its device until it is asked for."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total: Tensor | float = total
        self.count = count

    def add(self, loss: Tensor) -> None:
        """Add one step's loss."""
        # float32 sums of thousands of steps drift; MPS has no float64.
        precise = loss.detach() if loss.device.type == "mps" else loss.detach().double()
        self.total = self.total + precise
        self.count += 1

    def value(self) -> float:
        """The mean; NaN before the first step."""
        return float(self.total) / self.count if self.count else float("nan")

    def state(self) -> tuple[float, int]:
        """Arguments that make an equal one."""
        return float(self.total), self.count


def format_seconds(seconds: float) -> str:
    """``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def over_devices(trainer: Trainer, value: float) -> float:
    """Mean of a number over all processes."""
    if trainer.world_size == 1:
        return value
    reduced = trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="mean")
    return float(cast("Tensor", reduced))
