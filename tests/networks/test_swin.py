"""Swin UNETR, against MONAI's own network."""

import sys
from functools import partial

import pytest
import torch
from methods.cells import build as method_on

from ssl_pretrain.methods import MethodSetup, SimMIM, SimMIMConfig
from ssl_pretrain.methods.masking import Hidden
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.swin import CORNERS, PatchMerging, SwinUNETR
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint
from ssl_pretrain.transfer.load import load_pretrained

nets = pytest.importorskip("monai.networks.nets", reason="MONAI is an extra: pip install anatomask[monai]")

PATCH = (32, 32, 64)
TINY = {"feature_size": 12, "depths": (1, 2, 1, 1), "heads": 1, "window": 3}
STRIDES = [(n, n, n) for n in (1, 2, 4, 8, 16, 32)]


def build(channels=1, classes=3, patch=PATCH, **settings):
    torch.manual_seed(1)
    settings = {**TINY, **settings}
    sizes = {"input_channels": channels, "num_classes": classes, "patch": patch}
    return build_backbone("SwinUNETR", architecture={}, settings=settings, **sizes).eval()


def theirs(channels=1, classes=3, **options):
    sizes = {"in_channels": channels, "out_channels": classes, "feature_size": 12, "window_size": 3}
    return nets.SwinUNETR(depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), **sizes, **options).eval()


@pytest.fixture
def image():
    return torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("downsample", CORNERS)
def test_the_network_is_monais(image, downsample, normalize):
    made = build(downsample=downsample, normalize=normalize)
    # MONAI's own merging of today is not the one that its published weights were trained with.
    merging = downsample if downsample == "mergingv2" else partial(PatchMerging, corners=CORNERS[downsample])
    monai = theirs(downsample=merging, normalize=normalize)
    monai.load_state_dict(made.network.state_dict())
    with torch.no_grad():
        assert torch.equal(made.network(image), monai(image))
        seen, *hidden = made.encode(image)
        assert seen is image
        assert all(map(torch.equal, hidden, monai.swinViT(image, normalize)))


def test_merging_of_the_published_weights_takes_two_neighbours_twice_and_two_never():
    """Each of the eight tokens of a cell is found again by its number."""
    numbers = torch.arange(8.0).view(1, 2, 2, 2, 1)
    for name, expected in (("merging", [0, 4, 2, 1, 5, 2, 1, 7]), ("mergingv2", list(range(8)))):
        module = PatchMerging(1, torch.nn.LayerNorm, 3, CORNERS[name])
        module.norm = torch.nn.Identity()
        module.reduction = torch.nn.Identity()
        assert module(numbers).flatten().tolist() == expected


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_keys_name_what_they_say(channels):
    made = build(channels)
    assert [m.stride for m in made.feature_maps] == STRIDES
    assert [m.channels for m in made.features] == [12, 24, 48, 96, 192]
    state = made.network.state_dict()
    seeing = [key for key, value in state.items() if key.startswith(("swinViT.patch", "encoder1.")) and value.ndim == 5]
    image_sized = {f"{key}.weight" for key in made.input_projection_keys}
    assert image_sized <= set(seeing)
    assert len(image_sized) == (2 if channels == 12 else 3), "there is no projection of a skip of as many channels"
    assert all(state[key].shape[1] == channels for key in image_sized)
    assert all(key.startswith("swinViT.") for key in made.encoder_keys)
    head = {key for key in state if key.startswith("out.")}
    assert {*made.encoder_keys, *made.decoder_keys, *head} == set(state)


def test_maps_have_the_declared_sizes_for_any_multiple_of_32():
    made = build(2)
    for size in (PATCH, (64, 32, 32)):
        with torch.no_grad():
            maps = made.encode(torch.zeros(1, 2, *size))
        for declared, found in zip(made.feature_maps, maps, strict=True):
            grid = tuple(n // step for n, step in zip(size, declared.stride, strict=True))
            assert found.shape == (1, declared.channels, *grid)


def test_drop_path_acts_in_training_alone_and_has_no_tensors(image):
    made = build()
    before, keys = made.encode(image)[-1], list(made.network.state_dict())
    made.set_drop_path(0.9)
    assert torch.equal(made.encode(image)[-1], before)
    assert list(made.network.state_dict()) == keys
    torch.manual_seed(0)
    assert not torch.equal(made.train().encode(image)[-1], before)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_decoder_sees_the_same_at_fine_tuning_as_at_pretraining(image, normalize, tmp_path):
    """Published weights of disruptive autoencoders met other numbers: there, only fine-tuning normalised."""
    donor = build(normalize=normalize)
    ids = {id(p) for p in donor.network.parameters()}
    provenance = Provenance("MAE", "SwinUNETR", {}, {"configurations": {}}, "3d_fullres", PATCH, (), 1, 0)
    torch.save(build_checkpoint(donor, ids, provenance), tmp_path / "checkpoint_final.pth")
    # What the plans say is all that fine-tuning knows.
    network = SwinUNETR(1, 5, **donor.architecture_kwargs).eval()
    load_pretrained(network, tmp_path / "checkpoint_final.pth")
    seen = []
    for one in (donor.network, network):
        for name in ("encoder2", "encoder10", "decoder1"):
            one.get_submodule(name).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        donor.dense(image)
        network(image)
    assert len(seen) == 6
    assert all(map(torch.equal, seen[:3], seen[3:]))
    spread = seen[0].var(1, unbiased=False)
    assert torch.allclose(spread, torch.ones_like(spread), atol=1e-2) == normalize


def test_plans_that_name_it_give_it_back():
    made = build(downsample="mergingv2", normalize=False)
    arch = {"network_class_name": made.architecture, "arch_kwargs": made.architecture_kwargs}
    again = build_backbone("plans", architecture=arch, input_channels=1, num_classes=3, patch=PATCH)
    shapes = {k: v.shape for k, v in made.network.state_dict().items()}
    assert {k: v.shape for k, v in again.network.state_dict().items()} == shapes
    assert again.architecture_kwargs == made.architecture_kwargs
    assert not again.encoder.normalize


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = SwinUNETR(1, 14)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 62.19
    assert round(sum(p.numel() for p in network.swinViT.parameters()) / 1e6, 2) == 8.06


def test_a_masked_cell_is_seen_as_the_token_and_as_zero():
    """The tokens of a masked cell are equal, whatever the image; those of others are those of the image."""
    made = method_on("SimMIM", "SwinUNETR").eval()
    network, seen = made.network, []
    network.backbone.encoder.stages[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network.backbone.network.encoder1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = torch.randn(1, 2, *made.patch)
    mask = torch.zeros(1, *made.grid, dtype=torch.bool)
    mask[0, 0, 0, 1] = True
    with torch.no_grad():
        made.predict(image, Hidden(mask, 1))
        plain = network.backbone.embed(image)
    tokens, full = seen
    there = torch.zeros_like(tokens, dtype=torch.bool)
    there[:, :, :8, :8, 8:16] = True
    assert made.cell == (16, 16, 16)
    expected = network.mask_token.view(1, -1, 1, 1, 1).expand_as(tokens)
    assert torch.equal(tokens, torch.where(there, expected, plain))
    assert not full[:, :, :16, :16, 16:32].any()
    assert torch.equal(full[:, :, 16:], image[:, :, 16:])


def test_a_mask_cell_of_half_a_token_is_refused():
    setup = MethodSetup(backbone=build(), patch=PATCH)
    with pytest.raises(ValueError, match=r"Mask cell \(16, 16, 1\) does not fit .* along W"):
        SimMIM(SimMIMConfig(mask_cell=(16, 16, 1)), setup)
    assert SimMIM(SimMIMConfig(mask_cell=(8, 8, 32)), setup).grid == (4, 4, 2)


def test_a_patch_that_is_no_multiple_of_32_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"along D, H\. Nearest patch sizes that work: \(32, 32, 64\) and \(64, 64, 64"
    ):
        build(patch=(40, 56, 64))
    with pytest.raises(ValueError, match=r"along W\. Nearest patch sizes that work: \(32, 32, 32\) and \(32, 32, 64"):
        build().network(torch.zeros(1, 1, 32, 32, 40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 13, "heads": 2}, "feature_size 13 of a Swin UNETR must be a multiple of its 2 heads"),
        ({"depths": (2, 2)}, r"one number, or one for each of its 4 stages, got \(2, 2\)"),
        ({"depths": (2, 0, 2, 2)}, "depths must be a whole number of at least 1, got 0"),
        ({"downsample": "pooling"}, "downsample must be one of merging, mergingv2, got 'pooling'"),
        ({"normalize": 1}, "normalize must be true or false, got 1"),
        ({"width": 2}, r"Network SwinUNETR has no setting 'width'\. It has feature_size, depths, heads, window"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_without_monai_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(ValueError, match=r"SwinUNETR is made of MONAI's parts.*: pip install anatomask\[monai\]"):
        build()
