"""Embeddings of positions that were learned with another patch size."""

import pytest
import torch

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.transfer.load import load_pretrained

TINY = {"width": 36, "depth": 1, "heads": 2}
KEY = "eva.pos_embed"


def primus(patch, seed=0):
    torch.manual_seed(seed)
    settings = {"architecture": {}, "input_channels": 1, "num_classes": 2, "settings": TINY}
    return build_backbone("PrimusS", patch=patch, **settings).network


def saved(tmp_path, network, **extra):
    weights = network.state_dict()
    file = tmp_path / "weights.pth"
    keys = sorted(weights)
    torch.save({"network_weights": weights, "pretraining": {"pretrained_keys": keys, **extra}}, file)
    return file


@pytest.mark.parametrize("patch", [(16, 40, 24), (32, 24, 16), (24, 16, 32)])
def test_positions_are_interpolated_along_their_own_axes(tmp_path, patch):
    """(24, 16, 32) has as many tokens as the file, in another order: copying them would mix the axes up."""
    source, target = primus((16, 24, 32)), primus(patch, seed=1)
    report = load_pretrained(target, saved(tmp_path, source, patch_size=[16, 24, 32]))
    grid = tuple(p // 8 for p in patch)
    expected = resize_positions(source.state_dict()[KEY], (2, 3, 4), grid)
    assert torch.equal(target.state_dict()[KEY], expected)
    (entry,) = report.adapted
    assert entry.name == KEY
    assert entry.reason == f"positions interpolated from 2x3x4 to {'x'.join(map(str, grid))} tokens"
    assert "positions interpolated" in str(report)
    assert torch.equal(
        target.state_dict()["down_projection.proj.weight"], source.state_dict()["down_projection.proj.weight"]
    )


def test_the_same_patch_is_copied(tmp_path):
    source, target = primus((16, 24, 32)), primus((16, 24, 32), seed=1)
    assert not load_pretrained(target, saved(tmp_path, source, patch_size=[16, 24, 32])).adapted
    assert torch.equal(target.state_dict()[KEY], source.state_dict()[KEY])


def test_a_file_that_does_not_say_its_patch_keeps_fresh_positions(tmp_path):
    target = primus((16, 40, 24), seed=1)
    before = target.state_dict()[KEY].clone()
    report = load_pretrained(target, saved(tmp_path, primus((16, 24, 32))))
    assert [entry.reason for entry in report.fresh] == [
        "positions of another patch size, and the file does not say of which"
    ]
    assert torch.equal(target.state_dict()[KEY], before)


def test_a_file_of_nnssl_says_it_in_its_plan(tmp_path):
    source, target = primus((16, 24, 32)), primus((16, 40, 24), seed=1)
    plan = {"pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [16, 24, 32]}}}}
    file = tmp_path / "nnssl.pth"
    torch.save({"network_weights": source.state_dict(), "nnssl_adaptation_plan": plan}, file)
    report = load_pretrained(target, file)
    assert [entry.name for entry in report.adapted] == [KEY]
    assert any("segmentation head" in entry.reason for entry in report.fresh), "the last step of the decoder"


def test_positions_that_are_not_those_of_the_patch_are_left(tmp_path):
    target = primus((16, 40, 24), seed=1)
    report = load_pretrained(target, saved(tmp_path, primus((16, 24, 32)), patch_size=[160, 160, 160]))
    assert [entry.reason for entry in report.fresh] == ["24 positions are not those of a patch of (160, 160, 160)"]
