"""Checkpoints of nnU-Net, version 1 and version 2, and of STU-Net, which is written as version 1 writes."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from architectures import architecture
from made_weights import randomised, save, stunet, version_1
from torch import nn

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights

WIDTHS = (4, 8, 16)
OLD_AND_NEW = pytest.mark.parametrize("zipped", [True, False])


def plain_unet(classes):
    entry = architecture("plain")
    entry["arch_kwargs"]["n_conv_per_stage_decoder"] = [2, 2]
    size = {"input_channels": 1, "num_classes": classes, "patch": (16, 16, 16)}
    return build_backbone("plans", architecture=entry, **size).network


class Layer(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv, self.instnorm = nn.Conv3d(c_in, c_out, 3, stride, 1), nn.InstanceNorm3d(c_out, affine=True)

    def forward(self, x):
        return nn.functional.leaky_relu(self.instnorm(self.conv(x)), 0.01)


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.blocks = nn.Sequential(*layers)

    def forward(self, x):
        return self.blocks(x)


class UNetOfVersion1(nn.Module):
    """Where version 1 keeps its modules: the coarsest stage and the decoder's are in two halves."""

    def __init__(self, classes):
        super().__init__()
        first = Layers(Layer(1, WIDTHS[0]), Layer(WIDTHS[0], WIDTHS[0]))
        second = Layers(Layer(*WIDTHS[:2], 2), Layer(WIDTHS[1], WIDTHS[1]))
        last = nn.Sequential(Layers(Layer(*WIDTHS[1:], 2)), Layers(Layer(WIDTHS[2], WIDTHS[2])))
        self.conv_blocks_context = nn.ModuleList([first, second, last])
        steps = list(pairwise(reversed(WIDTHS)))
        self.tu = nn.ModuleList(nn.ConvTranspose3d(deep, c, 2, 2, bias=False) for deep, c in steps)
        self.conv_blocks_localization = nn.ModuleList(
            nn.Sequential(Layers(Layer(2 * c, c)), Layers(Layer(c, c))) for _, c in steps
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(c, classes, 1, bias=False) for _, c in steps)

    def features(self, x):
        maps = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            maps.append(x)
        for up, stage, skip in zip(self.tu, self.conv_blocks_localization, (maps[1], maps[0]), strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        return x


@OLD_AND_NEW
def test_a_unet_of_version_1_is_the_one_of_version_2_under_other_names(zipped, tmp_path):
    """Version 1 has no bias in its transposed convolutions: there, the fresh one of version 2 is zero."""
    donor, network = randomised(UNetOfVersion1(classes=5)), plain_unet(classes=2).eval()
    file = tmp_path / "model_final_checkpoint.model"
    save(version_1(donor.state_dict()), file, _use_new_zipfile_serialization=zipped)
    weights = read_weights(file)
    assert (weights.origin, weights.ours, weights.metadata) == ("nnU-Net v1", False, {"epoch": 4000})
    report = load_pretrained(network, file)
    assert report.unused == ()
    fresh = {entry.name for entry in report.fresh}
    assert {name.rsplit(".", 1)[0][:-2] for name in fresh} == {"decoder.transpconvs", "decoder.seg_layers"}
    image, seen = torch.randn(1, 1, 16, 16, 16), []
    network.decoder.stages[-1].register_forward_hook(lambda *event: seen.append(event[2]))
    with torch.no_grad():
        for convolution in network.decoder.transpconvs:
            convolution.bias.zero_()
        network(image)
        torch.testing.assert_close(seen[0], donor.features(image), rtol=1e-4, atol=1e-4)


def test_another_network_of_version_1_keeps_its_names(tmp_path):
    file = save(version_1({"encoder.a.weight": torch.ones(2)}), tmp_path / "resunet.model")
    assert list(read_weights(file).tensors) == ["encoder.a.weight"]


def test_the_description_beside_a_model_is_not_taken_for_it(tmp_path):
    file = tmp_path / "model_final_checkpoint.model.pkl"
    file.write_bytes(
        pickle.dumps({"init": (), "name": "nnUNetTrainerV2", "plans": {"spacing": np.ones(3)}}, protocol=2)
    )
    with pytest.raises(ValueError, match=r"weights are in model_final_checkpoint\.model, which lies beside it"):
        read_weights(file)


@OLD_AND_NEW
def test_official_weights_of_stu_net_give_everything_but_the_heads(zipped, tmp_path):
    donor, network = stunet(classes=105), stunet(classes=3)
    file = tmp_path / "base_ep4k.model"
    save(version_1(donor.state_dict()), file, _use_new_zipfile_serialization=zipped)
    weights = read_weights(file)
    assert (weights.origin, weights.metadata) == ("STU-Net", {"epoch": 4000})
    load_pretrained(network, file)
    ours, theirs = network.state_dict(), donor.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) == ("seg_outputs" not in name) for name in ours)


@pytest.mark.parametrize(
    ("configurations", "configuration", "patch"),
    [
        ({"3d_fullres": {"patch_size": [16, 24, 32]}}, "3d_fullres", (16, 24, 32)),
        (
            {"3d_fullres": {"patch_size": np.array([8, 8, 8])}, "child": {"inherits_from": "3d_fullres"}},
            "child",
            (8, 8, 8),
        ),
        ({"2d": {"patch_size": [64, 64]}}, "2d", None),
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "a", None),
        ({}, "3d_fullres", None),
    ],
)
def test_a_checkpoint_of_version_2_says_the_patch_of_its_plans(configurations, configuration, patch, tmp_path):
    plans = {"dataset_name": "Dataset004_Hippocampus", "plans_name": "nnUNetPlans", "configurations": configurations}
    donor = plain_unet(classes=3)
    content = {
        "network_weights": donor.state_dict(),
        "optimizer_state": {},
        "logging": {"ema_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    weights = read_weights(save(content, tmp_path / "checkpoint_final.pth"))
    assert (weights.origin, weights.ours, weights.patch) == ("nnU-Net v2", False, patch)
    assert set(weights.tensors) == set(donor.state_dict())
    assert weights.metadata == {
        "trainer_name": "nnUNetTrainer",
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "fold": "0",
        "configuration": configuration,
    }
