"""Stopping a run in good order: non-finite losses and termination signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_pretrain.data.module import wait_patiently
from ssl_pretrain.training.checkpoints import LATEST, NonFiniteLossError, check_finite, continue_with, last_good


class PreemptedError(RuntimeError):
    """The process was asked to terminate; the run is saved and can be continued."""


@contextmanager
def ctrl_c_is_no_exit(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Meanwhile Ctrl-C raises ``KeyboardInterrupt``, with what is left of the run as its words.

    Lightning ends the interpreter instead, with status 1 and no word, and leaves the signal ignored.
    """
    earlier = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, earlier or signal.default_int_handler)
        raise KeyboardInterrupt(
            f"Stopped by Ctrl-C after step {trainer.global_step}. {last_good(folder)} {continue_with(folder)}"
        ) from None


class FiniteLoss(Callback):
    """Stops at a non-finite loss before anything is saved.

    Losses stay on their device and are looked at every few steps, at the end of an epoch and before a save: each look
    waits for the GPU.

    Args:
        folder: where the last good checkpoint is.
        every: batches between two looks.
    """

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.folder = folder
        self.every = every
        self._pending: list[tuple[Tensor, int, list[str]]] = []
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the steps before; remember which one this is."""
        if len(self._pending) >= self.every:
            self.check_now(trainer)
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember this batch's loss."""
        self._pending.append((outputs["loss"].detach(), self._step, list(batch["case"])))
        if batch_idx + 1 == trainer.num_training_batches:
            self.check_now(trainer)

    def check_now(self, trainer: Trainer) -> None:
        """Look at the last steps at once: before something is saved.

        Raises:
            NonFiniteLossError: on every process when it happened on one, so that none waits for the others.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.isfinite(torch.stack([loss for loss, _, _ in pending])).tolist()
        bad = not all(finite)
        if trainer.world_size > 1:
            bad = bool(trainer.strategy.reduce_boolean_decision(bad, all=False))
        if not bad:
            return
        loss, step, cases = pending[finite.index(False) if False in finite else -1]
        raise NonFiniteLossError(
            f"The loss is {loss.item()} at step {step}, on cases {', '.join(cases)}. {last_good(self.folder)} "
            "Look at these cases, lower -lr, or use -precision 32, then continue with --c."
        )


class StopSignal(Callback):
    """On SIGTERM: finish the step, save, stop; a step that has no data is not waited for.

    Args:
        folder: where to save.
        finite: asked before saving, so that a broken state never becomes the latest checkpoint.
    """

    def __init__(self, folder: Path, finite: FiniteLoss) -> None:
        self.folder = folder
        self.finite = finite
        self._received = False
        self._stepped = False
        self._earlier: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signal; Lightning's own handler would drop an epoch that is being validated."""
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGTERM, self._receive)
            cast("Any", trainer).datamodule.waiting = lambda seconds: self._while_waiting(trainer, pl_module, seconds)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop between two steps. The last step of an epoch is saved by the epoch's end instead."""
        self._stepped = True
        batch_idx = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint does not hold gradients
        if batch_idx < trainer.num_training_batches and self._anyone_received(trainer):
            self._save_and_stop(trainer, pl_module)

    def _while_waiting(self, trainer: Trainer, pl_module: LightningModule, seconds: float) -> None:
        """Stop a run that waits for a crop: between two steps it is saved as ever, else its last checkpoint stands.

        Of several processes the others do not wait for data but for this one: they cannot save together.
        """
        if not self._received:
            return wait_patiently(seconds)
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        # Before the first step of an epoch what there is to save is saved.
        between_steps = trainer.training and batches and batches % trainer.accumulate_grad_batches == 0
        if between_steps and self._stepped and trainer.world_size == 1:
            self._save_and_stop(trainer, pl_module)
        raise PreemptedError(
            f"Asked to terminate while waiting for data, after step {trainer.global_step}. {last_good(self.folder)} "
            f"{continue_with(self.folder)}"
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal that came during validation: the epoch before is saved by now."""
        if trainer.current_epoch and self._anyone_received(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signal back, before Lightning gives back its own."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back, before Lightning gives back its own."""
        self._give_back()

    def _give_back(self) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)
            self._earlier = None

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _anyone_received(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._received
        return bool(trainer.strategy.reduce_boolean_decision(self._received, all=False))

    def _save_and_stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finite.check_now(trainer)
        check_finite(pl_module, trainer.global_step, self.folder)
        trainer.save_checkpoint(self.folder / LATEST)
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        raise PreemptedError(
            f"Asked to terminate: stopped after step {trainer.global_step}, saved in {self.folder / LATEST}. Continue "
            "with --c."
        )
