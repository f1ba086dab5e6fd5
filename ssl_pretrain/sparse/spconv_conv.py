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
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.sparse.block_conv import Geometry, autocast_operands
from ssl_pretrain.sparse.packing import ABSENT, Packing, from_rows, to_rows

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


class Pairs(NamedTuple):
    """Which rows meet at each of the K positions of a kernel.

    Attributes:
        inputs: (K, N') int32, the row of the input that an output row reads there, or ABSENT.
        outputs: (K, N) int32, the row of the output that reads an input row there, or ABSENT.
    """

    inputs: Tensor
    outputs: Tensor


def find_pairs(packing: Packing, cell: Triple, kernel: Triple, geometry: Geometry) -> Pairs:
    """The pairs of a convolution: output ``o`` reads input ``o·s − p + k`` at position ``k`` of the kernel.

    Args:
        packing: of the mask.
        cell: voxels of an input cell per axis.
        kernel: voxels of the kernel per axis.
        geometry: of the convolution.
    """
    coarse = cast("Triple", tuple(n // s for n, s in zip(cell, geometry.stride, strict=True)))
    reads, readers = [], []
    for fine, few, k, s, p in zip(cell, coarse, kernel, geometry.stride, geometry.padding, strict=True):
        position = torch.arange(k, device=packing.cells.device).view(-1, 1)
        voxel = torch.arange(fine, device=packing.cells.device)
        reads.append(voxel[:few] * s - p + position)
        # Those that are no multiple of the stride lie between two outputs.
        readers.append(voxel + p - position)
    return Pairs(_rows(packing, reads, cell, (1, 1, 1)), _rows(packing, readers, coarse, geometry.stride))


def _rows(packing: Packing, positions: list[Tensor], cell: Triple, stride: Triple) -> Tensor:
    """(K, rows) int32: for what meets at (k, n) along each axis, the row of a map with such cells, or ABSENT."""
    voxels = [p.div(s, rounding_mode="floor") for p, s in zip(positions, stride, strict=True)]
    places = [v.remainder(n) for v, n in zip(voxels, cell, strict=True)]
    # 0, 1 or 2: in the cell before, in the same or in the next one.
    steps = [v.div(n, rounding_mode="floor") + 1 for v, n in zip(voxels, cell, strict=True)]
    between = _combined([p.remainder(s) for p, s in zip(positions, stride, strict=True)], (1, 1, 1)) > 0
    table = packing.neighbour_table()
    cells = torch.arange(table.shape[0], device=table.device).view(1, -1, 1)
    owner = table[cells, _combined(steps, (9, 3, 1)).unsqueeze(1)]
    place = _combined(places, (cell[1] * cell[2], cell[2], 1)).to(torch.int32)
    rows = owner * prod(cell) + place.unsqueeze(1)
    return rows.masked_fill_((owner == ABSENT) | between.unsqueeze(1), ABSENT).flatten(1).contiguous()


def _combined(axes: list[Tensor], factors: Triple) -> Tensor:
    """Three tables (k, n) -> their weighted sum (K, voxels of a cell), the last axis running fastest in both."""
    d, h, w = (a * factor for a, factor in zip(axes, factors, strict=True))
    total = d[:, None, None, :, None, None] + h[:, None, None, :, None].unsqueeze(0) + w[:, None, None, :]
    return total.reshape(len(d) * len(h) * len(w), -1)


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

    Rows are (N, C), filters (C', *kernel, C). A forward pass gives the output's rows and what the backward pass needs
    besides the arguments; that gives the gradients of rows and filters.

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
        return from_rows(rows, packing.batch, (packing.count * d, h, w)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gradient = to_rows(gradients[0])
        _set_tf32(x.dtype)
        rows, filters = ctx.algorithm.backward(
            _operand(to_rows(x), x.dtype), _filters(weight, x.dtype), _operand(gradient, x.dtype), ctx.kept
        )
        return (
            from_rows(rows, x.shape[0], (x.shape[2], x.shape[3], x.shape[4])).to(x.dtype),
            filters.view(weight.shape[0], *weight.shape[2:], -1).permute(0, 4, 1, 2, 3).to(weight.dtype),
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _algorithm(x: Tensor, weight: Tensor, geometry: Geometry, packing: Packing) -> _ImplicitGemm | _Native:
    """The algorithm for a convolution, with its pairs; computed once per mask."""
    cell, kernel = packing.cell_of(x), cast("Triple", tuple(weight.shape[2:]))
    key = ("spconv", cell, kernel, geometry)
    if key not in packing.cache:
        pairs = find_pairs(packing, cell, kernel, geometry)
        fast = x.device.type == "cuda" and prod(kernel) <= MASK_BITS
        packing.cache[key] = _ImplicitGemm(pairs) if fast else _Native(pairs)
    return cast("_ImplicitGemm | _Native", packing.cache[key])


def _operand(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as spconv takes them: contiguous, in float16 for a float16 map and in float32 for any other."""
    return values.to(torch.float16 if dtype == torch.float16 else torch.float32).contiguous()


def _filters(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C', C, *kernel) -> (C', *kernel, C), the order of spconv's weights."""
    return _operand(weight.permute(0, 2, 3, 4, 1), dtype)


def _set_tf32(dtype: torch.dtype) -> None:
    """Allow TF32 where the operands have no more bits than it keeps; float32 stays float32.

    spconv remembers the kernel it found fastest for each pair of channel numbers, so in a process that computes both
    the first one decides.
    """
    import_module("spconv.constants").SPCONV_ALLOW_TF32 = dtype == torch.bfloat16  # type: ignore[attr-defined]


def _ops() -> Any:
    """spconv's operations; imported late because the library is optional."""
    return import_module("spconv.pytorch.ops")
