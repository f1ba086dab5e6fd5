"""ViT-B/16 in UNETR, against MONAI's own network."""

import sys

import pytest
import torch

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.tokens import take_tokens

pytest.importorskip("monai", reason="MONAI is an extra: pip install anatomask[monai]")

PATCH, GRID, TOKENS = (16, 32, 48), (1, 2, 3), 6
TINY = {"width": 24, "depth": 4, "heads": 2}


def build(channels=2, classes=3, patch=PATCH, **settings):
    torch.manual_seed(1)
    made = build_backbone(
        "ViT_B16",
        architecture={},
        input_channels=channels,
        num_classes=classes,
        patch=patch,
        settings={**TINY, **settings},
    )
    with torch.no_grad():
        # As initialised, positions change little: make them count.
        made.network.vit.patch_embedding.position_embeddings.normal_()
    return made.eval()


@pytest.fixture
def backbone():
    return build()


@pytest.fixture
def image():
    return torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def keep():
    return torch.tensor([[4, 0, 3], [1, 5, 2]])


@pytest.mark.parametrize("channels", [1, 2])
def test_with_twelve_blocks_the_network_is_monais(channels):
    from monai.networks.nets import UNETR

    made, image = build(channels, depth=12), torch.randn(1, channels, *PATCH)
    theirs = UNETR(channels, 3, PATCH, 16, 24, 96, 2, proj_type="conv").eval()
    keys = theirs.load_state_dict(made.network.state_dict(), strict=False)
    # What MONAI's blocks keep for attention to a second sequence.
    assert not keys.unexpected_keys
    assert all("cross_attn" in key for key in keys.missing_keys)
    with torch.no_grad():
        assert torch.equal(made.network(image), theirs(image))
        assert torch.equal(made.encode_tokens(made.embed(image)), theirs.vit(image)[0])


def test_tokens_are_those_of_monais_vit_when_nothing_is_masked(backbone, image):
    vit = backbone.network.vit
    with torch.no_grad():
        tokens, hidden = vit(image)
        seen, first, second, third, last = backbone.encode(image)
    assert seen is image
    for ours, theirs in zip((first, second, third, last), (hidden[1], hidden[2], hidden[3], tokens), strict=True):
        assert torch.equal(ours, backbone.tokens_to_map(theirs))


def test_declared_feature_maps_are_what_the_encoder_returns(backbone, image):
    maps = backbone.encode(image)
    for declared, found in zip(backbone.feature_maps, maps, strict=True):
        assert found.shape[1] == declared.channels
        assert tuple(p // n for p, n in zip(PATCH, found.shape[2:], strict=True)) == declared.stride


def test_positions_are_added_after_tokens_were_replaced(backbone, image):
    """In SimMIM3D they were not: all masked tokens came out the same."""
    tokens = backbone.embed(image)
    assert torch.equal(tokens + 0.0, backbone.network.vit.patch_embedding.patch_embeddings(image).flatten(2).mT)
    masked = torch.tensor([True, True, False, True, True, False])[None, :, None]
    encoded = backbone.encode_tokens(torch.where(masked, torch.zeros(24), tokens))
    of_masked = encoded[:, masked[0, :, 0]]
    assert all(not torch.allclose(of_masked[:, 0], of_masked[:, i], atol=1e-2) for i in range(1, 4))


def encoded_alone(made, image, numbers):
    vit = made.network.vit
    x = (made.embed(image)[:, numbers] + vit.patch_embedding.position_embeddings[:, numbers]).contiguous()
    for block in vit.blocks:
        x = block(x)
    return vit.norm(x)


def test_kept_tokens_have_the_features_of_a_network_given_only_them(backbone, image, keep):
    tokens = backbone.embed(image)
    kept = backbone.encode_tokens(tokens, keep)
    for sample, numbers in enumerate(keep):
        alone = encoded_alone(backbone, image[sample : sample + 1], numbers)
        torch.testing.assert_close(kept[sample : sample + 1], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept, take_tokens(backbone.encode_tokens(tokens), keep), atol=1e-2)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(backbone.encode_tokens(tokens, keep[:, order]), kept[:, order], rtol=1e-5, atol=1e-6)
    everything = torch.arange(TOKENS).expand(2, -1)
    assert torch.equal(backbone.encode_tokens(tokens, everything), backbone.encode_tokens(tokens))


def test_every_parameter_of_the_network_gets_a_gradient(image):
    """Also where MONAI's own network has parameters that nothing trains."""
    made = build(depth=12).train()
    made.network(image).square().mean().backward()
    assert [name for name, parameter in made.network.named_parameters() if parameter.grad is None] == []


def test_keys_name_what_they_say(backbone):
    state = backbone.network.state_dict()
    (position,) = backbone.position_keys
    assert state[position].shape == (1, TOKENS, 24)
    assert (backbone.token, backbone.token_grid, backbone.width) == ((16, 16, 16), GRID, 24)
    assert backbone.anatomy.positions.grid == GRID
    for key in backbone.input_projection_keys:
        assert state[f"{key}.weight"].shape[1] == 2
    seeing = [k for k, v in state.items() if v.ndim == 5 and v.shape[1] == 2]
    assert sorted(f"{key}.weight" for key in backbone.input_projection_keys) == sorted(seeing)
    assert all(key.startswith("vit.") for key in backbone.encoder_keys)
    head = {key for key in state if key.startswith("out.")}
    assert {*backbone.encoder_keys, *backbone.decoder_keys, *head} == set(state)
    backbone.network.get_submodule(backbone.encoder_key)
    backbone.network.get_submodule(backbone.stem_key)


def test_an_image_with_as_many_channels_as_the_decoder_has_no_projection_to_name():
    made = build(channels=16)
    assert made.input_projection_keys == ("vit.patch_embedding.patch_embeddings", "encoder1.layer.conv1.conv")


def test_drop_path_acts_in_training_alone_and_has_no_tensors(backbone, image):
    before, keys = backbone.encode(image)[-1], list(backbone.network.state_dict())
    backbone.set_drop_path(0.9)
    assert torch.equal(backbone.encode(image)[-1], before)
    assert list(backbone.network.state_dict()) == keys
    torch.manual_seed(0)
    assert not torch.equal(backbone.train().encode(image)[-1], before)


def test_the_published_size_is_vit_b():
    from ssl_pretrain.networks.vit import UNETR

    with torch.device("meta"):
        network = UNETR(1, 2, (96, 96, 96))
    vit = sum(p.numel() for p in network.vit.parameters())
    blocks = 12 * (3 * 768**2 + 768**2 + 768 + 2 * 768 * 3072 + 768 + 3072 + 4 * 768)
    assert vit == blocks + 16**3 * 768 + 768 + 216 * 768 + 2 * 768
    assert network.taps == (3, 6, 9)


def test_plans_that_name_it_give_it_back(backbone):
    arch = {"network_class_name": backbone.architecture, "arch_kwargs": backbone.architecture_kwargs}
    assert arch == {"network_class_name": "ssl_pretrain.networks.vit.UNETR", "arch_kwargs": TINY}
    again = build_backbone("plans", architecture=arch, input_channels=2, num_classes=3, patch=PATCH)
    shapes = {k: v.shape for k, v in backbone.network.state_dict().items()}
    assert {k: v.shape for k, v in again.network.state_dict().items()} == shapes


def test_a_patch_that_is_no_multiple_of_16_names_the_nearest():
    with pytest.raises(ValueError, match=r"along D, H\. Nearest patch sizes that work: \(32, 48, 48\) and \(48, 64, 4"):
        build(patch=(40, 56, 48))


def test_an_image_of_another_size_than_the_patch_is_refused(backbone):
    with pytest.raises(ValueError, match=r"built for patches of \(16, 32, 48\) voxels and cannot look at \(16, 32, 32"):
        backbone.encode(torch.zeros(1, 2, 16, 32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 25}, "width 25 of a ViT must be a multiple of its 2 heads"),
        ({"depth": True}, "depth must be a whole number of at least 1, got True"),
        ({"mlp": 2}, r"Network ViT_B16 has no setting 'mlp'\. It has width, depth, heads\."),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_without_monai_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(ValueError, match=r"MONAI cannot be imported .*: pip install anatomask\[monai\]"):
        build()
