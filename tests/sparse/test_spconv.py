"""Convolution through spconv computes what blocks compute; without spconv or a GPU the message says what to do."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import random_mask
from ssl_pretrain.sparse import SparseMask, convert
from ssl_pretrain.sparse.block_conv import Geometry, block_conv, conv_geometry
from ssl_pretrain.sparse.packing import ABSENT, Packing, to_rows
from ssl_pretrain.sparse.spconv_conv import (
    _ImplicitGemm,
    _Native,
    _SortedMasks,
    find_pairs,
    has_spconv,
    require_spconv,
    spconv_conv,
)

GRID = (3, 2, 3)
VISIBLE = (1, 7, 18)
CONVOLUTIONS: dict[str, tuple[Triple, Triple, Triple, Triple]] = {
    "3, stride 1": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (4, 4, 4)),
    "3, stride 2": ((3, 3, 3), (2, 2, 2), (1, 1, 1), (4, 4, 4)),
    "anisotropic": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (2, 4, 3)),
    "anisotropic, strided": ((3, 3, 3), (1, 2, 2), (1, 1, 1), (2, 4, 6)),
    "cells of one voxel": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "to cells of one voxel": ((3, 3, 3), (2, 2, 2), (1, 1, 1), (2, 2, 2)),
    "stride 3": ((3, 3, 3), (3, 3, 3), (1, 1, 1), (3, 3, 3)),
    "32 positions": ((4, 4, 2), (2, 2, 2), (1, 1, 0), (4, 4, 4)),
    "64 positions": ((4, 4, 4), (2, 2, 2), (1, 1, 1), (4, 4, 4)),
}
"""Kernel, stride, padding and voxels of a cell."""


class Case:
    """A convolution of a packed map, on any device."""

    def __init__(self, name: str, visible: int, channels: int = 3, wide: int = 5, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(visible)
        self.kernel, stride, padding, self.cell = CONVOLUTIONS[name]
        geometry = conv_geometry(self.kernel, stride, padding)
        assert geometry is not None
        assert not geometry.reads_own_cell_only
        self.geometry: Geometry = geometry
        self.cells = ~random_mask(2, GRID, prod(GRID) - visible, generator).to(device)
        self.packing = Packing(self.cells, visible)
        size = [g * c for g, c in zip(GRID, self.cell, strict=True)]
        self.x = self.packing.pack(torch.randn(2, channels, *size, generator=generator).to(device))
        self.weight = torch.randn(wide, channels, *self.kernel, generator=generator).to(device)
        self.bias = torch.randn(wide, generator=generator).to(device)
        self.name = f"{name}, {visible} visible, {channels} channels"


def cases(**settings: object) -> list[Case]:
    return [Case(name, visible, **settings) for name, visible in product(CONVOLUTIONS, VISIBLE)]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_the_message_names_what_works(device):
    with pytest.raises(ValueError, match=f"CUDA GPUs only.*'{device}'.*-set sparse=blocks and -set sparse=auto"):
        require_spconv(torch.device(device))
    assert not has_spconv(torch.device(device))


def test_without_spconv_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    with pytest.raises(ValueError, match=r'cannot be imported.*pip install "anatomask\[spconv\]"') as caught:
        require_spconv(torch.device("cuda"))
    assert "-set sparse=blocks" in str(caught.value)
    assert not has_spconv(torch.device("cuda"))


def test_the_build_of_spconv_without_cuda_is_refused():
    if not pytest.importorskip("spconv.cppconstants", reason="spconv is not installed").CPU_ONLY_BUILD:
        require_spconv(torch.device("cuda"))
        return
    with pytest.raises(ValueError, match=r"the build without CUDA\. Replace it"):
        require_spconv(torch.device("cuda"))


def test_the_package_is_not_imported_before_it_is_needed():
    code = (
        "import sys, ssl_pretrain.sparse.spconv_conv; sys.exit(any(m.split('.')[0] == 'spconv' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def gathered(source: Tensor, pairs: Tensor, filters: Tensor) -> Tensor:
    """Sum over kernel positions of what pairs point at, times the filter there: (N, C) -> (N', C')."""
    padded = functional.pad(source, (0, 0, 0, 1))
    return sum(padded[rows.long()] @ f for rows, f in zip(pairs, filters, strict=True))


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_pairs_describe_the_convolution_and_its_gradient(name, visible):
    case = Case(name, visible)
    pairs = find_pairs(case.packing, case.cell, case.kernel, case.geometry)
    x = case.x.requires_grad_()
    expected = block_conv(x, case.weight, None, case.geometry, case.packing)
    # ABSENT is -1, which is the row of zeros that `gathered` adds at the end.
    filters = case.weight.flatten(2).permute(2, 1, 0)
    torch.testing.assert_close(gathered(to_rows(x), pairs.inputs, filters), to_rows(expected), atol=1e-4, rtol=1e-4)
    gradient = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad(expected, x, gradient)
    found = gathered(to_rows(gradient), pairs.outputs, filters.transpose(1, 2))
    torch.testing.assert_close(found, to_rows(expected_gradient), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["3, stride 2", "32 positions"])
def test_masks_tell_which_positions_have_a_pair(name):
    case = Case(name, 7)
    pairs = find_pairs(case.packing, case.cell, case.kernel, case.geometry)
    for rows in pairs:
        found = _SortedMasks(rows)
        (masks,), (order,) = found.masks, found.order
        assert torch.equal(order.sort().values, torch.arange(rows.shape[1]))
        assert torch.equal(masks.flatten(), masks.flatten().sort().values)
        bits = masks.view(1, -1).bitwise_right_shift(torch.arange(len(rows)).view(-1, 1)) & 1
        assert torch.equal(bits.bool(), rows[:, order] != ABSENT)


class Spconv:
    """Stands in for spconv's fast algorithm, which has no CPU version: what its kernels do with what they are given."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()

    def implicit_gemm(self, *args: object, **settings: object) -> tuple[Tensor, Tensor, int]:
        given = self._bound("implicit_gemm", *args, **settings)
        rows, filters = self._operands(given["features"], given["filters"])
        pairs = self._seen(given["pair_fwd"], given["pair_mask_fwd_splits"], given["mask_argsort_fwd_splits"])
        assert given["num_activate_out"] == pairs.shape[1]
        assert given["is_train"] and not given["is_subm"]
        return gathered(rows, pairs, filters.transpose(1, 2)), torch.zeros(1), 64

    def implicit_gemm_backward(self, *args: object, **settings: object) -> tuple[Tensor, Tensor]:
        given = self._bound("implicit_gemm_backward", *args, **settings)
        rows, filters = self._operands(given["features"], given["filters"])
        gradient = given["out_bp"]
        assert gradient.is_contiguous() and gradient.dtype == rows.dtype
        assert given["mask_width"] == 64 and torch.equal(given["mask_output_fwd"], torch.zeros(1))
        inputs = self._seen(given["pair_fwd"], given["pair_mask_fwd_splits"], given["mask_argsort_fwd_splits"])
        outputs = self._seen(given["pair_bwd"], given["pair_mask_bwd_splits"], given["mask_argsort_bwd_splits"])
        padded = functional.pad(rows, (0, 0, 0, 1))
        for_filters = torch.stack([gradient.T @ padded[r.long()] for r in inputs], 1)
        return gathered(gradient, outputs, filters), for_filters.view(given["filters"].shape)

    def _bound(self, name: str, *args: object, **settings: object) -> dict:
        """The arguments by name, as the real function would get them."""
        real = getattr(pytest.importorskip("spconv.pytorch.ops", reason="spconv is not installed"), name)
        return inspect.signature(real).bind(*args, **settings).arguments

    def _operands(self, rows: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
        assert rows.is_contiguous() and filters.is_contiguous() and rows.dtype == filters.dtype
        self.dtypes.add(rows.dtype)
        return rows, filters.flatten(1, 3).transpose(0, 1)

    def _seen(self, pairs: Tensor, masks: list[Tensor], order: list[Tensor]) -> Tensor:
        """The pairs whose bit is set in the mask of their row."""
        assert {t.dtype for t in (pairs, *masks, *order)} == {torch.int32} and pairs.is_contiguous()
        bits = masks[0].view(1, -1).bitwise_right_shift(torch.arange(len(pairs)).view(-1, 1)) & 1
        seen = torch.full_like(pairs, ABSENT)
        seen[:, order[0].long()] = torch.where(bits.bool(), pairs[:, order[0].long()], ABSENT)
        return seen


FAST = [name for name, (kernel, *_) in CONVOLUTIONS.items() if prod(kernel) <= 32]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FAST)
def test_what_the_fast_algorithm_is_given_yields_the_convolution_and_its_gradients(name, channels, monkeypatch):
    case, library = Case(name, 7, channels), Spconv()
    replace_spconv(library, monkeypatch)
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    found, expected = (f(*inputs, case.geometry, case.packing) for f in (spconv_conv, block_conv))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradient = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, gradient) for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert library.dtypes == {torch.float32}


def test_bfloat16_is_computed_in_float32_and_rounded_once(monkeypatch):
    case, library = Case("3, stride 2", 7), Spconv()
    replace_spconv(library, monkeypatch)
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    with torch.autocast("cpu", torch.bfloat16):
        found = spconv_conv(*inputs, case.geometry, case.packing)
    rounded = [t.bfloat16().float() for t in inputs]
    assert torch.equal(found, spconv_conv(*rounded, case.geometry, case.packing).bfloat16())
    gradients = torch.autograd.grad(found, inputs, torch.randn_like(found))
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    assert library.dtypes == {torch.float32}


def replace_spconv(library: Spconv, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[spconv_conv.__module__]
    monkeypatch.setattr(module, "_ops", lambda: library)
    monkeypatch.setattr(module, "_set_tf32", lambda dtype: None)
    monkeypatch.setattr(module, "_Native", _ImplicitGemm)


def test_pairs_are_found_once_per_mask():
    pytest.importorskip("spconv", reason="spconv is not installed")
    case = Case("3, stride 1", 7)
    for _ in range(2):
        spconv_conv(case.x, case.weight, None, case.geometry, case.packing)
        assert len(case.packing.cache) == 1


def test_the_mask_says_what_convolves_packed_maps():
    pytest.importorskip("spconv", reason="spconv is not installed")
    case = Case("3, stride 2", 7)
    mask, layer = SparseMask(), nn.Sequential(nn.Conv3d(3, 5, 3, 2, 1))
    convert(layer, mask)
    for name, kept in (("blocks", []), ("spconv", [_Native])):
        mask.packed_conv = name
        with mask.visible(case.cells), mask.packed_layout():
            assert layer(case.x).shape == (2, 5, 7 * 2, 2, 2)
            assert [type(value) for value in mask.packing.cache.values()] == kept


def test_forward_on_the_cpu_equals_blocks():
    """In a process of its own: spconv's CPU code is wrong with more than one OpenMP thread."""
    pytest.importorskip("spconv", reason="spconv is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{2 * len(CONVOLUTIONS) * len(VISIBLE)} equal" in result.stdout


def compare_on_the_cpu() -> None:
    """Outputs in single precision, and spconv's own pairs of a submanifold convolution."""
    torch.set_num_threads(1)
    tested = [*cases(), *cases(channels=1)]
    for case in tested:
        arguments = (case.x, case.weight, case.bias, case.geometry, case.packing)
        found, expected = spconv_conv(*arguments), block_conv(*arguments)
        assert found.is_contiguous(memory_format=torch.channels_last_3d), case.name
        error = float((found - expected).norm() / expected.norm())
        assert error < 1e-5, f"{case.name}: {error}"
    for visible in VISIBLE:
        compare_with_spconvs_pairs(Case("3, stride 1", visible))
    print(len(tested), "equal")


def compare_with_spconvs_pairs(case: Case) -> None:
    """The order of kernel positions is spconv's, and so is which of two rows is the input."""
    from spconv.core import ConvAlgo
    from spconv.pytorch.ops import get_indice_pairs

    size = [g * c for g, c in zip(GRID, case.cell, strict=True)]
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (2, *size)), indexing="ij"))
    volume = places.permute(1, 0, 2, 3, 4).contiguous()
    indices = to_rows(case.packing.pack(volume)).to(torch.int32).contiguous()
    ones, zeros = [1] * 3, [0] * 3
    _, pairs, counts = get_indice_pairs(
        indices, 2, size, ConvAlgo.Native, list(case.kernel), ones, ones, ones, zeros, subm=True
    )
    ours = find_pairs(case.packing, case.cell, case.kernel, case.geometry).inputs
    # Of the symmetric pairs, spconv lists the first half.
    for k in range(13):
        theirs = {(int(o), int(i)) for i, o in pairs[:, k, : int(counts[k])].T}
        assert theirs == {(o, int(i)) for o, i in enumerate(ours[k]) if i != ABSENT}, f"{case.name}: position {k}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_on_cuda_forward_and_backward_equal_blocks(name, visible, channels, dtype, monkeypatch):
    if not has_spconv(torch.device("cuda")):
        pytest.skip("spconv for CUDA is not installed")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Channels of its own per type: spconv remembers the kernel it chose for float32, be it computed in TF32 or not.
    wide = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 64}[dtype]
    case = Case(name, visible, channels, wide, "cuda")
    inputs = [t.requires_grad_() for t in (case.x, case.weight, case.bias)]
    outputs = []
    for convolve in (block_conv, spconv_conv):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = convolve(*inputs, case.geometry, case.packing)
        assert y.dtype == dtype
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
        outputs.append([y, *torch.autograd.grad(y, inputs, gradient)])
    fast = next(iter(case.packing.cache.values()))
    assert isinstance(fast, _Native if prod(case.kernel) > 32 else _ImplicitGemm)
    # In float16 spconv may sum in float16.
    tolerance = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}[dtype]
    for expected, found in zip(*outputs, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).float().norm() <= tolerance * expected.float().norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_nothing_waits_for_the_gpu():
    if not has_spconv(torch.device("cuda")):
        pytest.skip("spconv for CUDA is not installed")
    # In the first round spconv measures which kernel is fastest.
    for mode in ("default", "error"):
        case = Case("3, stride 2", 7, 16, 16, "cuda")
        weight = case.weight.requires_grad_()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            spconv_conv(case.x, weight, case.bias, case.geometry, case.packing).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert weight.grad is not None
        assert torch.isfinite(weight.grad).all()


if __name__ == "__main__":
    compare_on_the_cpu()
