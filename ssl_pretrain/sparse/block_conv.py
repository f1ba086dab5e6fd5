"""Convolution of packed cells: gather each cell with a halo, convolve without padding."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.sparse.packing import Packing, to_rows


class Geometry(NamedTuple):
    """Stride and padding of a convolution, and the halos it needs, per axis.

    Attributes:
        stride: voxels per step.
        padding: zeros that the dense convolution adds on either side.
        low, high: voxels of its neighbours that an input cell needs before its first and after its last voxel.
        gradient_low, gradient_high: the same of the output gradient's cells, to compute the input's gradient.
    """

    stride: Triple
    padding: Triple
    low: Triple
    high: Triple
    gradient_low: Triple
    gradient_high: Triple

    @property
    def reads_own_cell_only(self) -> bool:
        """Whether no output voxel looks across the faces of its cell: the plain convolution does then."""
        return max(*self.low, *self.high) == 0


def conv_geometry(kernel: Triple, stride: Triple, padding: Triple) -> Geometry | None:
    """The halos of a convolution, or None where it does not map whole cells to whole cells with a halo of one voxel.

    Kernels 1 and 3 with the usual padding qualify with any stride that divides the cell, and so do non-overlapping ones
    (kernel = stride, no padding). An output voxel ``o`` reads the inputs ``o·s − p … o·s − p + k − 1``.
    """
    axes = list(zip(kernel, stride, padding, strict=True))
    keeps_cells = all((2 * p - k) // s == -1 for k, s, p in axes)
    high = tuple(max(k - p - s, 0) for k, s, p in axes)
    # Input i feeds the outputs from ceil((i + p − k + 1) / s) to floor((i + p) / s).
    gradient_low = tuple((k - 1 - p) // s for k, s, p in axes)
    gradient_high = tuple(1 + (p - 1) // s for k, s, p in axes)
    if not keeps_cells or max(*padding, *high, *gradient_low, *gradient_high) > 1:
        return None
    halos = (padding, high, gradient_low, gradient_high)
    return Geometry(stride, padding, *(cast("Triple", h) for h in halos))


def geometry_of(layer: nn.Conv3d | nn.ConvTranspose3d) -> Geometry | None:
    """The geometry of a layer, or None where blocks cannot compute it.

    That of a transposed convolution is the one of the convolution that it is the adjoint of.
    """
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str):
        return None
    kernel, stride, padding = (cast("Triple", tuple(v)) for v in (layer.kernel_size, layer.stride, layer.padding))
    if isinstance(layer, nn.ConvTranspose3d):
        axes = zip(kernel, stride, padding, layer.output_padding, strict=True)
        if any(k - 2 * p + more != s for k, s, p, more in axes):
            return None
    return conv_geometry(kernel, stride, padding)


def block_conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing) -> Tensor:
    """Convolve a packed map as the dense convolution would convolve the volume with zeros in masked cells.

    Args:
        x: packed (B, C, n·d, h, w).
        weight: (C', C, *kernel).
        bias: (C',) or None.
        geometry: of the convolution.
        packing: of the mask.

    Returns:
        packed (B, C', n·d/s, h/s, w/s).
    """
    result: Tensor = _BlockConv.apply(*autocast_operands(x, weight, bias), geometry, packing)  # type: ignore[no-untyped-call]
    return result


def block_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing
) -> Tensor:
    """Transposed convolution of a packed map, as the dense one would do it with zeros in masked cells.

    Args:
        x: packed (B, C, n·d, h, w).
        weight: (C, C', *kernel).
        bias: (C',) or None.
        geometry: of the convolution that it is the adjoint of, see :func:`geometry_of`.
        packing: of the mask.

    Returns:
        packed (B, C', n·d·s, h·s, w·s).
    """
    operands = autocast_operands(x, weight, bias)
    result: Tensor = _BlockConvTranspose.apply(*operands, geometry, packing)  # type: ignore[no-untyped-call]
    return result


def conv_at(layer: nn.Conv3d, volume: Tensor, packing: Packing) -> Tensor:
    """A convolution of a whole map, computed in the packing's cells alone, with their true neighbours.

    Args:
        layer: with a geometry.
        volume: (B, C, D, H, W).
        packing: the cells.

    Returns:
        packed (B, C', n·d/s, h/s, w/s).
    """
    geometry = packable_geometry(layer)
    blocks = packing.windows(volume, geometry.low, geometry.high)
    return _packed(functional.conv3d(blocks, layer.weight, layer.bias, geometry.stride), packing)


def conv_transpose_at(layer: nn.ConvTranspose3d, volume: Tensor, packing: Packing) -> Tensor:
    """A transposed convolution of a whole map, computed in the packing's cells alone, with their true neighbours.

    Args:
        layer: with a geometry.
        volume: (B, C, D, H, W).
        packing: the cells.

    Returns:
        packed (B, C', n·d·s, h·s, w·s).
    """
    geometry = packable_geometry(layer)
    blocks = packing.windows(volume, geometry.gradient_low, geometry.gradient_high)
    d, h, w = (n // g for n, g in zip(volume.shape[2:], packing.grid, strict=True))
    return _packed(_go_up(blocks, layer.weight, layer.bias, geometry, (d, h, w)), packing)


def packable_geometry(layer: nn.Conv3d | nn.ConvTranspose3d) -> Geometry:
    """The geometry of a layer.

    Raises:
        ValueError: blocks cannot compute it.
    """
    geometry = geometry_of(layer)
    if geometry is None:
        raise ValueError(f"This convolution cannot work on packed cells: {layer}.")
    return geometry


def autocast_operands(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias in the precision of autocast, which does not reach into an autograd function."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _BlockConv(torch.autograd.Function):
    """Both directions gather. A scatter of the halo's gradient would be slower than the dense convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing
    ) -> Tensor:
        # The haloed cells are gathered again in the backward pass: kept, they would be most of the memory.
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.packing = geometry, packing
        return _convolve(x, weight, bias, geometry, packing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        geometry, packing, gradient = ctx.geometry, ctx.packing, gradients[0]
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            _input_gradient(gradient, weight, geometry, packing) if for_x else None,
            _weight_gradient(gradient, x, weight, geometry, packing) if for_weight else None,
            to_rows(gradient).sum(0) if for_bias else None,
            None,
            None,
        )


class _BlockConvTranspose(torch.autograd.Function):
    """The two directions of a convolution in each other's place, so that both gather here, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.packing = geometry, packing
        blocks = packing.haloed(x, geometry.gradient_low, geometry.gradient_high)
        return _packed(_go_up(blocks, weight, bias, geometry, packing.cell_of(x)), packing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        geometry, packing, gradient = ctx.geometry, ctx.packing, gradients[0]
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            _convolve(gradient, weight, None, geometry, packing) if for_x else None,
            _weight_gradient(x, gradient, weight, geometry, packing) if for_weight else None,
            to_rows(gradient).sum(0) if for_bias else None,
            None,
            None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing) -> Tensor:
    """Cells with a halo, convolved without padding."""
    blocks = packing.haloed(x, geometry.low, geometry.high)
    return _packed(functional.conv3d(blocks, weight, bias, geometry.stride), packing)


def _input_gradient(gradient: Tensor, weight: Tensor, geometry: Geometry, packing: Packing) -> Tensor:
    """The output gradient with a halo, convolved with the transposed kernel; the halo's own results are cut off."""
    blocks = packing.haloed(gradient, geometry.gradient_low, geometry.gradient_high)
    if geometry.stride == (1, 1, 1):
        # A plain convolution with the flipped kernel: faster than the transposed one, which wants its output cropped.
        flipped = weight.flip(2, 3, 4).transpose(0, 1)
        return _packed(functional.conv3d(blocks, flipped), packing)
    return _packed(_go_up(blocks, weight, None, geometry, packing.cell_of(gradient)), packing)


def _go_up(blocks: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, cell: Triple) -> Tensor:
    """Transposed convolution of cells (N, C, …) with their halo; its own results are cut off: (N, C', d·s, h·s, w·s).

    Args:
        cell: voxels of a cell without the halo.
    """
    crop = [p + low * s for p, low, s in zip(geometry.padding, geometry.gradient_low, geometry.stride, strict=True)]
    size = [n * s for n, s in zip(cell, geometry.stride, strict=True)]
    wide = functional.conv_transpose3d(blocks, weight, None, geometry.stride, crop)
    short = [n - m for n, m in zip(size, wide.shape[2:], strict=True)]
    if max(short) > 0:
        # A kernel smaller than the stride leaves the last voxels of each cell unread.
        wide = functional.pad(wide, [side for n in reversed(short) for side in (0, max(n, 0))])
    whole = wide[:, :, : size[0], : size[1], : size[2]]
    return whole if bias is None else whole + bias.view(1, -1, 1, 1, 1)


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, packing: Packing) -> Tensor:
    """The ordinary weight gradient, between haloed input and output gradient."""
    blocks = packing.haloed(x, geometry.low, geometry.high)
    per_cell = _per_cell(gradient, packing)
    none = [0, 0, 0]
    stride, ones = list(geometry.stride), [1, 1, 1]
    found = torch.ops.aten.convolution_backward(
        per_cell, blocks, weight, None, stride, none, ones, False, none, 1, [False, True, False]
    )
    return cast("Tensor", found[1])


def _per_cell(packed: Tensor, packing: Packing) -> Tensor:
    """packed (B, C, n·d, h, w) -> (B·n, C, d, h, w), without a copy."""
    d, h, w = packing.cell_of(packed)
    return to_rows(packed).view(packing.batch * packing.count, d, h, w, -1).permute(0, 4, 1, 2, 3)


def _packed(blocks: Tensor, packing: Packing) -> Tensor:
    """(B·n, C, d, h, w) -> packed (B, C, n·d, h, w), without a copy for blocks in ``channels_last_3d``."""
    _, c, d, h, w = blocks.shape
    return to_rows(blocks).view(packing.batch, packing.count * d, h, w, c).permute(0, 4, 1, 2, 3)
