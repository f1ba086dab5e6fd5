"""Reconstruction error per cell: one definition, used by the student's loss and by the teacher's difficulty."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CELL_EPS = 1e-6
"""Added to a cell's variance, so that constant cells (air, padding) have target 0 instead of a division by zero."""

Difficulty = Literal["intensity", "normalized", "reference"]


def cell_statistics(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``sqrt(unbiased variance + 1e-6)`` of each cell: (B, L, V) -> two of (B, L, 1)."""
    mean = cells.mean(dim=2, keepdim=True)
    return mean, (cells.var(dim=2, keepdim=True, unbiased=True) + CELL_EPS).sqrt()


def cell_errors(prediction: Tensor, cells: Tensor) -> Tensor:
    """Mean squared error of each cell against its voxels normalised by their own mean and deviation (SparK).

    Args:
        prediction: (B, L, V), in the normalised space.
        cells: (B, L, V), intensities of the image.

    Returns:
        (B, L)
    """
    mean, std = cell_statistics(cells)
    return (prediction - (cells - mean) / std).square().mean(dim=2)


def cell_difficulty(prediction: Tensor, cells: Tensor, kind: Difficulty) -> Tensor:
    """How badly each cell was reconstructed, in one of three senses.

    Args:
        prediction: (B, L, V), in the normalised space.
        cells: (B, L, V), intensities of the image.
        kind: ``intensity``: error after undoing the cell's normalisation; ``normalized``: the training loss itself;
            ``reference``: normalised prediction against raw intensities, which is what the published AnatoMask code
            computes.

    Returns:
        (B, L)
    """
    if kind == "reference":
        return (prediction - cells).square().mean(dim=2)
    errors = cell_errors(prediction, cells)
    if kind == "normalized":
        return errors
    # (p·σ + μ − x)² = σ²·(p − (x − μ)/σ)²: undoing the normalisation scales a cell's error by its variance.
    return errors * cell_statistics(cells)[1].squeeze(2).square()


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean of the errors (B, L) over the masked cells of the batch; ``mask`` is boolean (B, L). Returns a scalar."""
    weight = mask.to(errors.dtype)
    return (errors * weight).sum() / (weight.sum() + torch.finfo(errors.dtype).tiny)
