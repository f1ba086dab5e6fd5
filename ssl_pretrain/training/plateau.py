"""Has a run learned to look at the image? Its answers against the mean of its answers.

Every pretext task begins on a plateau, where a network answers with the same number whatever it sees: the mean
intensity, or the frequencies of the classes. Where that is, and for how long, depends on method, data and optimiser; a
loss alone does not tell it. A network on the plateau loses nothing when its answers are replaced by their mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ssl_pretrain.methods.base import Method
from ssl_pretrain.training.history import LossMean, over_devices

log = logging.getLogger("ssl_pretrain")

PLATEAU = 0.95
"""Share of the loss of the mean answer; above it an image makes hardly any difference."""

JUDGED_FROM = 10
"""Epochs; of shorter runs nobody expects more."""


class Plateau(Callback):
    """Validates the last epoch a second time, with every answer replaced by the mean answer of its batch.

    Attributes:
        losses: validation loss of the answers and of their means; None before the last epoch.
    """

    def __init__(self) -> None:
        self.losses: tuple[float, float] | None = None
        self._real, self._blind = LossMean(), LossMean()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the means anew."""
        self._real, self._blind = LossMean(), LossMean()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's two losses."""
        if not _is_last(trainer):
            return
        method = cast("Method", pl_module)
        self._real.add(outputs)
        with trainer.precision_plugin.forward_context(), mean_answers(method.trained):
            self._blind.add(method.validation_step(batch, batch_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average over processes."""
        if _is_last(trainer):
            self.losses = (over_devices(trainer, self._real.value()), over_devices(trainer, self._blind.value()))

    def is_flat(self) -> bool:
        """Whether the run has ended on the plateau."""
        return self.losses is not None and self.losses[0] > PLATEAU * self.losses[1]


@contextmanager
def mean_answers(network: nn.Module) -> Iterator[None]:
    """Meanwhile the network answers every input of a batch with the mean of its answers to that batch."""
    handle = network.register_forward_hook(lambda _, __, answer: mean_answer(answer))
    try:
        yield
    finally:
        handle.remove()


def mean_answer(answer: Tensor) -> Tensor:
    """A batch's answers, all replaced by their mean.

    Args:
        answer: (B, C, D, H, W), with a mean for each channel, or cells (B, L, V), with one for each voxel of a cell.

    Returns:
        Of the same shape.
    """
    kept = 1 if answer.dim() == 5 else answer.dim() - 1
    return answer.mean(dim=[axis for axis in range(answer.dim()) if axis != kept], keepdim=True).expand_as(answer)


def _is_last(trainer: Trainer) -> bool:
    return trainer.current_epoch + 1 == trainer.max_epochs
