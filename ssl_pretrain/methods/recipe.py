"""Optimiser, learning rate and schedule of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssl_pretrain.functional.schedules import warmup_cosine, warmup_polynomial
from ssl_pretrain.networks.base import Backbone, Family
from ssl_pretrain.networks.tokens import TokenBackbone

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "poly"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is optimised, with nothing left open.

    Attributes:
        optimizer: AdamW, or SGD with Nesterov momentum.
        schedule: of the learning rate after the warm-up, down to 0 per step: a cosine, or (1 - progress)^0.9.
        lr: peak learning rate.
        betas: of AdamW.
        momentum: of SGD.
        weight_decay: on weights of two or more dimensions; biases, norms and mask tokens are not decayed.
        warmup_epochs: epochs of linear warm-up.
        warmup_start_lr: learning rate at the first step of the warm-up.
        clip: norm to which the gradient is clipped.
    """

    optimizer: OptimizerName
    schedule: ScheduleName
    lr: float
    betas: tuple[float, float]
    momentum: float
    weight_decay: float
    warmup_epochs: float
    warmup_start_lr: float
    clip: float


DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "convolutional": {"optimizer": "sgd", "schedule": "poly", "lr": 1e-2, "weight_decay": 3e-5, "clip": 12.0},
    "transformer": {"optimizer": "adamw", "schedule": "poly", "lr": 3e-4, "weight_decay": 5e-2, "clip": 1.0},
}
"""Of OpenMind (Wald et al. 2024, arXiv 2412.17041) by kind of network; used where the config leaves something open."""

BETAS = {"convolutional": (0.9, 0.999), "transformer": (0.9, 0.98)}
WARMUP = {"convolutional": 0.0, "transformer": 50.0}
"""Epochs, of runs of 1000."""

LONGEST_WARMUP = 0.05
"""Of a run, where the published epochs are more than that: the published share."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and schedule; None and ``auto`` take the published choice for the kind of network.

    Attributes:
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum).
        schedule: ``cosine`` or ``poly``, per step.
        lr: peak learning rate.
        betas: of AdamW.
        momentum: of SGD.
        weight_decay: on weights of two or more dimensions; biases, norms and mask tokens are not decayed.
        warmup_epochs: epochs of linear warm-up.
        warmup_start_lr: learning rate at the first step of the warm-up.
        clip: norm to which the gradient is clipped.
        accumulate: batches whose gradients are averaged for one optimiser step.
    """

    defaults: ClassVar[Mapping[Family, Mapping[str, Any]]] = DEFAULTS
    """Published choices of the method by kind of network."""

    published: ClassVar[Mapping[str, Any]] = {}
    """Published values of settings of method and crops, where our defaults differ (``-recipe published``)."""

    older: ClassVar[Mapping[str, Any]] = {}
    """Values that settings had in runs from before they could be set, where the defaults are others."""

    optimizer: Literal["auto", "adamw", "sgd"] = "auto"
    schedule: Literal["auto", "cosine", "poly"] = "auto"
    lr: float | None = None
    betas: tuple[float, float] | None = None
    momentum: float = 0.99
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    warmup_start_lr: float = 1e-6
    clip: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} must be greater than 0 and finite, got {value}.")
        for name in ("weight_decay", "warmup_epochs", "warmup_start_lr"):
            if not (getattr(self, name) or 0) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie between 0 and 1 (excluded), got {self.betas}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1 (excluded), got {self.momentum}.")
        if self.accumulate != int(self.accumulate) or self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number of at least 1, got {self.accumulate}.")

    def recipe(self, family: Family, epochs: int) -> Recipe:
        """What is left open filled in, for a kind of network and a run of so many epochs.

        Raises:
            ValueError: the warm-up is longer than the run.
        """
        warmup = self.warmup(family, epochs)
        if warmup > epochs:
            raise ValueError(f"warmup_epochs is {warmup:g}, but the run has {epochs} epochs (-epochs).")
        published = self.defaults[family]
        chosen = {name: getattr(self, name) for name in published}
        given = {name: value for name, value in chosen.items() if value not in (None, "auto")}
        # A learning rate belongs to its optimiser: SGD's would be thirty times too high for AdamW.
        rates = {defaults["optimizer"]: defaults["lr"] for defaults in (*DEFAULTS.values(), *self.defaults.values())}
        given.setdefault("lr", rates[given.get("optimizer", published["optimizer"])])
        return Recipe(
            **{**published, **given},
            betas=self.betas or BETAS[family],
            momentum=self.momentum,
            warmup_epochs=warmup,
            warmup_start_lr=self.warmup_start_lr,
        )

    def warmup(self, family: Family, epochs: int) -> float:
        """Epochs of warm-up of a run of so many epochs."""
        return min(WARMUP[family], epochs * LONGEST_WARMUP) if self.warmup_epochs is None else self.warmup_epochs


def family_of(backbone: Backbone) -> Family:
    """The kind of network that decides about the defaults."""
    return "transformer" if isinstance(backbone, TokenBackbone) else "convolutional"


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


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
    """The optimiser, with decay on weights of two or more dimensions only.

    Args:
        recipe: of the run.
        parameters: those to train.
        fused: AdamW's kernel that does the whole step at once.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True if fused else None)


def build_schedule(recipe: Recipe, optimizer: Optimizer, epochs: int, iterations: int) -> LambdaLR:
    """The learning rate of every step of a run of ``epochs`` times ``iterations`` steps."""
    steps, warmup = epochs * iterations, round(recipe.warmup_epochs * iterations)
    start = min(recipe.warmup_start_lr / recipe.lr, 1.0)
    factor = warmup_cosine if recipe.schedule == "cosine" else warmup_polynomial
    return LambdaLR(optimizer, lambda step: factor(step, warmup, steps, start))
