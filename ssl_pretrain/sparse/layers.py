"""Mask-aware versions of the layers a convolutional encoder is made of.

They work on whole volumes (masked-dense: compute, then mask) or, within ``mask.packed_layout()``, on packed maps, of
which every voxel is visible.

Each class adds the mask to a PyTorch layer and nothing else: same parameters, same keys, same hyper-parameters. With
everything visible each equals its dense parent, and masked voxels are exactly 0 after each. Norms and pools ignore
what masked voxels hold; a convolution relies on it being 0, which the layers before it and the masked input see to.
Idea: submanifold convolution as SparK uses it (Tian et al. 2023, arXiv 2301.03580).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_pretrain.sparse.block_conv import block_conv, block_conv_transpose, packable_geometry
from ssl_pretrain.sparse.mask import Level, SparseMask
from ssl_pretrain.sparse.spconv_conv import spconv_conv
from ssl_pretrain.sparse.standardize import standardize


class MaskedLayer(nn.Module):
    """A layer that knows the mask of its network. ``convert`` sets the attribute."""

    sparse_mask: SparseMask

    def level_of(self, feature_map: Tensor) -> Level | None:
        """The mask for a map (B, C, D, H, W), or None where that map is all visible."""
        b, _, d, h, w = feature_map.shape
        return self.sparse_mask.level(b, (d, h, w), feature_map.dtype)

    def level_of_channels_last(self, feature_map: Tensor) -> Level | None:
        """The mask for a map (B, D, H, W, C), shaped to broadcast over it, or None where it is all visible."""
        b, d, h, w, _ = feature_map.shape
        level = self.sparse_mask.level(b, (d, h, w), feature_map.dtype)
        return None if level is None else Level(level.visible.movedim(1, -1), level.voxels)


class MaskedConv3d(MaskedLayer, nn.Conv3d):
    """Convolution evaluated on visible positions; a strided one on the active coarse positions only."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), 0 where masked, bias included."""
        if self.sparse_mask.is_packed:
            return self._convolve_packed(x)
        y = super().forward(x)
        level = self.level_of(y)
        return y if level is None else y.mul_(level.visible)

    def _convolve_packed(self, x: Tensor) -> Tensor:
        geometry = packable_geometry(self)
        if geometry.reads_own_cell_only:
            return super().forward(x)
        convolve = spconv_conv if self.sparse_mask.packed_conv == "spconv" else block_conv
        return convolve(x, self.weight, self.bias, geometry, self.sparse_mask.packing)


class MaskedConvTranspose3d(MaskedLayer, nn.ConvTranspose3d):
    """Transposed convolution evaluated on visible positions of the finer map."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), 0 where masked, bias included."""
        if self.sparse_mask.is_packed:
            geometry = packable_geometry(self)
            if geometry.reads_own_cell_only:
                return super().forward(x)
            return block_conv_transpose(x, self.weight, self.bias, geometry, self.sparse_mask.packing)
        y = super().forward(x, output_size)
        level = self.level_of(y)
        return y if level is None else y.mul_(level.visible)


class MaskedLinear(MaskedLayer, nn.Linear):
    """Pointwise convolution written as a linear layer on channels-last maps, as ConvNeXt blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D, H, W, C'), 0 where masked; any other number of axes is left alone."""
        y = super().forward(x)
        level = self.level_of_channels_last(y) if y.dim() == 5 else None
        return y if level is None else y * level.visible


class MaskedMaxPool3d(MaskedLayer, nn.MaxPool3d):
    """Maximum over the visible voxels of each window."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D', H', W')."""
        inside, outside = self.level_of(x), None
        if inside is not None:
            x = x.masked_fill(inside.visible == 0, torch.finfo(x.dtype).min)
        y: Tensor = super().forward(x)
        outside = self.level_of(y)
        if outside is None:
            # Coarser than the grid: a window without any visible voxel reads as 0, like a masked input does.
            return y if inside is None else y.masked_fill(y == torch.finfo(y.dtype).min, 0.0)
        return y.masked_fill(outside.visible == 0, 0.0)


class MaskedAvgPool3d(MaskedLayer, nn.AvgPool3d):
    """Mean over the visible voxels of each window; into a map coarser than the grid, masked voxels count as 0."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D', H', W')."""
        inside = self.level_of(x)
        y: Tensor = super().forward(x if inside is None else x * inside.visible)
        outside = self.level_of(y)
        if inside is None or outside is None:
            return y
        if self._windows_are_whole(x, y):
            return y * outside.visible
        share = super().forward(inside.visible) / super().forward(torch.ones_like(inside.visible))
        return torch.where(outside.visible > 0, y / share.clamp_min(torch.finfo(y.dtype).tiny), torch.zeros_like(y))

    def _windows_are_whole(self, x: Tensor, y: Tensor) -> bool:
        """Whether each window lies in one cell, so that a visible output has no masked voxel under it."""
        tiles = all(n == m * k for n, m, k in zip(x.shape[2:], y.shape[2:], _triple(self.kernel_size), strict=True))
        return tiles and _triple(self.stride) == _triple(self.kernel_size) and _triple(self.padding) == (0, 0, 0)


class MaskedGlobalAvgPool3d(MaskedLayer, nn.AdaptiveAvgPool3d):
    """Mean over all visible voxels of a sample: the pooling of squeeze-and-excitation blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, 1, 1, 1)."""
        level = self.level_of(x)
        if level is None:
            pooled: Tensor = super().forward(x)
            return pooled
        total = (x * level.visible).sum((2, 3, 4), keepdim=True, dtype=torch.float32)
        return (total / level.voxels.view(-1, 1, 1, 1, 1)).to(x.dtype)


class MaskedInstanceNorm3d(MaskedLayer, nn.InstanceNorm3d):
    """Instance normalisation with the statistics of each sample's visible voxels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same shape, 0 where masked."""
        level = self.level_of(x)
        if level is None:
            return _packed_instance_norm(self, x) if self.sparse_mask.is_packed else _dense_instance_norm(self, x)
        count = level.voxels.view(-1, 1, 1, 1, 1)
        standard, _, _ = standardize(x, level.visible, count, [2, 3, 4], self.eps)
        return _affine(standard, level.visible, self.weight, self.bias)


class MaskedGroupNorm(MaskedLayer, nn.GroupNorm):
    """Group normalisation with the statistics of each sample's visible voxels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same shape, 0 where masked."""
        level = self.level_of(x)
        if level is None:
            return super().forward(x)
        members = self.num_channels // self.num_groups
        grouped = x.view(x.shape[0], self.num_groups, members, *x.shape[2:])
        count = level.voxels.view(-1, 1, 1, 1, 1, 1) * members
        standard, _, _ = standardize(grouped, level.visible.unsqueeze(1), count, [2, 3, 4, 5], self.eps)
        return _affine(standard.view_as(x), level.visible, self.weight, self.bias)


class MaskedBatchNorm3d(MaskedLayer, nn.BatchNorm3d):
    """Batch normalisation with the statistics of the batch's visible voxels; running ones in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> same shape, 0 where masked."""
        level = self.level_of(x)
        if level is None:
            return super().forward(x)
        if not self.training and self.running_mean is not None:
            return super().forward(x) * level.visible
        count = level.voxels.sum().view(1, 1, 1, 1, 1)
        standard, mean, var = standardize(x, level.visible, count, [0, 2, 3, 4], self.eps)
        if self.training and self.track_running_stats:
            self._update_running(mean.flatten(), var.flatten() * count.flatten() / (count.flatten() - 1).clamp_min(1))
        return _affine(standard, level.visible, self.weight, self.bias)

    def _update_running(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), momentum)


class MaskedLayerNorm(MaskedLayer, nn.LayerNorm):
    """Layer normalisation over the channels of each voxel, on channels-last maps; masked voxels stay 0."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> same shape; any other number of axes is left alone."""
        y = super().forward(x)
        level = self.level_of_channels_last(y) if y.dim() == 5 else None
        return y if level is None else y * level.visible


def _affine(standard: Tensor, visible: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift the visible voxels; all of them are where ``visible`` is None."""
    if weight is None or bias is None:
        # A copy: the original is kept for the backward pass, and an activation in place may follow.
        return standard.clone()
    shape = (1, -1, 1, 1, 1)
    weight, bias = weight.view(shape).to(standard.dtype), bias.view(shape).to(standard.dtype)
    if visible is None:
        return torch.addcmul(bias, standard, weight)
    return (standard * weight).addcmul_(bias, visible)


def _packed_instance_norm(norm: nn.InstanceNorm3d, x: Tensor) -> Tensor:
    """Instance norm of a packed map. PyTorch's own would copy it out of ``channels_last_3d`` and back."""
    count = torch.full((x.shape[0], 1, 1, 1, 1), float(x.shape[2:].numel()), device=x.device)
    standard, _, _ = standardize(x, None, count, [2, 3, 4], norm.eps)
    return _affine(standard, None, norm.weight, norm.bias)


def _dense_instance_norm(norm: nn.InstanceNorm3d, x: Tensor) -> Tensor:
    """Instance norm of an all-visible map; a map of one voxel is its bias, where PyTorch would refuse it."""
    if x.shape[2:].numel() > 1:
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    return x * 0.0 if norm.bias is None else x * 0.0 + norm.bias.view(1, -1, 1, 1, 1)


def _triple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
