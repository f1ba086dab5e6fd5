import copy

import pytest
import torch
from architectures import STRIDES, architecture, backbone
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from ssl_pretrain.networks import NETWORKS, build_backbone
from ssl_pretrain.networks.dotted import is_layer
from ssl_pretrain.networks.registry import kin, shown_names
from ssl_pretrain.networks.wrap import wrap_network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("name", "kind"), [("plans", "plain"), ("plans", "residual"), ("STUNet_small", "plain")])
def test_declared_feature_maps_are_what_the_encoder_returns(name, kind, strides, channels):
    made = backbone(name, kind, strides, channels)
    maps = made.encode(torch.zeros(1, channels, 16, 16, 16))
    assert len(maps) == len(made.feature_maps)
    for declared, found in zip(made.feature_maps, maps, strict=True):
        assert found.shape[1] == declared.channels
        assert tuple(16 // n for n in found.shape[2:]) == declared.stride


@pytest.mark.parametrize(("name", "kind"), [("plans", "plain"), ("plans", "residual"), ("STUNet_small", "plain")])
def test_encode_and_decode_make_the_whole_network(name, kind):
    made = backbone(name, kind)
    made.network.eval()
    x = torch.randn(1, 1, 16, 16, 16)
    # With deep supervision the network gives a list, of which the first is the finest.
    torch.testing.assert_close(made.segmentation_head(made.dense(x)), made.network(x)[0])


def test_the_network_is_the_one_nnunet_builds_initialisation_included():
    arch = architecture("residual")
    torch.manual_seed(5)
    ours = backbone("plans", "residual").network.state_dict()
    torch.manual_seed(5)
    theirs = get_network_from_plans(
        arch["network_class_name"], arch["arch_kwargs"], arch["_kw_requires_import"], 1, 3, True, True
    ).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_encoder_keys_are_the_encoder_under_every_name_and_nothing_else():
    made = backbone()
    keys = set(made.encoder_keys)
    assert {"encoder.stages.0.0.convs.0.conv.weight", "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"} <= keys
    assert not any("transpconvs" in k or "seg_layers" in k or k.startswith("decoder.stages") for k in keys)
    assert all(k.removeprefix("decoder.").startswith("encoder.") for k in keys)


@pytest.mark.parametrize("name", ["plans", "STUNet_small"])
def test_keys_name_real_modules(name):
    made = backbone(name)
    made.network.get_submodule(made.encoder_key)
    made.network.get_submodule(made.stem_key)
    assert made.input_projection_keys
    for key in made.input_projection_keys:
        assert made.network.get_submodule(key).weight.shape[1] == 1


def test_the_first_stages_alone_are_a_view_of_the_same_modules():
    made = backbone()
    encoder, maps = made.truncated(2)
    assert maps == made.feature_maps[:2]
    assert len(encoder(torch.zeros(1, 1, 16, 16, 16))) == 2
    assert {id(p) for p in encoder.parameters()} < {id(p) for p in made.encoder.parameters()}
    with pytest.raises(ValueError, match="stages=9 is not possible with this network of 3 feature maps"):
        made.truncated(9)


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown network 'UNETR'\. Choose from plans, STUNet_small"):
        build_backbone("UNETR", architecture=architecture(), input_channels=1, num_classes=2, patch=(16, 16, 16))
    families = {"STUNet_": ("small", "base", "large", "huge"), "ResEnc": ("M", "L", "XL"), "Primus": tuple("SBML")}
    names = {f"{family}{size}" for family, sizes in families.items() for size in sizes}
    assert set(NETWORKS) == {"plans", "ViT_B16", "SwinUNETR", *names}


def test_a_network_without_staged_encoder_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="Conv3d cannot be pretrained: it has no `encoder`"):
        wrap_network(nn.Conv3d(1, 1, 1), 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.Network", "code that we do not know: network_class_name 'no.such.Network'"),
        ("torch.nn.Identity", "Identity cannot be pretrained"),
        ("torch.nn.Conv3d", "Conv3d cannot be built .* unexpected keyword argument"),
    ],
)
def test_plans_of_another_kind_of_network_say_what_to_use(name, message):
    arch = {**architecture(), "network_class_name": name}
    with pytest.raises(ValueError, match=message):
        build_backbone("plans", architecture=arch, input_channels=1, num_classes=2, patch=(16, 16, 16))


@pytest.mark.parametrize(("trust", "message"), [(False, "is no class of layers"), (True, "which Python does not find")])
def test_plans_that_name_a_layer_which_is_not_there_are_not_built_without_it(trust, message):
    """nnU-Net would leave the activations out, and say nothing."""
    arch = copy.deepcopy(architecture())
    arch["arch_kwargs"]["nonlin"] = "torch.nn.modules.module.torch.os.ReLU"
    request = {"architecture": arch, "input_channels": 1, "num_classes": 2, "patch": (16, 16, 16)}
    with pytest.raises(
        ValueError, match=rf"The plans name nonlin '?torch\.nn\.modules\.module\.torch\.os\.ReLU.*{message}"
    ):
        build_backbone("plans", **request, trust_plans=trust)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("torch.nn.LeakyReLU", True),
        ("torch.nn.modules.conv.Conv3d", True),
        ("dynamic_network_architectures.building_blocks.residual.BasicBlockD", True),
        ("torch.nn.modules.module.torch.nn.ReLU", False),
        ("torch.nn.functional.relu", False),
        ("torch.nn.Nothing", False),
        ("nowhere.Nothing", False),
        ("ReLU", False),
        ("", False),
    ],
)
def test_a_layer_is_a_class_of_the_very_module_that_its_path_names(path, found):
    assert is_layer(path) == found


def test_stunet_needs_plans_with_strides():
    arch = {**architecture(), "arch_kwargs": {}}
    with pytest.raises(ValueError, match="STU-Net needs the strides of a plan"):
        build_backbone("STUNet_small", architecture=arch, input_channels=1, num_classes=2, patch=(16, 16, 16))


def test_plans_that_name_stunet_work_as_plans():
    """What `-p nnUNetPlans_STUNet_small` gives."""
    stunet = backbone("STUNet_small")
    arch = {
        "network_class_name": stunet.architecture,
        "arch_kwargs": stunet.architecture_kwargs,
        "_kw_requires_import": [],
    }
    made = build_backbone("plans", architecture=arch, input_channels=1, num_classes=3, patch=(16, 16, 16))
    assert made.feature_maps == stunet.feature_maps
    assert list(made.network.state_dict()) == list(stunet.network.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_says_what_the_network_is_when_it_is_built(name):
    row = NETWORKS[name]
    if name in ("ViT_B16", "SwinUNETR"):
        pytest.importorskip("monai")
    with torch.device("meta"):
        made = build_backbone(
            name, architecture=architecture(), input_channels=1, num_classes=2, patch=(32, 32, 32), settings=row.tiny
        )
    assert made.offers == row.offers
    assert made.architecture in row.paths
    assert made.family == row.kind
    if row.divisor is not None:
        assert made.feature_maps[-1].stride == row.divisor
    if not row.tiny:
        return
    with torch.device("meta"):
        published = build_backbone(
            name, architecture=architecture(), input_channels=1, num_classes=2, patch=(32, 32, 32)
        )
    assert published.architecture == row.paths[0]
    count, full = (sum(p.numel() for p in made.network.parameters()) for made in (made, published))
    assert 20 * count < full


def test_names_are_shown_by_kin():
    assert shown_names() == "plans, STUNet_small|base|large|huge, ResEncM|L|XL, PrimusS|B|M|L, ViT_B16, SwinUNETR"
    assert shown_names(["PrimusS", "PrimusM", "ViT_B16"]) == "PrimusS|M, ViT_B16"
    assert [name for kin_of_one in kin() for name in kin_of_one] == list(NETWORKS)
