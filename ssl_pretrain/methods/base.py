"""What every pretraining method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, get_args, get_origin, get_type_hints

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.schedules import warmup_cosine
from ssl_pretrain.functional.seeding import derive_seed
from ssl_pretrain.networks.base import Backbone

TRAIN_STREAM, VALIDATION_STREAM = 1, 2
"""First element of the path from which the seeds of masks are derived."""


PUBLISHED_WARMUP = 20.0
"""Epochs; of runs of 1000."""


class Batch(TypedDict, total=False):
    """What a loader yields.

    Keys:
        image: (B, C, D, H, W) float32, normalised by nnU-Net.
        case: identifiers of the cases the crops come from.
        index: (B,) numbers of the crops.
        ignored: (B, 1, D, H, W) boolean, voxels to leave out of the loss; absent where all count.
    """

    image: Tensor
    case: list[str]
    index: Tensor
    ignored: Tensor


class Output(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: scalar to minimise.
        log: scalars worth showing.
    """

    loss: Tensor
    log: Mapping[str, Tensor | float]


@dataclass(frozen=True)
class RunLength:
    """How long a run is; methods with a schedule over the run need it.

    Attributes:
        epochs: epochs of the whole run.
        iterations: optimiser steps per epoch.
        batch_size: samples per step and device.
    """

    epochs: int = 1000
    iterations: int = 250
    batch_size: int = 2


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay.

    Attributes:
        lr: peak learning rate.
        betas: of AdamW.
        weight_decay: on weights of two or more dimensions; biases, norms and tokens are not decayed.
        warmup_epochs: epochs of linear warm-up; None for 20 (published), at most a tenth of the run.
        warmup_start_lr: learning rate at the first step.
        clip: norm to which the gradient is clipped.
        accumulate: batches whose gradients are averaged for one optimiser step.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-5
    warmup_epochs: float | None = None
    warmup_start_lr: float = 1e-6
    clip: float = 12.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}.")
        for name in ("weight_decay", "warmup_epochs", "warmup_start_lr"):
            if not (getattr(self, name) or 0) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")

        if self.accumulate != int(self.accumulate) or self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number of at least 1, got {self.accumulate}.")

    def warmup(self, epochs: int) -> float:
        """Epochs of warm-up of a run of so many epochs."""
        return min(PUBLISHED_WARMUP, epochs / 10) if self.warmup_epochs is None else self.warmup_epochs


def check_choices(config: OptimizerConfig) -> None:
    """Refuse a value that is none of its field's choices.

    Raises:
        ValueError: names the field, the choices and the value.
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        hint, value = hints[entry.name], getattr(config, entry.name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{entry.name} must be one of {', '.join(get_args(hint))}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class MethodSetup:
    """Everything a method is built from besides its own config.

    Attributes:
        backbone: the network.
        patch: voxels of the crops per axis.
        length: how long the run is.
        seed: seed of the run.
    """

    backbone: Backbone
    patch: Triple
    length: RunLength = field(default_factory=RunLength)
    seed: int = 0


class Method(LightningModule, ABC):
    """A pretext task around a Backbone.

    A subclass builds its heads in the constructor, and computes a loss in :meth:`forward`. It never reads files and
    never knows nnU-Net.
    """

    Config: ClassVar[type[OptimizerConfig]]
    citations: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: OptimizerConfig, setup: MethodSetup) -> None:
        super().__init__()
        self.config = config
        self.backbone = setup.backbone
        self.patch = setup.patch
        self.length = setup.length
        self.seed = setup.seed

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Loss of a batch; ``generator`` (on the batch's device) owns every random choice."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The module whose parameters the optimiser updates."""

    @abstractmethod
    def pictures(self, batch: Batch, generator: torch.Generator) -> Mapping[str, Any]:
        """Arrays for a picture of the first crop of a batch, as keyword arguments of ``report.draw_reconstruction``."""

    @abstractmethod
    def describe(self) -> str:
        """The pretext task in a few lines of text: mask grid, masked cells, widths."""

    def multiply_adds(self) -> dict[str, int]:
        """Multiply-adds of the forward pass of one batch by part of the method; empty where nobody counted."""
        return {}

    def generator_for(self, *path: int) -> torch.Generator:
        """A generator on the module's device whose seed is a pure function of the run's seed and ``path``."""
        generator = torch.Generator(self.device)
        generator.manual_seed(derive_seed(self.seed, *path))
        return generator

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One batch: the loss, and what to show of it, for Lightning."""
        accumulate = self.config.accumulate
        number = self.global_step * accumulate + batch_idx % accumulate
        output = self(batch, self.generator_for(TRAIN_STREAM, number, self.global_rank))
        return {"loss": output.loss, "log": output.log}

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a validation batch under a mask that is the same in every epoch."""
        output: Output = self(batch, self.generator_for(VALIDATION_STREAM, batch_idx, self.global_rank))
        return output.loss

    def update_teacher(self) -> None:
        """Called after every optimiser step."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's step, then the teacher's: a checkpoint taken after a batch holds both."""
        super().optimizer_step(*args, **kwargs)
        self.update_teacher()

    def configure_optimizers(self) -> Any:
        """AdamW with decay on weights of two or more dimensions only, and the warm-up and cosine schedule per step."""
        config = self.config
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        # The fused kernel is several times faster on the CPU. It can unscale gradients itself, so Lightning does
        # not clip them in mixed precision.
        mixed = self._trainer is not None and self.trainer.precision != "32-true"
        fused = True if self.device.type == "cpu" and not mixed else None
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        steps = self.length.epochs * self.length.iterations
        warmup = round(config.warmup(self.length.epochs) * self.length.iterations)
        start = min(config.warmup_start_lr / config.lr, 1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps, start))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
