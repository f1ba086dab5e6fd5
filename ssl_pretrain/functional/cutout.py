"""Cut-out: boxes of a crop are replaced by noise, or by what another crop has there (Tang et al. 2022, 2111.14791)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_windows, whole_voxels
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import Window

MOST_BOXES = 1000
"""Of one crop: small boxes may never come to a large share."""


def draw_boxes(
    patch: Triple, share: float, sides: tuple[float, float], generator: np.random.Generator
) -> tuple[Window, ...]:
    """Draw boxes until they cover a share of a crop; the last one may cover more.

    Args:
        patch: voxels of the crop per axis.
        share: of its voxels, 0 for no box.
        sides: shortest and longest side of a box as shares of the axis; every axis is drawn for itself.
        generator: owner of the randomness.

    Returns:
        Boxes, which may overlap: what lies in several counts once.
    """
    covered = np.zeros(patch, dtype=bool)
    smallest, largest = whole_voxels(patch, sides[0]), whole_voxels(patch, sides[1])
    boxes: list[Window] = []
    while covered.mean() < share and len(boxes) < MOST_BOXES:
        ((box,),) = draw_windows(1, 1, patch, smallest, largest, generator)
        covered[box] = True
        boxes.append(box)
    return tuple(boxes)


def fill_(crop: Tensor, boxes: Sequence[Window], other: Tensor) -> Tensor:
    """Replace what lies in boxes of a crop (C, D, H, W), in place, by what another one has there; returns the crop."""
    for box in boxes:
        window = (slice(None), *box)
        crop[window] = other[window]
    return crop


def noise_like(crop: Tensor, seed: int) -> Tensor:
    """Noise of a crop's size: uniform between the least and the greatest value of each channel of the crop.

    Args:
        crop: (C, D, H, W).
        seed: of the noise.
    """
    generator = torch.Generator(crop.device).manual_seed(seed)
    noise = torch.rand(crop.shape, generator=generator, device=crop.device, dtype=crop.dtype)
    low, high = crop.amin((1, 2, 3), keepdim=True), crop.amax((1, 2, 3), keepdim=True)
    return low + (high - low) * noise
