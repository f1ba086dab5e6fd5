"""Cross-entropy and soft Dice, what nnU-Net trains segmentation with and VolumeFusion pretrains with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice coefficient, so that a class nobody predicts or has counts as met."""


class SegmentationLoss(NamedTuple):
    """The two parts of the loss, scalars of at least 0; VolumeFusion adds them up.

    Attributes:
        cross_entropy: mean over the voxels of the batch that count.
        dice: 1 − soft Dice coefficient, mean over samples and classes.
    """

    cross_entropy: Tensor
    dice: Tensor


def segmentation_loss(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> SegmentationLoss:
    """Cross-entropy and soft Dice loss of K classes, the background being one of them.

    The Dice coefficient is that of probabilities (softmax), per sample and class over the voxels of that sample.

    Args:
        logits: (B, K, D, H, W).
        labels: (B, D, H, W) int64, in [0, K).
        counted: (B, 1, D, H, W), 1 or True for voxels that count; None where all count.

    Raises:
        ValueError: logits and labels are not of one batch and size.
    """
    if logits.shape[:1] + logits.shape[2:] != labels.shape:
        raise ValueError(
            f"Logits {tuple(logits.shape)} must be (B, K, D, H, W) and labels {tuple(labels.shape)} (B, D, H, W) "
            "of the same batch and voxels."
        )
    classes = torch.arange(logits.shape[1], device=labels.device).view(-1, 1, 1, 1)
    logarithms = logits.float().log_softmax(dim=1)
    weight = torch.ones_like(labels[:, None], dtype=torch.float32) if counted is None else counted.float()
    surprise = -logarithms.gather(1, labels[:, None]) * weight
    cross_entropy = surprise.sum() / weight.sum().clamp_min(1)
    probability = logarithms.exp() * weight
    truth = labels[:, None] == classes
    met = (probability * truth).flatten(2).sum(2)
    total = probability.flatten(2).sum(2) + (truth * weight).flatten(2).sum(2)
    return SegmentationLoss(cross_entropy, 1 - ((2 * met + SMOOTH) / (total + SMOOTH)).mean())
