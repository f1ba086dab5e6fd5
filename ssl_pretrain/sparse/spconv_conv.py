"""Convolution of packed cells by spconv's kernels for CUDA GPUs (https://github.com/traveller59/spconv, 2.3.8).

The rows of a packed map are the features of the active voxels, in a fixed order. spconv only has to be told which rows
meet at which position of the kernel. The mask gives these pairs away, so they are computed here, from the neighbour
table of :class:`~ssl_pretrain.sparse.packing.Packing`, and not with spconv's hash tables: a strided convolution then
yields exactly the visible coarse voxels in the order of the packed map, with nothing to prune or to sort, and nothing
waits for the GPU.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.sparse.block_conv import Geometry, autocast_operands
from ssl_pretrain.sparse.packing import ABSENT, Packing, to_rows
from ssl_pretrain.sparse.spconv_pairs import Pairs, find_pairs

MASK_BITS = 32
"""Positions of a kernel that spconv's fast algorithm packs into one integer per voxel."""

ALTERNATIVE = "-set sparse=blocks and -set sparse=auto work without it."


def require_spconv(device: torch.device) -> None:
    """Check that spconv can compute on a device.

    Raises:
        ValueError: it cannot; says what is missing and what to do.
    """
    problem = _missing(device)
    if problem is not None:
        raise ValueError(f"-set sparse=spconv: {problem} {ALTERNATIVE}")


def has_spconv(device: torch.device) -> bool:
    """Whether spconv can compute on a device."""
    return _missing(device) is None


def _missing(device: torch.device) -> str | None:
    """What keeps spconv from computing on a device, and the remedy."""
    if device.type != "cuda":
        return f"spconv is for CUDA GPUs only, and this run is on '{device.type}'."
    try:
        # The package first: what is left of a failed import may still hold its parts.
        import_module("spconv")
        import_module("spconv.pytorch")
        cpu_only = import_module("spconv.cppconstants").CPU_ONLY_BUILD
    except ImportError as error:
        return f'spconv cannot be imported ({error}). Install it with `pip install "anatomask[spconv]"` (Linux, CUDA).'
    if cpu_only:
        return (
            "the installed spconv is the build without CUDA. Replace it: `pip uninstall spconv cumm`, then "
            '`pip install "anatomask[spconv]"` (Linux, CUDA).'
        )
    return None


def spconv_conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing) -> Tensor:
    """Convolve a packed map as the dense convolution would convolve the volume with zeros in masked cells.

    spconv has kernels for float32 and float16. Maps in bfloat16 are computed in TF32, which holds their values exactly,
    and rounded once; other types are computed in float32. In float16 spconv 2.3.8 may sum in float16, asked or
    not. On the CPU there is a forward pass only, for tests with one OpenMP thread.

    Args:
        x: packed (B, C, n·d, h, w).
        weight: (C', C, *kernel).
        bias: (C',) or None.
        geometry: of the convolution.
        packing: of the mask.

    Returns:
        packed (B, C', n·d/s, h/s, w/s).
    """
    result: Tensor = _SpconvConv.apply(*autocast_operands(x, weight, bias), geometry, packing)  # type: ignore[no-untyped-call]
    return result


class _Algorithm(Protocol):
    """One of spconv's algorithms with the pairs it works on. Rows are (N, C), filters (C', *kernel, C)."""

    def forward(self, rows: Tensor, filters: Tensor) -> tuple[Tensor, object]:
        """Rows of the output, and what the backward pass needs besides the arguments."""

    def backward(self, rows: Tensor, filters: Tensor, gradient: Tensor, kept: object) -> tuple[Tensor, Tensor]:
        """Gradients of rows and filters."""


class _SortedMasks:
    """Bit k of a row's mask says whether it meets another one at position k; rows with like masks lie together.

    Attributes:
        masks: [(N, 1) int32], sorted. spconv wants a list because it can split a kernel; here it has one part.
        order: [(N,) int32], the row of each mask.
    """

    def __init__(self, pairs: Tensor) -> None:
        bits = torch.arange(pairs.shape[0], dtype=torch.int32, device=pairs.device).view(-1, 1)
        mask = (pairs != ABSENT).to(torch.int32).bitwise_left_shift_(bits).sum(0, dtype=torch.int32)
        mask, order = mask.sort(stable=True)
        self.masks = [mask.view(-1, 1)]
        self.order = [order.to(torch.int32)]


class _ImplicitGemm:
    """spconv's ``MaskImplicitGemm``: CUDA only, kernels of up to 32 positions, nothing waits for the GPU.

    It is called as for ``SparseConv3d`` with stride 1, too. Its shortcut for submanifold convolutions saves one
    sorting, and the pairs of a stride 1 and of other strides would be two things to get right.
    """

    ALL_POSITIONS = np.array([0xFFFFFFFF], dtype=np.uint32)

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.inputs, self.outputs = _SortedMasks(pairs.inputs), _SortedMasks(pairs.outputs)

    def forward(self, rows: Tensor, filters: Tensor) -> tuple[Tensor, object]:
        found, union, width = _ops().implicit_gemm(
            rows,
            filters,
            self.pairs.inputs,
            self.inputs.masks,
            self.inputs.order,
            self.pairs.inputs.shape[1],
            [self.ALL_POSITIONS],
            is_train=True,
            is_subm=False,
            fp32_accum=True,
        )
        return found, (union, width)

    def backward(self, rows: Tensor, filters: Tensor, gradient: Tensor, kept: object) -> tuple[Tensor, Tensor]:
        union, width = cast("tuple[Tensor, int]", kept)
        found = _ops().implicit_gemm_backward(
            rows,
            filters,
            gradient,
            self.pairs.inputs,
            self.pairs.outputs,
            self.inputs.masks,
            self.outputs.masks,
            self.inputs.order,
            self.outputs.order,
            mask_output_fwd=union,
            masks=[self.ALL_POSITIONS],
            mask_width=width,
            is_subm=False,
            fp32_accum=True,
        )
        return cast("tuple[Tensor, Tensor]", found)


class _Native:
    """spconv's ``Native``: a matrix product per position. For larger kernels, and on the CPU; waits for the GPU."""

    def __init__(self, pairs: Pairs) -> None:
        self.rows = pairs.inputs.shape[1]
        present = pairs.inputs != ABSENT
        self.counts = present.sum(1, dtype=torch.int32)
        # The pairs of each position first, then what stands for none.
        readers = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)
        self.pairs = torch.stack([pairs.inputs.gather(1, readers), readers.to(torch.int32)])

    def forward(self, rows: Tensor, filters: Tensor) -> tuple[Tensor, object]:
        return cast("Tensor", _ops().indice_conv(rows, filters, self.pairs, self.counts, self.rows)), None

    def backward(self, rows: Tensor, filters: Tensor, gradient: Tensor, kept: object) -> tuple[Tensor, Tensor]:
        del kept
        found = _ops().indice_conv_backward(rows, filters, gradient, self.pairs, self.counts)
        return cast("tuple[Tensor, Tensor]", found)


class _SpconvConv(torch.autograd.Function):
    """Keeps the map as it came: spconv's own function would keep a copy in the type it computes in."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing
    ) -> Tensor:
        ctx.algorithm = _algorithm(x, weight, geometry, packing)
        ctx.save_for_backward(x, weight)
        _set_tf32(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            rows, ctx.kept = ctx.algorithm.forward(_operand(to_rows(x), x.dtype), _filters(weight, x.dtype))
        if bias is not None:
            rows = rows.add_(bias)
        d, h, w = (n // s for n, s in zip(packing.cell_of(x), geometry.stride, strict=True))
        return _volume(rows, (packing.batch, packing.count * d, h, w)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gradient = to_rows(gradients[0])
        _set_tf32(x.dtype)
        rows, filters = ctx.algorithm.backward(
            _operand(to_rows(x), x.dtype), _filters(weight, x.dtype), _operand(gradient, x.dtype), ctx.kept
        )
        b, _, *size = x.shape
        return (
            _volume(rows, (b, *size)).to(x.dtype),
            filters.view(weight.shape[0], *weight.shape[2:], -1).permute(0, 4, 1, 2, 3).to(weight.dtype),
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _algorithm(x: Tensor, weight: Tensor, geometry: Geometry, packing: Packing) -> _Algorithm:
    """The algorithm for a convolution, with its pairs; computed once per mask."""
    cell, kernel = packing.cell_of(x), cast("Triple", tuple(weight.shape[2:]))
    key = ("spconv", cell, kernel, geometry)
    if key not in packing.cache:
        pairs = find_pairs(packing, cell, kernel, geometry)
        fast = x.device.type == "cuda" and prod(kernel) <= MASK_BITS
        packing.cache[key] = _ImplicitGemm(pairs) if fast else _Native(pairs)
    return cast("_Algorithm", packing.cache[key])


def _operand(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as spconv takes them: contiguous, in float16 for a float16 map and in float32 for any other."""
    return values.to(torch.float16 if dtype == torch.float16 else torch.float32).contiguous()


def _filters(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C', C, *kernel) -> (C', *kernel, C), the order of spconv's weights."""
    return _operand(weight.permute(0, 2, 3, 4, 1), dtype)


def _volume(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows (B·D·H·W, C) -> (B, C, D, H, W) in ``channels_last_3d``, without a copy."""
    return rows.view(*shape, rows.shape[1]).permute(0, 4, 1, 2, 3)


def _set_tf32(dtype: torch.dtype) -> None:
    """Allow TF32 where the operands have no more bits than it keeps; float32 stays float32.

    spconv remembers the kernel it found fastest for each pair of channel numbers, so in a process that computes both
    the first one decides.
    """
    import_module("spconv.constants").SPCONV_ALLOW_TF32 = dtype == torch.bfloat16  # type: ignore[attr-defined]


def _ops() -> Any:
    """spconv's operations; imported late because the library is optional."""
    return import_module("spconv.pytorch.ops")
