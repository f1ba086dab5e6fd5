"""Three claims for every layer: its dense parent when all is visible, no mixing of samples, blind to masked values."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_pretrain.functional.masking import random_mask, repeat_to
from ssl_pretrain.sparse import SparseMask, convert

GRID, SHAPE, CHANNELS = (2, 3, 2), (8, 12, 8), 6


def channels_last(layer: nn.Module) -> nn.Module:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.movedim(1, -1)).movedim(-1, 1)

    return Wrapped()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv 3": lambda: nn.Conv3d(CHANNELS, 5, 3, padding=1),
    "conv 1": lambda: nn.Conv3d(CHANNELS, 5, 1),
    "conv 3 stride 2": lambda: nn.Conv3d(CHANNELS, 5, 3, stride=2, padding=1),
    "conv anisotropic": lambda: nn.Conv3d(CHANNELS, 5, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
    "conv depth-wise 5": lambda: nn.Conv3d(CHANNELS, CHANNELS, 5, padding=2, groups=CHANNELS),
    "conv transposed": lambda: nn.ConvTranspose3d(CHANNELS, 5, 4, stride=2, padding=1),
    "conv transposed anisotropic": lambda: nn.ConvTranspose3d(CHANNELS, 5, (1, 4, 4), (1, 2, 2), (0, 1, 1)),
    "max pool": lambda: nn.MaxPool3d(2),
    "max pool overlapping": lambda: nn.MaxPool3d(3, stride=2, padding=1),
    "average pool": lambda: nn.AvgPool3d(2),
    "average pool overlapping": lambda: nn.AvgPool3d(3, stride=2, padding=1),
    "global average pool": lambda: nn.AdaptiveAvgPool3d(1),
    "instance norm": lambda: nn.InstanceNorm3d(CHANNELS, affine=True),
    "instance norm plain": lambda: nn.InstanceNorm3d(CHANNELS),
    "group norm": lambda: nn.GroupNorm(3, CHANNELS),
    "group norm, groups = channels": lambda: nn.GroupNorm(CHANNELS, CHANNELS),
    "group norm plain": lambda: nn.GroupNorm(2, CHANNELS, affine=False),
    "layer norm": lambda: channels_last(nn.LayerNorm(CHANNELS)),
    "linear": lambda: channels_last(nn.Linear(CHANNELS, 4)),
    "batch norm": lambda: nn.BatchNorm3d(CHANNELS),
    "batch norm plain": lambda: nn.BatchNorm3d(CHANNELS, affine=False),
    "batch norm, no running statistics": lambda: nn.BatchNorm3d(CHANNELS, track_running_stats=False),
}
MIXES_SAMPLES = {name for name in LAYERS if name.startswith("batch norm")}


def build(name: str) -> tuple[nn.Module, nn.Module, SparseMask]:
    """The same layer dense and masked, with random affine parameters."""
    torch.manual_seed(0)
    dense, sparse = LAYERS[name](), LAYERS[name]()
    for parameter in dense.parameters():
        nn.init.normal_(parameter)
    sparse.load_state_dict(dense.state_dict())
    mask = SparseMask()
    convert(sparse, mask)
    return dense, sparse, mask


def image(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, CHANNELS, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def some_visible(batch: int = 3, seed: int = 2) -> Tensor:
    return ~random_mask(batch, GRID, 7, torch.Generator().manual_seed(seed))


def run(layer: nn.Module, mask: SparseMask, x: Tensor, cells: Tensor) -> Tensor:
    with mask.visible(cells):
        return layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_its_dense_parent_when_all_is_visible(name):
    dense, sparse, mask = build(name)
    x, y = image().requires_grad_(), image().requires_grad_()
    ours, theirs = run(sparse, mask, x, torch.ones(3, *GRID, dtype=torch.bool)), dense(y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    for a, b in zip(sparse.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(a, b)


TRUSTS_ITS_INPUT = {name for name in LAYERS if name.startswith("conv") or name == "linear"}
"""Layers that rely on masked voxels being 0; that whole networks are blind is tested with the methods."""


@pytest.mark.parametrize("name", sorted(set(LAYERS) - TRUSTS_ITS_INPUT))
def test_is_blind_to_masked_values(name):
    _, sparse, mask = build(name)
    cells, x = some_visible(), image()
    seen = repeat_to(cells, SHAPE).unsqueeze(1)
    clean = x * seen
    garbage = torch.where(seen, x, torch.full_like(x, 77.0))
    torch.testing.assert_close(run(sparse, mask, garbage, cells), run(sparse, mask, clean, cells))


@pytest.mark.parametrize("name", LAYERS)
def test_masked_voxels_are_exactly_zero(name):
    _, sparse, mask = build(name)
    cells = some_visible()
    x = image() * repeat_to(cells, SHAPE).unsqueeze(1)
    y = run(sparse, mask, x, cells)
    if y.shape[2:].numel() == 1:
        assert torch.isfinite(y).all()
        return
    hidden = ~repeat_to(cells, tuple(y.shape[2:])).unsqueeze(1).expand_as(y)
    assert torch.equal(y[hidden], torch.zeros_like(y[hidden]))
    assert y[~hidden].abs().max() > 0


@pytest.mark.parametrize("name", sorted(set(LAYERS) - MIXES_SAMPLES))
def test_never_mixes_samples(name):
    _, sparse, mask = build(name)
    cells, x = some_visible(), image()
    x = x * repeat_to(cells, SHAPE).unsqueeze(1)
    together = run(sparse, mask, x, cells)
    alone = torch.cat([run(sparse, mask, x[i : i + 1], cells[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@given(masked=st.integers(1, 11), seed=st.integers(0, 100), affine=st.booleans())
@settings(deadline=None, max_examples=25)
def test_instance_norm_uses_the_visible_voxels_of_each_sample(masked, seed, affine):
    layer = nn.InstanceNorm3d(CHANNELS, affine=affine)
    mask = SparseMask()
    convert(layer, mask)
    cells = ~random_mask(2, GRID, masked, torch.Generator().manual_seed(seed))
    x = image(2, seed)
    y = run(layer, mask, x, cells)
    for b in range(2):
        seen = repeat_to(cells[b : b + 1], SHAPE)[0]
        visible = x[b][:, seen].double()
        expected = (visible - visible.mean(1, keepdim=True)) / (
            visible.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(y[b][:, seen].double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_masked_norms_are_right():
    """Against finite differences, in double precision."""
    for name in ("instance norm", "group norm", "batch norm"):
        _, sparse, mask = build(name)
        sparse.double()
        cells = some_visible(2)
        seen = repeat_to(cells, (2, 3, 2)).unsqueeze(1)
        x = torch.randn(2, CHANNELS, 2, 3, 2, dtype=torch.double, requires_grad=True)

        def forward(value: Tensor, layer=sparse, cells=cells, mask=mask) -> Tensor:
            with mask.visible(cells):
                return layer(value)

        assert torch.autograd.gradcheck(forward, (x * seen,))


def test_batch_norm_averages_over_the_visible_voxels_of_the_batch_and_keeps_running_statistics():
    _, sparse, mask = build("batch norm plain")
    cells, x = some_visible(), image()
    run(sparse, mask, x, cells)
    seen = repeat_to(cells, SHAPE)
    visible = x.movedim(1, 0)[:, seen]
    torch.testing.assert_close(sparse.running_mean, 0.1 * visible.mean(1))
    torch.testing.assert_close(sparse.running_var, 0.9 + 0.1 * visible.var(1))
    assert int(sparse.num_batches_tracked) == 1
    sparse.eval()
    y = run(sparse, mask, x, cells)
    hidden = ~seen.unsqueeze(1).expand_as(y)
    assert torch.equal(y[hidden], torch.zeros_like(y[hidden]))


def test_a_map_coarser_than_the_grid_is_all_visible():
    _, sparse, mask = build("instance norm")
    dense = nn.InstanceNorm3d(CHANNELS, affine=True)
    dense.load_state_dict(sparse.state_dict())
    small = image()[:, :, :2, :2, :2]
    torch.testing.assert_close(run(sparse, mask, small, some_visible()), dense(small))


def test_one_visible_voxel_gives_the_bias():
    _, sparse, mask = build("instance norm")
    cells = torch.zeros(1, *GRID, dtype=torch.bool)
    cells[0, 0, 0, 0] = True
    y = run(sparse, mask, torch.randn(1, CHANNELS, *GRID), cells)
    torch.testing.assert_close(y[0, :, 0, 0, 0], sparse.bias)


def test_bfloat16_keeps_its_dtype_and_its_mean():
    """A mean far from 0, which bfloat16 could not hold, must not shift the result."""
    _, sparse, mask = build("instance norm plain")
    cells, x = some_visible(), (image() + 60.0).bfloat16()
    full, half = run(sparse, mask, x.float(), cells), run(sparse, mask, x, cells)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=1e-2, atol=1e-2)
    assert half.float().mean((2, 3, 4)).abs().max() < 1e-3


@pytest.mark.parametrize("name", [n for n in LAYERS if "norm" in n and "layer" not in n])
def test_an_activation_in_place_may_follow(name):
    _, sparse, mask = build(name)
    x = image().requires_grad_()
    run(nn.Sequential(sparse, nn.LeakyReLU(inplace=True)), mask, x, some_visible()).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_without_a_mask_a_layer_refuses_to_run():
    _, sparse, _ = build("conv 3")
    with pytest.raises(RuntimeError, match=r"ran without a mask\. Wrap the forward pass"):
        sparse(image())


def test_the_wrong_batch_size_is_not_broadcast():
    _, sparse, mask = build("conv 3")
    with pytest.raises(RuntimeError, match="mask is for 1 samples, the feature map has 3"):
        run(sparse, mask, image(), some_visible(1))


def test_masks_do_not_nest_and_are_gone_after_an_error():
    mask = SparseMask()
    with mask.visible(some_visible()), pytest.raises(RuntimeError, match="one forward pass at a time"):  # noqa: SIM117
        with mask.visible(some_visible()):
            pass
    with pytest.raises(KeyError), mask.visible(some_visible()):
        raise KeyError
    with pytest.raises(RuntimeError, match="without a mask"):
        mask.level(3, SHAPE, torch.float32)


def test_a_mask_must_be_boolean():
    with (
        pytest.raises(ValueError, match=r"must be boolean \(B, gd, gh, gw\), got torch.float32"),
        SparseMask().visible(torch.ones(1, 2, 2, 2)),
    ):
        pass
