import sys

import pytest
import torch
from architectures import architecture

from ssl_pretrain.networks import build_backbone

MODULE = """
import torch
from torch import nn
from ssl_pretrain.networks import Backbone, FeatureMap, StagedEncoder


def block(i, o, s):
    return nn.Sequential(nn.Conv3d(i, o, 3, s, 1), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU())


class Good(nn.Module):
    def __init__(self, input_channels):
        super().__init__()
        self.a, self.b = block(input_channels, 4, (1, 2, 2)), block(4, 8, 2)

    def get_downsample_ratio(self):
        return (2, 4, 4)

    def get_feature_map_channels(self):
        return [4, 8]

    def forward(self, x, hierarchical=False):
        first = self.a(x)
        second = self.b(first)
        return [first, second] if hierarchical else second


class WrongChannels(Good):
    def get_feature_map_channels(self):
        return [4, 9]


class WrongRatio(Good):
    def get_downsample_ratio(self):
        return 8


class NoHierarchy(nn.Module):
    def forward(self, x):
        return x


class Hungry(Good):
    def __init__(self, input_channels, secret):
        super().__init__(input_channels)


class Own(Backbone):
    def __init__(self, input_channels=1):
        stages = [block(input_channels, 4, 1), block(4, 8, 2)]
        maps = [FeatureMap(4, (1, 1, 1)), FeatureMap(8, (2, 2, 2))]
        super().__init__(nn.ModuleList(stages), StagedEncoder(stages), maps, input_channels)


not_a_class = 3
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    (tmp_path / "users_encoder.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda path, channels=1: build_backbone(
        path, architecture=architecture(), input_channels=channels, num_classes=2, patch=(16, 16, 16)
    )
    sys.modules.pop("users_encoder", None)


def test_an_encoder_with_sparks_methods_is_measured(build):
    made = build("users_encoder:Good", 2)
    assert [m.stride for m in made.feature_maps] == [(1, 2, 2), (2, 4, 4)]
    assert [m.channels for m in made.feature_maps] == [4, 8]
    assert made.input_projection_keys == ("a.0",)
    assert [tuple(m.shape) for m in made.encode(torch.zeros(1, 2, 4, 8, 8))] == [(1, 4, 4, 4, 4), (1, 8, 2, 2, 2)]


def test_a_backbone_of_ones_own_is_taken_as_it_is(build):
    assert [m.channels for m in build("users_encoder:Own").feature_maps] == [4, 8]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_encoder:Missing", r"users_encoder has no nn.Module 'Missing'. It has: .*Good"),
        ("users_encoder:not_a_class", "has no nn.Module 'not_a_class'"),
        ("no_such_module:Net", r"module 'no_such_module' cannot be imported .* PYTHONPATH"),
        (":Net", "is given as package.module:Class"),
        ("users_encoder:NoHierarchy", "Missing: get_downsample_ratio, get_feature_map_channels"),
        ("users_encoder:WrongChannels", r"declares feature maps of \[4, 9\] channels, but returns \[4, 8\]"),
        ("users_encoder:WrongRatio", r"end at the declared ratio \(8, 8, 8\)"),
        ("users_encoder:Hungry", "needs arguments nobody can give: secret"),
    ],
)
def test_what_does_not_fit_is_explained(build, path, message):
    with pytest.raises(ValueError, match=message):
        build(path)
