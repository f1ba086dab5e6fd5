"""Two pretrained Swin transformers in the layouts that MONAI's own loaders read."""

import pytest
import torch
from made_weights import randomised, save

from ssl_pretrain.networks.swin import SwinUNETR
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights

swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")


COMMON = {"feature_size": 12, "depths": (1, 1, 1, 1), "normalize": False, "downsample": "mergingv2"}


def network(classes=3, seed=0):
    """MONAI's."""
    return randomised(swin_unetr.SwinUNETR(in_channels=1, out_channels=classes, num_heads=(1, 2, 4, 8), **COMMON), seed)


def own(classes=3, seed=0):
    """Of ``-network SwinUNETR``, with the same tensors."""
    made = SwinUNETR(1, classes, heads=1, **COMMON).eval()
    made.load_state_dict(network(classes, seed).state_dict())
    return made


def old(name):
    """What the layers of an MLP were called."""
    return name.replace("mlp.linear", "mlp.fc")


def of_encoder(state):
    return {name.removeprefix("swinViT."): value for name, value in state.items() if name.startswith("swinViT.")}


def dae(donor):
    """Encoder with one more level of modules per stage, decoder as it is, and what only pretraining needs."""
    state = donor.state_dict()
    encoder = {f"encoder.{old(name)}".replace(".0.", ".0.0.", 1): v for name, v in of_encoder(state).items()}
    return {
        **{name.replace("patch_embed.0", "patch_embed"): value for name, value in encoder.items()},
        "encoder.mask_token": torch.ones(1, 12, 1, 1, 1),
        "encoder.norm.weight": torch.ones(192),
        "encoder.norm.bias": torch.ones(192),
        **{name: value for name, value in state.items() if not name.startswith("swinViT.")},
    }


@pytest.mark.parametrize("built", [network, own])
def test_dae_gives_what_monai_takes_and_the_decoder(built, tmp_path):
    donor, target = network(classes=1), built(classes=1, seed=1)
    state = dae(donor)
    assert "encoder.layers1.0.0.blocks.0.mlp.fc1.weight" in state
    assert "encoder.patch_embed.proj.weight" in state
    file = save({"model": state, "optimizer": {}, "max_accuracy": 0.0, "epoch": 299}, tmp_path / "ckpt_best.pth")
    weights = read_weights(file)
    assert weights.origin == "DAE"
    theirs = {pair[0] for name in state if (pair := swin_unetr.filter_swinunetr(name, None))}
    assert {old(name) for name in weights.tensors if name.startswith("swinViT.")} == theirs
    assert any(name.startswith("decoder1.") for name in weights.tensors)
    assert set(weights.left_out) == {
        name for name in state if name.startswith(("encoder.norm", "encoder.mask", "out."))
    }
    head = target.out.conv.conv.weight.clone()
    report = load_pretrained(target, file)
    assert torch.equal(target.out.conv.conv.weight, head), "the head of the pretext task has the shape of this one"
    assert {entry.name for entry in report.fresh} == {"out.conv.conv.weight", "out.conv.conv.bias"}
    image, ours = torch.randn(1, 1, 64, 64, 64), []
    for net in (donor, target):
        net.decoder1.register_forward_hook(lambda *event: ours.append(event[2]))
    with torch.no_grad():
        donor(image)
        target(image)
    assert torch.equal(ours[0], ours[1])


def test_the_other_stem_of_dae_has_no_place_and_is_reported(tmp_path):
    """DAE's own code embeds patches with two convolutions, MONAI's Swin UNETR with one."""
    state = {name: value for name, value in dae(network(classes=1)).items() if "patch_embed" not in name}
    state["encoder.patch_embed.proj.conv1.conv.weight"] = torch.ones(12, 1, 3, 3, 3)
    report = load_pretrained(network(), save({"model": state}, tmp_path / "ckpt.pth"))
    offered = [entry.name for entry in report.unused if entry.file_shape is not None]
    assert offered == ["swinViT.patch_embed.proj.conv1.conv.weight"]
    assert {"swinViT.patch_embed.proj.weight"} < {entry.name for entry in report.fresh}


@pytest.mark.parametrize("built", [network, own])
@pytest.mark.parametrize("prefix", ["module.", "", "swinViT.", "module.swinViT."])
def test_monais_pretrained_swin_is_loaded_as_monai_loads_it(prefix, built, tmp_path):
    donor, ours, theirs = network(), built(seed=1), network(seed=1)
    encoder = {old(name): value for name, value in of_encoder(donor.state_dict()).items()}
    state = {prefix + name: value for name, value in encoder.items()}
    heads = {"rotation_head.weight": torch.ones(4, 192), "contrastive_head.weight": torch.ones(5, 192)}
    file = save({"epoch": 9, "state_dict": {**state, **heads}, "optimizer": {}}, tmp_path / "model_swinvit.pt")
    assert read_weights(file).origin == "MONAI SSL Swin"
    theirs.load_from({"state_dict": {f"module.{name}": value for name, value in encoder.items()}})
    report = load_pretrained(ours, file)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert len(report.loaded) == len(encoder)
    assert len(report.unused) == 2


def test_a_whole_swin_unetr_is_no_pretrained_swin(tmp_path):
    assert read_weights(save(network().state_dict(), tmp_path / "trained.pt")).origin == "state_dict"
