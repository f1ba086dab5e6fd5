"""Has a run learned to look at the image? Its answers against the mean of its answers, and the spread of embeddings.

Every pretext task begins on a plateau, where a network answers with the same number whatever it sees: the mean
intensity, or the frequencies of the classes. Where that is, and for how long, depends on method, data and optimiser; a
loss alone does not tell it. A network on the plateau loses nothing when its answers are replaced by their mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ssl_pretrain.functional.contrast import effective_rank, uniformity
from ssl_pretrain.methods.base import Method
from ssl_pretrain.training.history import History, LossMean, over_devices

log = logging.getLogger("ssl_pretrain")

PLATEAU = 0.95
"""Share of the loss of the mean answer; above it an image makes hardly any difference."""

JUDGED_FROM = 10
"""Epochs; of shorter runs nobody expects more."""


ALIKE = -0.1
"""Uniformity of embeddings; above it their cosines are about 0.97 and more, whatever the crops show."""

FEWEST_DIRECTIONS = 2.0
"""Effective rank of embeddings; below it they lie on a line."""


class Collapse(Callback):
    """Effective rank and uniformity of the embeddings of all validation crops, for methods that compare embeddings.

    Args:
        history: gets both numbers for the row of the epoch.

    Attributes:
        rank, uniformity: of the last epoch; None before the first one, and for a method without embeddings.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.rank: float | None = None
        self.uniformity: float | None = None
        self._embedded: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the embeddings of the batch."""
        with trainer.precision_plugin.forward_context():
            embedded = cast("Method", pl_module).embed(batch["image"])
        if embedded is not None:
            self._embedded.append(embedded.float())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure them, over all processes."""
        if not self._embedded:
            return
        everyone, _ = cast("Method", pl_module).gather(torch.cat(self._embedded))
        self.rank, self.uniformity = float(effective_rank(everyone)), float(uniformity(everyone))
        self.history.extra |= {"effective_rank": self.rank, "uniformity": self.uniformity}
        self._embedded = []

    def has_collapsed(self) -> bool:
        """Whether the embeddings say hardly anything about the crops."""
        if self.rank is None or self.uniformity is None:
            return False
        return self.rank < FEWEST_DIRECTIONS or self.uniformity > ALIKE


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
        method = cast("Method", pl_module)
        if not _is_last(trainer) or method.judged is None:
            return
        self._real.add(outputs)
        with trainer.precision_plugin.forward_context(), mean_answers(method.judged):
            self._blind.add(method.validation_step(batch, batch_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average over processes."""
        if _is_last(trainer) and self._real.count:
            self.losses = (over_devices(trainer, self._real.value()), over_devices(trainer, self._blind.value()))

    def is_flat(self) -> bool:
        """Whether the run has ended on the plateau."""
        return self.losses is not None and self.losses[0] > PLATEAU * self.losses[1]


@contextmanager
def mean_answers(network: nn.Module) -> Iterator[None]:
    """Meanwhile the network answers every input of a batch with the mean of its answers to that batch."""
    handle = network.register_forward_hook(
        lambda _, __, answer: tree_map(lambda part: mean_answer(part) if isinstance(part, Tensor) else part, answer)
    )
    try:
        yield
    finally:
        handle.remove()


def mean_answer(answer: Tensor) -> Tensor:
    """A batch's answers, all replaced by their mean.

    Args:
        answer: (B, C, D, H, W), with a mean for each channel; or (B, …, V), cells or embeddings, with one for each of
            their V numbers.

    Returns:
        Of the same shape.
    """
    kept = 1 if answer.dim() == 5 else answer.dim() - 1
    return answer.mean(dim=[axis for axis in range(answer.dim()) if axis != kept], keepdim=True).expand_as(answer)


def _is_last(trainer: Trainer) -> bool:
    return trainer.current_epoch + 1 == trainer.max_epochs
