"""A checkpoint of SimMIM3D in our UNETR: the transformer whole, its positions interpolated where the patch differs."""

import pytest
import torch
from architectures import architecture
from made_weights import randomised, save

from ssl_pretrain.networks.registry import NETWORKS, build_backbone
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights

pytest.importorskip("monai")


def network(seed, patch=(32, 32, 48)):
    sizes = {"input_channels": 1, "num_classes": 3, "patch": patch, "settings": NETWORKS["ViT_B16"].tiny}
    return randomised(build_backbone("ViT_B16", architecture=architecture(), **sizes).network, seed)


def checkpoint(donor):
    """As Lightning saves it: names of the module's network, a decoder and a mask token that only pretraining needs."""
    encoder = {
        f"net.encoder.{name.removeprefix('vit.')}": v for name, v in donor.state_dict().items() if "vit." in name
    }
    extra = {
        "net.encoder.mask_token": torch.zeros(1, 1, 48),
        "net.decoder.conv_block.weight": torch.ones(4, 32, 3, 3, 3),
    }
    return {"epoch": 499, "state_dict": {**encoder, **extra}, "pytorch-lightning_version": "2.1.0"}


def test_the_transformer_arrives_with_projection_and_positions(tmp_path):
    donor, target = network(0), network(1)
    file = save(checkpoint(donor), tmp_path / "simmim.ckpt")
    weights = read_weights(file)
    assert weights.origin == "SimMIM3D"
    assert weights.left_out == {
        "net.encoder.mask_token": "mask token of the pretext task",
        "net.decoder.conv_block.weight": "decoder of the pretext task",
    }
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = load_pretrained(target, file)
    wanted = {name for name in before if name.startswith("vit.")}
    theirs = donor.state_dict()
    assert all(torch.equal(target.state_dict()[name], theirs[name]) for name in wanted)
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in set(before) - wanted)
    assert not {entry.name for entry in report.fresh} & wanted


def test_positions_of_another_patch_are_interpolated(tmp_path):
    """The file does not say its patch; SimMIM3D's is a cube."""
    donor, target = network(0, patch=(32, 32, 32)), network(1)
    key = "vit.patch_embedding.position_embeddings"
    with torch.no_grad():
        donor.get_parameter(key).copy_(torch.tensor([0.0, 1.0] * 4)[None, :, None])
    report = load_pretrained(target, save(checkpoint(donor), tmp_path / "simmim.ckpt"))
    (entry,) = [entry for entry in report.adapted if entry.name == key]
    assert "positions interpolated from 2x2x2" in entry.reason
    # Two tokens along W have become three, of which the middle one lies between them.
    assert target.get_parameter(key)[0, :3, 0].tolist() == pytest.approx([0.0, 0.5, 1.0], abs=0.2)
