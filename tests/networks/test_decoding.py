"""Features before the head: with the network's own head on them every network gives its own output."""

import pytest
import torch
from architectures import STRIDES, architecture
from torch import nn

from ssl_pretrain.networks import Backbone, FeatureMap, StagedEncoder, build_backbone
from ssl_pretrain.networks.anatomy import anatomy_of

RESIDUAL_DECODER = "dynamic_network_architectures.architectures.unet.ResidualUNet"

UNETS = ("plain", "residual", "residual decoder", "STUNet_small", "ResEncM")
TRANSFORMERS = ("PrimusS", "ViT_B16", "SwinUNETR")
SETTINGS = {
    "PrimusS": {"width": 24, "depth": 2, "heads": 2},
    "ViT_B16": {"width": 24, "depth": 4, "heads": 2},
    "SwinUNETR": {"feature_size": 4, "depths": 1, "heads": 1, "window": 4},
    "ResEncM": {"width": 4, "widest": 16, "depth": 2},
}


PATCH = (16, 16, 32)


def patch_of(kind):
    """A small patch that the network can work on."""
    return (32, 32, 64) if kind == "SwinUNETR" else PATCH


def build(kind, strides="anisotropic"):
    torch.manual_seed(0)
    if kind in ("ViT_B16", "SwinUNETR"):
        pytest.importorskip("monai", reason="MONAI is an extra: pip install anatomask[monai]")
    arch = architecture("residual" if "residual" in kind else "plain", STRIDES[strides])
    if kind == "residual decoder":
        arch["network_class_name"] = RESIDUAL_DECODER
    name = "plans" if kind in ("plain", "residual", "residual decoder") else kind
    made = build_backbone(
        name, architecture=arch, input_channels=2, num_classes=3, patch=patch_of(kind), settings=SETTINGS.get(name)
    )
    switch = getattr(made.network, "decoder", None)
    if switch is not None:
        switch.deep_supervision = False
    return made.eval()


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("kind", [*UNETS, *TRANSFORMERS])
def test_the_networks_own_head_on_the_features_gives_its_own_output(kind, strides):
    made, image = build(kind, strides), torch.randn(2, 2, *patch_of(kind))
    maps = made.encode(image)
    given = list(maps)
    features = made.decode_features(maps)
    assert torch.equal(made.segmentation_head(features), made.network(image))
    assert torch.equal(made.dense(image), features)
    assert all(a is b for a, b in zip(maps, given, strict=True))


@pytest.mark.parametrize("kind", UNETS)
def test_deep_supervision_changes_nothing_before_the_head(kind):
    made, image = build(kind), torch.randn(1, 2, *patch_of(kind))
    made.network.decoder.deep_supervision = True
    finest, *others = made.network(image)
    assert others
    assert torch.equal(made.segmentation_head(made.dense(image)), finest)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("kind", [*UNETS, *TRANSFORMERS])
def test_a_new_head_is_fresh_and_brings_features_to_the_resolution_of_the_image(kind, channels):
    made, image = build(kind), torch.randn(1, 2, *patch_of(kind))
    head = made.new_head(channels)
    assert head(made.dense(image)).shape == (1, channels, *patch_of(kind))
    assert not {id(p) for p in head.parameters()} & {id(p) for p in made.parameters()}
    assert not head.bias.any()
    assert not torch.equal(made.new_head(channels).weight, head.weight)


@pytest.mark.parametrize("kind", [*UNETS, *TRANSFORMERS])
def test_decoder_keys_are_what_the_features_depend_on_beyond_the_encoder(kind):
    """Found by gradients: neither heads nor anything else is missing or too much."""
    made, image = build(kind), torch.randn(1, 2, *patch_of(kind))
    made.dense(image).square().sum().backward()
    named = dict(made.network.named_parameters(remove_duplicate=False))
    reached = {name for name, parameter in named.items() if parameter.grad is not None}
    # Tables of relative positions are in the state and are not trained.
    assert {*made.encoder_keys, *made.decoder_keys} & set(named) == reached
    assert not set(made.encoder_keys) & set(made.decoder_keys)
    assert made.decoder_keys
    assert set(made.decoder_keys) < made.network.state_dict().keys()
    head = {id(p) for p in made.segmentation_head.parameters()}
    assert not head & {id(named[key]) for key in made.decoder_keys}


def test_all_aliases_of_a_decoder_are_named():
    keys = set(build("plain").decoder_keys)
    assert {f"decoder.stages.0.convs.0.{alias}.weight" for alias in ("conv", "all_modules.0")} <= keys
    assert "decoder.transpconvs.0.weight" in keys


class Own(nn.Module):
    """A network of one's own that says itself how it decodes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv3d(1, 2, 1), nn.Conv3d(2, 3, 1), nn.Conv3d(3, 4, 1)

    def decode_features(self, maps):
        return self.second(maps[0])

    @property
    def decoder_modules(self):
        return [self.second]

    @property
    def segmentation_head(self):
        return self.out


def test_a_network_of_ones_own_is_asked_itself():
    network = Own()
    made = Backbone(network, StagedEncoder([network.first]), [FeatureMap(2, (1, 1, 1))], 1)
    assert made.has_decoder
    assert made.decoder_keys == ("second.weight", "second.bias")
    assert made.new_head(7)(made.dense(torch.zeros(1, 1, 2, 2, 2))).shape == (1, 7, 2, 2, 2)


def test_an_encoder_alone_has_no_decoder_and_says_what_to_do():
    network = nn.Conv3d(1, 2, 1)
    made = Backbone(network, StagedEncoder([network]), [FeatureMap(2, (1, 1, 1))], 1)
    assert not made.has_decoder
    assert made.decoder_keys == ()
    assert anatomy_of(network).decoding is None
    for ask in (lambda: made.new_head(1), lambda: made.dense(torch.zeros(1, 1, 2, 2, 2))):
        with pytest.raises(ValueError, match=r"Conv3d has no decoder to pretrain.*the encoder alone"):
            ask()
