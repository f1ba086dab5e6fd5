"""STU-Net: the published sizes, names and numbers, and nnU-Net's conventions."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from ssl_pretrain.networks.stunet import STUNET_SIZES, STUNet, stunet_kwargs

CUBIC = [[1, 1, 1]] + [[2, 2, 2]] * 4
FIXTURES = Path(
    os.environ.get("ANATOMASK_FIXTURES", Path(__file__).resolve().parents[2].parent / "shared" / "fixtures")
)


def tiny(**changes):
    kwargs = {
        "input_channels": 1,
        "num_classes": 2,
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "n_blocks_per_stage": 1,
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    }
    return STUNet(**{**kwargs, **changes})


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 14_596_941), ("base", 58_262_669), ("large", 440_302_605), ("huge", 1_457_326_221)],
)
def test_parameter_counts_are_the_published_ones(size, parameters):
    with torch.device("meta"):
        network = STUNet(input_channels=1, num_classes=105, **stunet_kwargs(size, CUBIC))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_base_has_the_published_names():
    with torch.device("meta"):
        keys = list(STUNet(1, 105, **stunet_kwargs("base", CUBIC)).state_dict())
    tails = ("weight", "bias")
    block = [f"{part}.{t}" for part in ("conv1", "norm1", "conv2", "norm2", "conv3") for t in tails]
    expected = [f"conv_blocks_context.{s}.0.{k}" for s in range(6) for k in block]
    expected += [f"upsample_layers.{u}.conv.{t}" for u in range(5) for t in tails]
    expected += [f"conv_blocks_localization.{u}.0.{k}" for u in range(5) for k in block]
    expected += [f"seg_outputs.{u}.{t}" for u in range(5) for t in tails]
    assert keys == expected
    assert len(keys) == 130


def test_only_the_first_block_of_a_stage_projects_its_skip():
    with torch.device("meta"):
        keys = STUNet(1, 3, **stunet_kwargs("large", CUBIC)).state_dict().keys()
    assert "conv_blocks_context.2.0.conv3.weight" in keys
    assert "conv_blocks_context.2.1.conv1.weight" in keys
    assert "conv_blocks_context.2.1.conv3.weight" not in keys


def test_the_published_implementation_computes_the_same():
    file = FIXTURES / "stunet_reference_a.json"
    if not file.is_file():
        pytest.skip(f"no {file}: set ANATOMASK_FIXTURES to the folder of the reference numbers")
    reference = json.loads(file.read_text(encoding="utf-8"))
    spec = reference["network"]
    network = STUNet(
        input_channels=spec["input_channels"],
        num_classes=spec["num_classes"],
        features_per_stage=spec["dims"],
        n_blocks_per_stage=spec["depth"],
        strides=[[1, 1, 1], *spec["strides"]],
        kernel_sizes=[spec["kernel"]] * 6,
        deep_supervision=True,
    )
    state = {}
    for position, entry in enumerate(reference["state"]):
        values = 0.2 * np.sin(0.7 * (position + 1) + 0.013 * np.arange(np.prod(entry["shape"])))
        values += len(entry["shape"]) == 1 and entry["key"].endswith("weight")
        state[entry["key"]] = torch.from_numpy(values.astype(np.float32)).reshape(entry["shape"])
    network.load_state_dict(state)
    index = np.arange(np.prod(reference["input_shape"]), dtype=np.float64)
    image = np.sin(0.05 * index) + 0.5 * np.cos(np.mod(0.0013 * index * index, 6.2831853))
    with torch.no_grad():
        outputs = network(torch.from_numpy(image.astype(np.float32)).reshape(reference["input_shape"]))
    assert len(outputs) == len(reference["outputs_fine_to_coarse"]) == 5
    for output, expected in zip(outputs, reference["outputs_fine_to_coarse"], strict=True):
        assert list(output.shape) == expected["shape"]
        assert output.double().sum().item() == pytest.approx(expected["sum"], rel=1e-4)
        assert output.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)
        assert output.flatten()[:8].tolist() == pytest.approx(expected["first8"], rel=1e-4)


def test_anisotropic_strides_and_kernels_keep_shapes():
    network = tiny(deep_supervision=True)
    image = torch.randn(2, 1, 8, 16, 16)
    maps = network.encode(image)
    assert [tuple(m.shape) for m in maps] == [(2, 4, 8, 16, 16), (2, 8, 8, 8, 8), (2, 8, 4, 4, 8)]
    assert network.features_per_stage == [m.shape[1] for m in maps]
    assert network.strides == [(1, 1, 1), (1, 2, 2), (2, 2, 1)]
    assert network.conv_blocks_context[0][0].conv1.kernel_size == (1, 3, 3)
    assert [tuple(o.shape) for o in network(image)] == [(2, 2, 8, 16, 16), (2, 2, 8, 8, 8)]


def test_nearest_upsampling_after_the_convolution_equals_the_published_order():
    layer = tiny().upsample_layers[0]
    x = torch.randn(1, 8, 2, 3, 4)
    published = layer.conv(torch.nn.functional.interpolate(x, scale_factor=(2, 2, 1), mode="nearest"))
    torch.testing.assert_close(layer(x), published)


def test_decode_of_encode_is_the_network_and_leaves_the_maps_alone():
    network, image = tiny(), torch.randn(1, 1, 4, 8, 8)
    maps = network.encode(image)
    before = [m.clone() for m in maps]
    torch.testing.assert_close(network.decode(maps), network(image))
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_nnunet_switches_deep_supervision_without_touching_the_state_dict():
    network, image = tiny(deep_supervision=False), torch.randn(1, 1, 4, 8, 8)
    keys = list(network.state_dict())
    single = network(image)
    network.decoder.deep_supervision = True
    several = network(image)
    assert isinstance(single, torch.Tensor)
    assert isinstance(several, list)
    assert torch.equal(several[0], single)
    assert list(network.state_dict()) == keys == list(tiny(deep_supervision=True).state_dict())


def test_a_copy_has_its_own_switch():
    network = tiny(deep_supervision=False)
    twin = copy.deepcopy(network)
    twin.decoder.deep_supervision = True
    assert network.decoder.deep_supervision is False


def test_nnunet_builds_it_from_what_a_plans_file_holds():
    kwargs = json.loads(json.dumps(stunet_kwargs("small", CUBIC)))
    network = get_network_from_plans("ssl_pretrain.networks.stunet.STUNet", kwargs, [], 2, 3, True, True)
    assert isinstance(network, STUNet)
    assert network.decoder.deep_supervision is True
    assert network.conv_blocks_context[0][0].conv1.in_channels == 2
    assert [head.out_channels for head in network.seg_outputs] == [3] * 5


def test_the_places_it_names_exist_and_see_the_image():
    network = tiny(input_channels=3)
    assert network.key_to_lpe is None
    assert network.get_submodule(network.key_to_encoder) is network.conv_blocks_context
    assert network.get_submodule(network.key_to_stem) is network.conv_blocks_context[0]
    assert [network.get_submodule(key).weight.shape[1] for key in network.keys_to_in_proj] == [3, 3]


def test_gradients_reach_every_parameter_with_deep_supervision():
    network = tiny(deep_supervision=True)
    sum(output.square().mean() for output in network(torch.randn(1, 1, 4, 8, 8))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_strides_are_cut_to_five_poolings_or_padded():
    long = stunet_kwargs("base", [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 5])
    short = stunet_kwargs("base", [[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    assert long["strides"] == [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4]
    assert short["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], *[[1, 1, 1]] * 3]
    assert long["features_per_stage"] == [32, 64, 128, 256, 512, 512]


def test_kwargs_do_not_share_lists_with_the_plan():
    strides = [[1, 1, 1], [2, 2, 2]]
    kwargs = stunet_kwargs("small", strides)
    kwargs["strides"][1][0] = 7
    assert strides == [[1, 1, 1], [2, 2, 2]]
    assert stunet_kwargs("small", strides)["strides"][5] == [1, 1, 1]


def test_unknown_size_lists_the_sizes():
    with pytest.raises(ValueError, match=r"'tiny'.*small, base, large, huge"):
        stunet_kwargs("tiny", CUBIC)
    assert list(STUNET_SIZES) == ["small", "base", "large", "huge"]


@pytest.mark.parametrize(
    ("strides", "message"), [([[1, 1], [2, 2]], "3-D"), ([[2, 2, 2]], r"\[1, 1, 1\]"), ([], "plan")]
)
def test_strides_that_are_no_3d_plan_are_refused(strides, message):
    with pytest.raises(ValueError, match=message):
        stunet_kwargs("base", strides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "strides needs one entry for each of the 3 stages, but has 2"),
        ({"n_blocks_per_stage": [1, 1]}, "n_blocks_per_stage"),
        ({"kernel_sizes": [3, 2, 3]}, "odd"),
        ({"n_stages": 1}, "at least 2"),
    ],
)
def test_impossible_networks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
