"""What our nnU-Net trainers share: the hook for pretrained weights, and the fine-tuning schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssl_pretrain.transfer.hook import install_hook


def warmup_poly(epoch: int, peak: float, warmup: int, total: int, exponent: float = 0.9) -> float:
    """Return the learning rate of one epoch: a linear warm-up to ``peak``, then nnU-Net's polynomial decay to 0.

    Args:
        epoch: counted from 0.
        peak: the highest learning rate, reached in the last epoch of the warm-up.
        warmup: epochs that the warm-up lasts; 0 for none.
        total: epochs of the whole run.
        exponent: of the decay ``(1 - progress) ** exponent``.
    """
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    remaining = (total - epoch) / max(1, total - warmup)
    return float(peak * max(0.0, remaining) ** exponent)


class WarmupPolyLR(LRScheduler):
    """:func:`warmup_poly` as a scheduler that nnU-Net steps at the beginning of every epoch.

    The rate depends on the epoch alone, so a resumed run needs nothing but its epoch: ``step(epoch)`` as nnU-Net calls
    it sets that epoch's rate, ``step()`` goes on to the next one.

    Args:
        optimizer: all of its groups get the same rate.
        peak: the highest learning rate.
        total: epochs of the whole run.
        warmup: epochs of warm-up.
        exponent: of the decay.

    Raises:
        ValueError: no epochs, or a negative warm-up.
    """

    def __init__(self, optimizer: Optimizer, peak: float, total: int, warmup: int = 50, exponent: float = 0.9) -> None:
        if total < 1 or warmup < 0:
            raise ValueError(f"A schedule needs total >= 1 and warmup >= 0 epochs, but got {total=} and {warmup=}.")
        self.peak, self.total, self.warmup, self.exponent = peak, total, warmup, exponent
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the rate of the current epoch, once per parameter group."""
        rate = warmup_poly(self.last_epoch, self.peak, self.warmup, self.total, self.exponent)
        return [rate for _ in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of ``epoch``, or of the next one."""
        # PyTorch's own step() warns about a given epoch and about being called before the optimiser; nnU-Net does both.
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PretrainedWeightsMixin:
    """Lets ``-pretrained_weights`` of an nnU-Net trainer go through our hook; put it before ``nnUNetTrainer``.

    A subclass that wants a loader of its own says ``load_pretrained_weights = staticmethod(function)`` with
    ``function(network, fname, verbose=False)``.
    """

    load_pretrained_weights: ClassVar[Callable[..., Any] | None] = None

    def initialize(self) -> None:
        """Build network and optimiser as nnU-Net does; from now on the process loads weights as this trainer says."""
        # nnU-Net loads pretrained weights right after it has initialised a trainer: this is the last moment at which it
        # is known whose loader has to run.
        install_hook(type(self).load_pretrained_weights)
        super().initialize()  # type: ignore[misc]
