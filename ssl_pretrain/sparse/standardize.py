"""Standardisation over visible voxels, the core of every masked normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Standardize(torch.autograd.Function):
    """``(x − mean) / sqrt(var + eps)`` over the visible elements of a reduction; 0 where masked.

    Written by hand because autograd would keep four maps of the input's size where this keeps one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, visible: Tensor | None, count: Tensor, dims: list[int], eps: float) -> Any:
        dtype = statistics_dtype(x)
        # In the precision of the statistics throughout: a mean rounded to bfloat16 would shift every voxel.
        seen = x.to(dtype) if visible is None else x.to(dtype) * visible
        mean = seen.sum(dims, keepdim=True) / count
        centred = seen - mean if visible is None else seen.sub_(mean).mul_(visible)
        var = (centred * centred).sum(dims, keepdim=True) / count
        rstd = (var + eps).rsqrt()
        standard = centred.mul_(rstd).to(x.dtype)
        ctx.save_for_backward(standard, visible, rstd, count)
        ctx.dims = dims
        ctx.mark_non_differentiable(mean, var)
        return standard, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        standard, visible, rstd, count = ctx.saved_tensors
        dtype = rstd.dtype
        gradient = gradients[0] if visible is None else gradients[0] * visible
        mean = gradient.sum(ctx.dims, keepdim=True, dtype=dtype) / count
        projection = (gradient * standard).sum(ctx.dims, keepdim=True, dtype=dtype) / count
        result = gradient - mean.to(gradient.dtype)
        result.addcmul_(standard, projection.to(gradient.dtype), value=-1.0).mul_(rstd.to(gradient.dtype))
        return result if visible is None else result.mul_(visible), None, None, None, None


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Statistics of half precision maps are kept in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def standardize(
    x: Tensor, visible: Tensor | None, count: Tensor, dims: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise ``x`` with the mean and biased variance of its visible elements.

    Args:
        x: any shape.
        visible: 1 where visible, 0 where masked; broadcasts to ``x``, same dtype. None: all visible.
        count: visible elements of each reduction, float32, of the shape that ``x.sum(dims, keepdim=True)`` has.
        dims: axes that are reduced.
        eps: added to the variance.

    Returns:
        The standardised ``x`` (0 where masked), and mean and variance (at least float32, without gradient).
    """
    result: tuple[Tensor, Tensor, Tensor] = _Standardize.apply(x, visible, count, dims, eps)  # type: ignore[no-untyped-call]
    return result
