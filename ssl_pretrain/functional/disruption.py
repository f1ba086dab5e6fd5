"""What Disruptive Autoencoders do to a crop before a network restores it (Valanarasu et al. 2023, arXiv 2307.16896)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import hand_over

Disruption = Literal["all", "denoise", "superres", "local"]
Resampling = Literal["nearest", "trilinear"]

PUBLISHED_NAMES: Mapping[str, Disruption] = {"LD": "local"}
"""Values of ``choice`` that are called otherwise here."""

FEWEST_VOXELS = 2
"""Per axis, that a crop of low resolution keeps."""


@dataclass(frozen=True, kw_only=True)
class DisruptionConfig:
    """What is done to crops.

    Attributes:
        disruption: what is to be undone: ``denoise``, ``superres``, ``local``, or ``all``, one after the other.
        choice: the published name of ``disruption``, of which ``LD`` is ``local``; None where that says it.
        variance: of the noise, in units of the normalised image, squared.
        interpolate: voxels per axis that become one; fewer along an axis that would keep less than two.
        resampling: to the low resolution and back.
        local: what ``local`` loses: channels of the embedding, drawn for each sample (``sample``) or once for the batch
            (``published``), or ``cells`` of the image.
        mask_ratio: share of the channels or cells that is lost.
        mask_cell: voxels per axis of a cell; None for about 16, as patch and strides allow.
    """

    disruption: Disruption = "all"
    choice: Literal["all", "denoise", "superres", "LD"] | None = None
    variance: float = 0.1
    interpolate: int = 4
    resampling: Resampling = "nearest"
    local: Literal["sample", "published", "cells"] = "sample"
    mask_ratio: float = 0.6
    mask_cell: Triple | None = None

    def __post_init__(self) -> None:
        if self.choice is not None:
            object.__setattr__(self, "disruption", PUBLISHED_NAMES.get(self.choice, self.choice))
            object.__setattr__(self, "choice", None)
        if not 0 <= self.variance < float("inf"):
            raise ValueError(f"variance must not be negative, and finite, got {self.variance}.")
        if self.interpolate < 1:
            raise ValueError(f"interpolate must be at least 1, got {self.interpolate}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {self.mask_ratio}.")

    def has(self, part: Disruption) -> bool:
        """Whether crops are disrupted so."""
        return self.disruption in ("all", part)


def add_noise(crops: Tensor, variance: float, seeds: Sequence[int]) -> Tensor:
    """Crops (B, C, D, H, W) with Gaussian noise of that variance, each crop's from its own seed."""
    noise = [
        torch.randn(
            crop.shape,
            generator=torch.Generator(crop.device).manual_seed(seed),
            device=crop.device,
            dtype=crop.dtype,
        )
        for crop, seed in zip(crops, seeds, strict=True)
    ]
    return crops + sqrt(variance) * torch.stack(noise)


def reductions(size: Triple, factor: int) -> Triple:
    """By how much each axis is reduced: by ``factor``, or by as much as leaves two voxels of a shorter one."""
    d, h, w = (max(1, min(factor, side // FEWEST_VOXELS)) for side in size)
    return d, h, w


def reduced(crops: Tensor, factors: Triple, resampling: Resampling) -> Tensor:
    """Crops (B, C, D, H, W) brought to a lower resolution and back to their size.

    Args:
        crops: of at least as many voxels per axis as the factor.
        factors: per axis, by which the number of voxels is divided, rounded down.
        resampling: in both directions; neither filters before it leaves voxels out, as published.
    """
    size = cast("Triple", tuple(crops.shape[2:]))
    smaller = tuple(side // factor for side, factor in zip(size, factors, strict=True))
    return F.interpolate(F.interpolate(crops, smaller, mode=resampling), size, mode=resampling)


def draw_kept(generators: Sequence[np.random.Generator], channels: int, lost: int, device: torch.device) -> Tensor:
    """Channels that are kept while ``lost`` others are not, drawn by each generator: boolean (B, channels)."""
    kept = np.ones((len(generators), channels), dtype=bool)
    for row, generator in zip(kept, generators, strict=True):
        row[generator.permutation(channels)[:lost]] = False
    return hand_over(torch.from_numpy(kept), device)
