"""Pretrained weights in the networks of MONAI."""

import copy

import pytest
import torch
from pretrained import content_of, own_features, same, save

from ssl_pretrain.methods import MethodSetup, SimMIM, SimMIMConfig
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.transfer.load import load_pretrained

nets = pytest.importorskip("monai.networks.nets", reason="MONAI is an extra: pip install anatomask[monai]")

PATCH, CHANNELS, WIDTH, HEADS = (16, 32, 48), 2, 24, 2
SETTINGS = {"width": WIDTH, "depth": 12, "heads": HEADS}
POSITIONS = "vit.patch_embedding.position_embeddings"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT of twelve blocks, as UNETR has them, after pretraining: its network and its file."""
    torch.manual_seed(1)
    backbone = build_backbone(
        "ViT_B16", architecture={}, input_channels=CHANNELS, num_classes=3, patch=PATCH, settings=SETTINGS
    )
    method = SimMIM(SimMIMConfig(), MethodSetup(backbone=backbone, patch=PATCH))
    with torch.no_grad():
        # What training would do: nothing is as it was initialised, positions and biases among it.
        for parameter in method.trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    content = content_of(method.eval(), "ViT_B16", config={"network_settings": SETTINGS})
    return backbone.network, save(content, tmp_path_factory.mktemp("vit"))


def unetr(patch=PATCH, channels=CHANNELS, classes=5, seed=2):
    torch.manual_seed(seed)
    sizes = {"feature_size": 16, "hidden_size": WIDTH, "mlp_dim": 4 * WIDTH, "num_heads": HEADS}
    return nets.UNETR(channels, classes, patch, proj_type="conv", **sizes).eval()


def image_of(patch, channels=CHANNELS):
    return torch.randn(1, channels, *patch, generator=torch.Generator().manual_seed(3))


def test_our_vit_in_monais_unetr(vit):
    pretrained, file = vit
    network, image = unetr(), image_of(PATCH)
    report = load_pretrained(network, file)
    assert same(own_features(network, image), own_features(pretrained, image))
    assert (report.adapted, report.unused) == ((), ())
    # What a block of MONAI's keeps for attention to a second sequence is nowhere else.
    fresh = [entry.name for entry in report.fresh if "cross_attn" not in entry.name]
    assert fresh == ["out.conv.conv.weight", "out.conv.conv.bias"]
    network.out = pretrained.out
    with torch.no_grad():
        assert torch.equal(network(image), pretrained.eval()(image)), "the decoder, which SimMIM trains, came along"


def test_a_unetr_for_another_patch_gets_interpolated_positions(vit):
    pretrained, file = vit
    network = unetr((32, 48, 32))
    report = load_pretrained(network, file)
    (entry,) = report.adapted
    assert entry.name == POSITIONS
    assert "from 1x2x3 to 2x3x2 tokens" in entry.reason
    expected = resize_positions(pretrained.state_dict()[POSITIONS], (1, 2, 3), (2, 3, 2))
    assert torch.equal(network.state_dict()[POSITIONS], expected)


def test_a_unetr_for_more_channels_answers_as_before_to_equal_ones(vit):
    """The image twice: each channel of the file is used twice, at half its weight."""
    pretrained, file = vit
    network, image = unetr(channels=4), image_of(PATCH)
    load_pretrained(network, file)
    found = own_features(network, torch.cat([image, image], 1))
    for ours, theirs in zip(found, own_features(pretrained, image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_unetr_of_monais_back_into_ours(vit, tmp_path):
    donor, network, image = unetr(seed=6), copy.deepcopy(vit[0]), image_of(PATCH)
    report = load_pretrained(network, save({"network_weights": donor.state_dict()}, tmp_path))
    assert same(own_features(network, image), own_features(donor, image))
    assert all(entry.name.startswith("out.") for entry in report.fresh)


def swin_unetr(channels=1, classes=2, seed=4, **options):
    torch.manual_seed(seed)
    network = nets.SwinUNETR(channels, classes, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def old_name(name):
    """As MONAI called the layers when the published files were made."""
    return name.replace("mlp.linear", "mlp.fc")


@torch.no_grad()
def swin_features(network, image):
    return list(network.swinViT(image, network.normalize))


VOLUME = (32, 64, 32)


def test_monais_pretrained_swin_in_its_swin_unetr(tmp_path):
    donor, network, image = swin_unetr(), swin_unetr(classes=4, seed=5), image_of(VOLUME, 1)
    state = {f"module.{old_name(key)}": value for key, value in donor.swinViT.state_dict().items()}
    decoder = {key: v.clone() for key, v in network.state_dict().items() if not key.startswith("swinViT.")}
    report = load_pretrained(network, save({"state_dict": state}, tmp_path))
    assert same(swin_features(network, image), swin_features(donor, image))
    assert (report.adapted, report.unused) == ((), ())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in decoder.items())


def test_disruptive_autoencoders_in_a_swin_unetr_with_their_decoder(tmp_path):
    """They feed the decoder hidden states without a norm, so the network must not normalise them either."""
    donor, network = swin_unetr(classes=1, normalize=False), swin_unetr(classes=4, seed=5, normalize=False)
    state = {dae_name(key): value for key, value in donor.state_dict().items()}
    extra = {"encoder.mask_token": torch.zeros(1, 12, 1, 1, 1), "encoder.norm.weight": torch.ones(192)}
    head = {key: value.clone() for key, value in network.out.state_dict().items()}
    load_pretrained(network, save({"model": {**state, **extra}, "epoch": 3}, tmp_path))
    image = image_of(VOLUME, 1)
    assert same(swin_features(network, image), swin_features(donor, image))
    assert all(torch.equal(network.out.state_dict()[key], value) for key, value in head.items())
    donor.out = network.out
    with torch.no_grad():
        assert torch.equal(network(image), donor(image))


def dae_name(name):
    if not name.startswith("swinViT."):
        return name
    name = old_name(name.replace("swinViT.", "encoder."))
    for number in "1234":
        name = name.replace(f"encoder.layers{number}.0.", f"encoder.layers{number}.0.0.")
    return name
