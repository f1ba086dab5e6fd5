"""Packed cells compute what masked-dense layers compute, in both directions."""

from __future__ import annotations

from math import prod

import pytest
import torch
from architectures import architecture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ssl_pretrain.functional.masking import random_mask, repeat_to
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.backends import packable_stages, rule_of_thumb
from ssl_pretrain.networks.base import FeatureMap, StagedEncoder
from ssl_pretrain.networks.masked import encode_masked, whole
from ssl_pretrain.sparse import SparseMask, convert
from ssl_pretrain.sparse.block_conv import block_conv, conv_at, conv_geometry, conv_transpose_at, geometry_of
from ssl_pretrain.sparse.packing import Packing

PATCH = (32, 32, 32)
STRIDES = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "anisotropic": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "coarser than the grid": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
}
VISIBLE = {"60 %": 26, "75 %": 16, "95 %": 3, "one cell": 1, "all": 64}
CELL = (8, 8, 8)


class Case:
    """An encoder, a mask and what comes out of both layouts."""

    def __init__(
        self, name: str, kind: str, strides: str, channels: int, batch: int, visible: int, smooth: bool = False
    ) -> None:
        torch.manual_seed(1)
        steps = STRIDES[strides]
        made = architecture(kind, steps)
        if name.startswith("STUNet"):
            made["arch_kwargs"]["strides"] = [*steps, *[[1, 1, 1]] * (6 - len(steps))]
        backbone = build_backbone(name, architecture=made, input_channels=channels, num_classes=2, patch=PATCH)
        self.encoder, self.maps = backbone.truncated(len(steps))
        if smooth:
            # LeakyReLU's kink would turn a rounding error near 0 into another slope.
            replace_activations(self.encoder)
        self.mask = SparseMask()
        convert(self.encoder, self.mask)
        self.image = torch.randn(batch, channels, *PATCH)
        hidden = random_mask(batch, (4, 4, 4), 64 - visible, torch.Generator().manual_seed(2))
        self.cells = ~hidden

    def run(self, packed_stages: int, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> list[Tensor]:
        """Maps, then the gradients of the image and of every parameter."""
        self.encoder.zero_grad()
        image = self.image.clone().requires_grad_()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with autocast, self.mask.visible(self.cells):
            sparse_maps = encode_masked(self.encoder, image, self.mask, packed_stages, checkpointing)
            maps = [whole(m, self.mask) for m in sparse_maps]
        assert [m.packed for m in sparse_maps] == [i < packed_stages for i in range(len(maps))]
        generator = torch.Generator().manual_seed(3)
        gradients = [torch.randn(m.shape, generator=generator).to(m.dtype) for m in maps]
        torch.autograd.backward(maps, gradients)
        return [*(m.detach() for m in maps), image.grad, *[p.grad for p in self.encoder.parameters()]]


def replace_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.LeakyReLU):
            setattr(module, name, nn.SiLU())
        replace_activations(child)


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the norm of each tensor; what is 0 but for rounding, relative to the largest gradient."""
    largest = max(float(e.norm()) for e in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        # The gradient of a bias in front of a normalisation is 0 on paper: nothing to be relative to.
        vanishes = theirs.dim() == 1 and float(theirs.norm()) < 1e-5 * largest
        size = largest if vanishes else float(theirs.norm())
        assert float((ours - theirs).norm()) <= tolerance * size


NETWORKS = [("plans", "plain"), ("plans", "residual"), ("STUNet_small", "stunet")]


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize(("channels", "batch"), [(1, 1), (3, 3)])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_blocks_equal_masked_forward_and_backward(name, kind, strides, channels, batch, visible):
    case = Case(name, kind, strides, channels, batch, VISIBLE[visible], smooth=True)
    # A normalisation over the three single voxels of the coarse map amplifies rounding, differently on each processor.
    amplified = (strides, visible) == ("coarser than the grid", "95 %")
    if amplified:
        case.encoder.double()
        case.image = case.image.double()
    packable, reason = packable_stages(case.encoder, case.maps, CELL)
    assert packable == (4 if len(case.maps) == 5 else len(case.maps)), reason
    expected = case.run(0)
    tolerance = 1e-9 if amplified else 1e-5
    assert_equal(case.run(packable), expected, tolerance)
    assert_equal(case.run(packable - 1), expected, tolerance)


@pytest.mark.parametrize("visible", ["60 %", "95 %"])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_blocks_equal_masked_in_double_precision_with_the_networks_own_activation(name, kind, strides, visible):
    case = Case(name, kind, strides, 2, 2, VISIBLE[visible])
    case.encoder.double()
    case.image = case.image.double()
    assert_equal(case.run(packable_stages(case.encoder, case.maps, CELL)[0]), case.run(0), 1e-11)


@pytest.mark.parametrize("visible", ["60 %", "95 %"])
@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_blocks_match_masked_within_the_rounding_of_bfloat16(name, kind, visible):
    case = Case(name, kind, "anisotropic", 1, 2, VISIBLE[visible])
    exact = case.run(0)
    masked, blocks = case.run(0, torch.bfloat16), case.run(len(case.maps), torch.bfloat16)
    scale = max(float(e.norm()) / e.numel() ** 0.5 for e in exact)
    for ours, theirs, truth in zip(blocks, masked, exact, strict=True):
        floor = 1e-2 * scale * truth.numel() ** 0.5
        error, accepted = ((x.float() - truth).norm() for x in (ours, theirs))
        assert error <= 1.5 * accepted + floor


def with_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm3d):
            setattr(module, name, nn.BatchNorm3d(child.num_features))
        with_batch_norm(child)


@pytest.mark.parametrize("packed", [0, 2])
def test_checkpointing_moves_running_statistics_once(packed):
    found = []
    for checkpointing in (False, True):
        case = Case("STUNet_small", "stunet", "isotropic", 1, 2, 20)
        with_batch_norm(case.encoder)
        convert(case.encoder, case.mask)
        tensors = case.run(packed, checkpointing=checkpointing)
        found.append([*tensors, *[b.clone() for b in case.encoder.buffers()]])
    assert len(found[0]) > len(tensors)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_checkpointed_pass_can_be_gone_back_through_twice():
    case = Case("plans", "plain", "isotropic", 1, 1, 20)
    with case.mask.visible(case.cells):
        maps = encode_masked(case.encoder, case.image, case.mask, 2, checkpointing=True)
        total = whole(maps[2], case.mask).square().sum()
    first, second = (
        torch.autograd.grad(total, list(case.encoder.parameters()), retain_graph=True, allow_unused=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)


@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_checkpointing_changes_nothing(name, kind):
    case = Case(name, kind, "isotropic", 1, 2, 20)
    for packed in (0, 2):
        for ours, theirs in zip(case.run(packed, checkpointing=True), case.run(packed), strict=True):
            assert torch.equal(ours, theirs)


def test_samples_with_different_numbers_of_visible_cells_are_computed_masked():
    case = Case("plans", "plain", "isotropic", 1, 2, 20)
    case.cells[0] = True
    expected = case.run(0)
    with case.mask.visible(case.cells):
        maps = encode_masked(case.encoder, case.image, case.mask, 3)
        assert not any(m.packed for m in maps)
        with pytest.raises(ValueError, match="different numbers of visible cells"):
            _ = case.mask.packing
    assert torch.equal(maps[2].values, expected[2])


def axis() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Kernel, stride, cells and voxels per cell that one axis of a convolution may have."""
    return st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.integers(1, 3), st.sampled_from([2, 4]))


@settings(max_examples=60, deadline=None)
@given(axes=st.tuples(axis(), axis(), axis()), batch=st.integers(1, 3), data=st.data())
def test_any_convolution_on_any_grid_equals_the_masked_dense_one(axes, batch, data):
    kernel, stride, grid, cell = (tuple(a[i] for a in axes) for i in range(4))
    cells = prod(grid)
    visible = data.draw(st.integers(1, cells), "visible")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999), "seed"))
    seen = ~random_mask(batch, grid, cells - visible, generator)
    geometry = conv_geometry(kernel, stride, tuple(k // 2 for k in kernel))
    assert geometry is not None
    size = tuple(g * c for g, c in zip(grid, cell, strict=True))
    x = torch.randn(batch, 2, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, *kernel, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    x = (x * repeat_to(seen, size).unsqueeze(1)).requires_grad_()
    dense = functional.conv3d(x, weight, bias, stride, tuple(k // 2 for k in kernel))
    dense = dense * repeat_to(seen, tuple(dense.shape[2:])).unsqueeze(1)
    packing = Packing(seen, visible)
    packed = packing.unpack(block_conv(packing.pack(x), weight, bias, geometry, packing))
    torch.testing.assert_close(packed, dense)
    gradient = torch.randn(dense.shape, generator=generator, dtype=torch.float64)
    inputs = (x, weight, bias)
    expected = torch.autograd.grad(dense, inputs, gradient)
    found = torch.autograd.grad(packed, inputs, gradient)
    shown = repeat_to(seen, size).unsqueeze(1)
    torch.testing.assert_close(found[0], expected[0] * shown)
    torch.testing.assert_close(found[1:], expected[1:])


@settings(max_examples=40, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 4)] * 3), cell=st.tuples(*[st.integers(1, 3)] * 3), data=st.data())
def test_unpacking_inverts_packing_and_leaves_zeros(grid, cell, data):
    cells = prod(grid)
    visible = data.draw(st.integers(1, cells), "visible")
    seen = ~random_mask(2, grid, cells - visible, torch.Generator().manual_seed(0))
    size = tuple(g * c for g, c in zip(grid, cell, strict=True))
    volume = torch.randn(2, 3, *size)
    packing = Packing(seen, visible)
    packed = packing.pack(volume)
    assert packed.shape == (2, 3, visible * cell[0], cell[1], cell[2])
    assert torch.equal(packing.unpack(packed), volume * repeat_to(seen, size).unsqueeze(1))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (2, 2, 0), (3, 3, 0)])
def test_other_kernels_that_keep_cells_whole_are_computed_too(kernel, stride, padding):
    geometry = conv_geometry((kernel,) * 3, (stride,) * 3, (padding,) * 3)
    assert geometry is not None
    seen = ~random_mask(1, (3, 3, 3), 12, torch.Generator().manual_seed(0))
    size = (18, 18, 18)
    x = (torch.randn(1, 2, *size) * repeat_to(seen, size).unsqueeze(1)).requires_grad_()
    weight = torch.randn(2, 2, kernel, kernel, kernel)
    dense = functional.conv3d(x, weight, None, stride, padding)
    dense = dense * repeat_to(seen, tuple(dense.shape[2:])).unsqueeze(1)
    packing = Packing(seen, 15)
    packed = packing.unpack(block_conv(packing.pack(x), weight, None, geometry, packing))
    torch.testing.assert_close(packed, dense, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(dense)
    found, expected = (torch.autograd.grad(y, x, gradient)[0] for y in (packed, dense))
    torch.testing.assert_close(found, expected * repeat_to(seen, size).unsqueeze(1), atol=1e-5, rtol=1e-5)


TRANSPOSED = [(4, 2, 1, 0), ((1, 4, 4), (1, 2, 2), (0, 1, 1), 0), (2, 2, 0, 0), (3, 2, 1, 1), (1, 2, 0, 1)]
"""Kernel, stride, padding and output padding."""


def is_shown(seen: Tensor, shape: torch.Size) -> Tensor:
    return repeat_to(seen, tuple(shape[2:])).unsqueeze(1)


def differentiated(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    return (y.detach(), *torch.autograd.grad(y, inputs, gradient))


@pytest.mark.parametrize("cell", [(4, 4, 4), (1, 2, 3)])
@pytest.mark.parametrize(("kernel", "stride", "padding", "output_padding"), TRANSPOSED)
def test_going_up_with_packed_cells_equals_the_masked_dense_way(kernel, stride, padding, output_padding, cell):
    torch.manual_seed(0)
    grid = (3, 2, 3)
    layer = nn.ConvTranspose3d(2, 3, kernel, stride, padding, output_padding).double()
    seen = ~random_mask(2, grid, 10, torch.Generator().manual_seed(0))
    x = torch.randn(2, 2, *(g * c for g, c in zip(grid, cell, strict=True)), dtype=torch.float64)
    x = (x * is_shown(seen, x.shape)).requires_grad_()
    inputs = [x, *layer.parameters()]
    mask = SparseMask()
    convert(layer, mask)
    with mask.visible(seen):
        expected = differentiated(layer(x), inputs)
        with mask.packed_layout():
            packed = layer(mask.packing.pack(x))
        found = differentiated(mask.packing.unpack(packed), inputs)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1] * is_shown(seen, x.shape))
    torch.testing.assert_close(found[2:], expected[2:])


@pytest.mark.parametrize("cell", [(4, 4, 4), (1, 2, 3)])
@pytest.mark.parametrize("window", [*TRANSPOSED, (3, 1, 1), (1, 1, 0)])
def test_a_convolution_of_some_cells_of_a_whole_map_equals_the_dense_one_there(window, cell):
    torch.manual_seed(0)
    grid = (3, 2, 3)
    kind, alone = (nn.Conv3d, conv_at) if len(window) == 3 else (nn.ConvTranspose3d, conv_transpose_at)
    layer = kind(2, 3, *window).double()
    packing = Packing(~random_mask(2, grid, 10, torch.Generator().manual_seed(0)), 8)
    x = torch.randn(2, 2, *(g * c for g, c in zip(grid, cell, strict=True)), dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = differentiated(packing.pack(layer(x)), inputs)
    torch.testing.assert_close(differentiated(alone(layer, x, packing), inputs), expected)


def test_a_transposed_convolution_that_blocks_cannot_compute_is_refused():
    mask, layer = SparseMask(), nn.ConvTranspose3d(1, 1, 7, 3, 2)
    assert geometry_of(layer) is None
    convert(layer, mask)
    cells = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    with mask.visible(cells), mask.packed_layout(), pytest.raises(ValueError, match="cannot work on packed cells"):
        layer(torch.zeros(1, 1, 16, 2, 2))


@pytest.mark.parametrize(
    ("layer", "packable"),
    [
        (nn.Conv3d(2, 2, (1, 3, 3), padding=(0, 1, 1)), True),
        (nn.Conv3d(2, 2, 3, 2, 1), True),
        (nn.AvgPool3d(2, 2), True),
        (nn.Conv3d(2, 2, 5, padding=2), False),
        (nn.Conv3d(2, 2, 3, padding=2, dilation=2), False),
        (nn.Conv3d(2, 2, 3, padding=1, groups=2), False),
        (nn.Conv3d(2, 2, 3, padding="same"), False),
        (nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"), False),
        (nn.MaxPool3d(3, 2, 1), False),
        (nn.ConvTranspose3d(2, 2, 1), False),
    ],
)
def test_a_stage_with_a_layer_that_blocks_cannot_compute_stays_masked(layer, packable):
    stride = (2, 2, 2) if layer.stride in (2, (2, 2, 2)) else (1, 1, 1)
    encoder = StagedEncoder([nn.Conv3d(1, 2, 3, padding=1), layer])
    maps = [FeatureMap(2, (1, 1, 1)), FeatureMap(2, stride)]
    found, reason = packable_stages(encoder, maps, CELL)
    assert found == (2 if packable else 1)
    assert packable or (reason.startswith("stage 1 has ") and type(layer).__name__ in reason)


def test_the_rule_keeps_stages_with_single_voxels_masked():
    maps = [FeatureMap(32, (s, s, s)) for s in (1, 2, 4, 8, 16)]
    assert rule_of_thumb(maps, (16, 16, 16), 5, 0.6) == 4
    assert rule_of_thumb(maps, (16, 16, 16), 2, 0.6) == 2
    assert rule_of_thumb(maps, (16, 16, 16), 5, 0.1) == 0, "little is masked"
