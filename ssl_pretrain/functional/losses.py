"""Reconstruction error per cell: one definition, used by the student's loss and by the teacher's difficulty."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CELL_EPS = 1e-6
"""Added to a cell's variance, so that constant cells (air, padding) have target 0 instead of a division by zero."""

Difficulty = Literal["intensity", "normalized", "reference"]


def cell_statistics(cells: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``sqrt(unbiased variance + 1e-6)`` of each cell.

    Args:
        cells: (B, L, V), intensities.
        counted: (B, L, V), 1 for voxels that count and 0 for those to be ignored; None where all count.

    Returns:
        Two of (B, L, 1). The mean of a cell without a voxel that counts is 0.
    """
    if counted is None:
        mean = cells.mean(dim=2, keepdim=True)
        return mean, (cells.var(dim=2, keepdim=True, unbiased=True) + CELL_EPS).sqrt()
    voxels = counted.sum(dim=2, keepdim=True)
    mean = (cells * counted).sum(dim=2, keepdim=True) / voxels.clamp_min(1)
    variance = ((cells - mean).square() * counted).sum(dim=2, keepdim=True) / (voxels - 1).clamp_min(1)
    return mean, (variance + CELL_EPS).sqrt()


def cell_errors(prediction: Tensor, cells: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean squared error of each cell against its voxels normalised by their own mean and deviation (SparK).

    Args:
        prediction: (B, L, V), in the normalised space.
        cells: (B, L, V), intensities of the image.
        counted: (B, L, V), as in :func:`cell_statistics`.

    Returns:
        (B, L); 0 for a cell without a voxel that counts.
    """
    mean, std = cell_statistics(cells, counted)
    return _mean_of_counted((prediction - (cells - mean) / std).square(), counted)


def squared_errors(prediction: Tensor, cells: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean squared error of each cell in intensities: three of (B, L, V) -> (B, L)."""
    return _mean_of_counted((prediction - cells).square(), counted)


def absolute_errors(prediction: Tensor, cells: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean absolute error of each cell in intensities: three of (B, L, V) -> (B, L)."""
    return _mean_of_counted((prediction - cells).abs(), counted)


def cell_difficulty(prediction: Tensor, cells: Tensor, kind: Difficulty, counted: Tensor | None = None) -> Tensor:
    """How badly each cell was reconstructed, in one of three senses.

    Args:
        prediction: (B, L, V), in the normalised space.
        cells: (B, L, V), intensities of the image.
        kind: ``intensity``: error after undoing the cell's normalisation; ``normalized``: the training loss itself;
            ``reference``: normalised prediction against raw intensities, which is what the published AnatoMask code
            computes.
        counted: (B, L, V), as in :func:`cell_statistics`.

    Returns:
        (B, L)
    """
    if kind == "reference":
        return squared_errors(prediction, cells, counted)
    errors = cell_errors(prediction, cells, counted)
    if kind == "normalized":
        return errors
    # (p·σ + μ − x)² = σ²·(p − (x − μ)/σ)²: undoing the normalisation scales a cell's error by its variance.
    return errors * cell_statistics(cells, counted)[1].squeeze(2).square()


def masked_mean(errors: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean of the errors over the masked voxels of the batch that count.

    Args:
        errors: (B, L), of cells.
        mask: boolean (B, L), True where masked.
        counted: (B, L, V), as in :func:`cell_statistics`.

    Returns:
        A scalar.
    """
    weight = mask.to(errors.dtype)
    if counted is not None:
        weight = weight * counted.mean(dim=2)
    total = weight.sum()
    # Not the least number there is: its inverse, times the weight of the loss, may be infinite.
    return (errors * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))


def _mean_of_counted(squares: Tensor, counted: Tensor | None) -> Tensor:
    """(B, L, V) -> (B, L)."""
    if counted is None:
        return squares.mean(dim=2)
    return (squares * counted).sum(dim=2) / counted.sum(dim=2).clamp_min(1)
