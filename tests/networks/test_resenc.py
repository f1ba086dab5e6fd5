"""ResEncM, L and XL, against what nnU-Net's planners plan and its trainers build."""

import json

import numpy as np
import pytest
import torch
from architectures import STRIDES, architecture
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as planners
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.resenc import CLASS, OPENMIND_KERNELS, OPENMIND_STRIDES, resenc_kwargs

SMALL = {"width": 4, "widest": 16, "depth": 2}
PRESETS = ("ResEncM", "ResEncL", "ResEncXL")


def build(preset, arch=None, patch=(32, 32, 32), channels=1, settings=None):
    return build_backbone(
        preset, architecture=arch or {}, input_channels=channels, num_classes=3, patch=patch, settings=settings
    )


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """What nnU-Net's planner of a preset plans for thick slices of 320 x 320 pixels: architecture and patch."""
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
        (tmp_path / folder / "Dataset900_Made").mkdir(parents=True)
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".b2nd", "dataset": {}}
    (tmp_path / "raw" / "Dataset900_Made" / "dataset.json").write_text(json.dumps(about))
    fingerprint = {"median_relative_size_after_cropping": 1.0}
    (tmp_path / "preprocessed" / "Dataset900_Made" / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))

    def plan(preset):
        shape, spacing = np.array([64, 320, 320]), np.array([3.0, 1.0, 1.0])
        planner = getattr(planners, f"nnUNetPlanner{preset}")("Dataset900_Made")
        with torch.device("meta"):  # networks are built to count their voxels
            made = planner.get_plans_for_configuration(spacing, shape, "made", 1e12, {})
        made = json.loads(json.dumps(made, default=lambda array: array.tolist()))
        return made["architecture"], tuple(made["patch_size"])

    return plan


@pytest.mark.parametrize("preset", ["ResEncM", "ResEncXL"])
def test_on_plans_of_the_planner_of_that_name_it_is_the_planned_network(planned, preset):
    arch, patch = planned(preset)
    with torch.device("meta"):
        made = build(preset, arch, patch)
    assert made.architecture == arch["network_class_name"]
    assert made.architecture_kwargs == arch["arch_kwargs"]
    assert list(made.architecture_imports) == arch["_kw_requires_import"]
    assert made.feature_maps[-1].stride != (1, 1, 1)


def test_the_planners_differ_in_patch_size_and_in_nothing_else_that_their_poolings_do_not_say(planned):
    plans = {preset: planned(preset) for preset in PRESETS}
    assert len({patch for _, patch in plans.values()}) == 3
    for arch, _ in plans.values():
        kwargs = arch["arch_kwargs"]
        assert kwargs == resenc_kwargs(kwargs["strides"], kwargs["kernel_sizes"])


@pytest.mark.parametrize("side", [128, 160, 192, 224])
def test_openminds_poolings_are_nnunets_for_isotropic_patches_of_the_presets(side):
    _, strides, kernels, _, _ = get_pool_and_conv_props([1.0] * 3, [side] * 3, 4, 999)
    assert [tuple(stride) for stride in strides] == list(OPENMIND_STRIDES)
    assert [tuple(kernel) for kernel in kernels] == list(OPENMIND_KERNELS)


def test_the_openmind_network_is_the_published_one_whatever_the_plans():
    with torch.device("meta"):
        made = build("ResEncL", architecture("plain", STRIDES["anisotropic"]), (64, 64, 64))
    kwargs = made.architecture_kwargs
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert kwargs["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert kwargs["strides"] == [[1, 1, 1], *[[2, 2, 2]] * 5]
    assert made.feature_maps[-1].stride == (32, 32, 32)
    encoder = sum(p.numel() for p in made.encoder.parameters())
    head = made.network.decoder.seg_layers.parameters()
    whole = sum(p.numel() for p in made.network.parameters()) - sum(p.numel() for p in head)
    # 90.30 M and, with five heads of one class, 102.35 M in nnssl.
    assert round(encoder / 1e6, 2) == 90.30
    assert round(whole / 1e6, 2) == 102.35
    assert made.input_projection_keys == ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0")


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("preset", ["ResEncM", "ResEncXL"])
def test_other_plans_lend_stages_strides_and_kernels(preset, strides):
    arch = architecture("plain", STRIDES[strides])
    made = build(preset, arch, channels=2, settings=SMALL)
    for name in ("strides", "kernel_sizes", "n_stages"):
        assert made.architecture_kwargs[name] == arch["arch_kwargs"][name]
    assert made.architecture_kwargs["features_per_stage"] == [4, 8, 16]
    assert made.architecture_kwargs["n_blocks_per_stage"] == [1, 2, 2]
    maps = made.encode(torch.zeros(1, 2, 16, 16, 16))
    for declared, found in zip(made.feature_maps, maps, strict=True):
        assert found.shape[1:] == (declared.channels, *(16 // s for s in declared.stride))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_is_the_one_nnunet_builds_initialisation_included(preset):
    torch.manual_seed(5)
    made = build(preset, architecture("plain"), channels=2, settings=SMALL)
    torch.manual_seed(5)
    kwargs, imports = json.loads(json.dumps([made.architecture_kwargs, made.architecture_imports]))
    theirs = get_network_from_plans(CLASS, kwargs, imports, 2, 3, deep_supervision=True).state_dict()
    ours = made.network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    # nnssl had PyTorch's: residual branches that count from the beginning.
    last_norms = [v for k, v in ours.items() if ".blocks." in k and k.endswith("conv2.norm.weight")]
    assert last_norms
    assert not any(norm.any() for norm in last_norms)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({}, r"ResEncM and ResEncXL need the strides .* or -network ResEncL"),
        ({"arch_kwargs": {"strides": [[1, 1], [2, 2]], "kernel_sizes": [[3, 3]] * 2}}, "ResEnc is 3-D: each of its"),
        ({"arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2]]}}, "as many kernels of a plan"),
    ],
)
def test_plans_that_name_no_volume_are_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        build("ResEncM", arch)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"Network ResEncL has no setting 'blocks'\. It has width, widest, depth\."):
        build("ResEncL", settings={"blocks": 3})
    with pytest.raises(ValueError, match="widest must be a whole number of at least 1, got 0"):
        build("ResEncL", settings={"widest": 0})
