"""Volume fusion: two crops mixed box by box, and the mixture as the label (Wang et al. 2023, arXiv 2306.16925)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_uniform, draw_windows, whole_voxels
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import Window

MOST_CLASSES = 1000
"""More than boxes of a sample; every class is a channel of the head, at full resolution."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How two crops are fused. Defaults: as published, sides as shares of a patch of 160 voxels.

    Attributes:
        classes: K; a box of class k shows the foreground with weight k / (K − 1).
        boxes_min: smallest number of boxes.
        boxes_max: largest number of boxes.
        side_min: shortest side of a box, as a share of the patch (rounded down, at least one voxel).
        side_max: longest side of a box, as a share of the patch.
    """

    classes: int = 5
    boxes_min: int = 10
    boxes_max: int = 39
    side_min: float = 8 / 160
    side_max: float = 0.625

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(
                f"classes must be at least 2, got {self.classes}: with a single one there is nothing to tell apart."
            )
        if self.classes > MOST_CLASSES:
            raise ValueError(f"classes must be at most {MOST_CLASSES}, got {self.classes}.")
        if not 1 <= self.boxes_min <= self.boxes_max:
            raise ValueError(f"1 <= boxes_min <= boxes_max must hold, got {self.boxes_min} and {self.boxes_max}.")
        if not 0.0 < self.side_min <= self.side_max <= 1.0:
            raise ValueError(
                "0 < side_min <= side_max <= 1 must hold (shares of the patch: a box must fit into it), "
                f"got {self.side_min} and {self.side_max}."
            )


class Fusion(NamedTuple):
    """Parameters of :func:`apply_fusion`, on the host.

    Attributes:
        windows: (B) lists of boxes, from the first to the last: later ones cover earlier ones.
        labels: (B) lists of the class of each box.
        classes: K.
    """

    windows: tuple[tuple[Window, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    classes: int


class Fused(NamedTuple):
    """What a network sees and what it is to say.

    Attributes:
        images: (B, C, D, H, W).
        labels: (B, D, H, W) int64, class of each voxel.
    """

    images: Tensor
    labels: Tensor


def draw_fusion(batch: int, patch: Triple, generator: np.random.Generator, config: FusionConfig) -> Fusion:
    """Draw number, sides, places and classes of the boxes of each sample, all uniform."""
    most = config.boxes_max
    numbers = draw_uniform(batch, generator=generator) * (most - config.boxes_min + 1)
    labels = (draw_uniform(batch, most, generator=generator) * config.classes).long().tolist()
    limits = whole_voxels(patch, config.side_min), whole_voxels(patch, config.side_max)
    windows = draw_windows(batch, most, patch, *limits, generator)
    counts = [config.boxes_min + number for number in numbers.long().tolist()]
    return Fusion(
        tuple(tuple(boxes[:count]) for boxes, count in zip(windows, counts, strict=True)),
        tuple(tuple(classes[:count]) for classes, count in zip(labels, counts, strict=True)),
        config.classes,
    )


def apply_fusion(foreground: Tensor, background: Tensor, fusion: Fusion) -> Fused:
    """Mix ``α · foreground + (1 − α) · background`` with α = label / (K − 1), label 0 outside of all boxes.

    Where α is 0 or 1 the voxels are exactly those of the one image.

    Args:
        foreground: (B, C, D, H, W), float32; not changed.
        background: of the same shape; not changed.
        fusion: parameters of as many samples.

    Raises:
        ValueError: the two images differ in shape.
    """
    if foreground.shape != background.shape:
        raise ValueError(
            f"Foreground {tuple(foreground.shape)} and background {tuple(background.shape)} must have the same shape: "
            "fuse crops of one patch size and as many channels."
        )
    batch, _, *size = foreground.shape
    labels = torch.zeros(batch, 1, *size, dtype=torch.int16, device=foreground.device)
    for volume, windows, classes in zip(labels[:, 0], fusion.windows, fusion.labels, strict=True):
        for window, label in zip(windows, classes, strict=True):
            volume[window] = label
    alpha = labels.to(foreground.dtype).div_(fusion.classes - 1)
    return Fused(torch.lerp(background, foreground, alpha), labels[:, 0].long())


def fuse(foreground: Tensor, background: Tensor, generator: np.random.Generator, config: FusionConfig) -> Fused:
    """Draw a fusion of these images and apply it."""
    d, h, w = foreground.shape[2:]
    return apply_fusion(foreground, background, draw_fusion(foreground.shape[0], (d, h, w), generator, config))
