"""Weights into networks that differ from the file's: numbers of the report, and what the network then computes."""

import logging
from functools import partial

import pytest
import torch
from architectures import architecture
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.stunet import STUNet
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.networks.wrap import wrap_network
from ssl_pretrain.transfer.load import load_pretrained

DEEP = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SAME_WIDTH = 4
TOKENS = {
    "primus": ("PrimusS", {"width": 24, "depth": 1, "heads": 2}),
    "unetr": ("ViT_B16", {"width": 12, "depth": 1, "heads": 2}),
}


def u_net(kind, channels=1, stages=3, strides=None, kernels=None, width=None, seed=0):
    """Width None for the usual one, which doubles; else all stages have as many channels."""
    torch.manual_seed(seed)
    steps = strides or DEEP[:stages]
    widths = [width or 4 * 2 ** min(stage, 2) for stage in range(len(steps))]
    if kind == "stunet":
        settings = {"features_per_stage": widths, "kernel_sizes": kernels or [3] * len(steps), "n_stages": len(steps)}
        network = STUNet(channels, 3, n_blocks_per_stage=1, strides=steps, deep_supervision=True, **settings)
        return wrap_network(network, channels)
    entry = architecture(kind, steps)
    entry["arch_kwargs"]["features_per_stage"] = widths
    entry["arch_kwargs"]["kernel_sizes"] = kernels or [[3, 3, 3]] * len(steps)
    return build_backbone("plans", architecture=entry, input_channels=channels, num_classes=3, patch=(16, 16, 16))


def transformer(kind, channels=1, patch=(16, 32, 48), seed=0):
    torch.manual_seed(seed)
    name, settings = TOKENS[kind]
    size = {"input_channels": channels, "num_classes": 3, "patch": patch}
    return build_backbone(name, architecture={}, settings=settings, **size)


BUILDERS = {kind: partial(u_net, kind) for kind in ("plain", "resenc", "stunet")}
BUILDERS |= {kind: partial(transformer, kind) for kind in ("primus", "unetr")}
U_NETS = pytest.mark.parametrize("kind", ["plain", "resenc", "stunet"])
EVERY = pytest.mark.parametrize("kind", list(BUILDERS))


@pytest.fixture
def save(tmp_path):
    def write(backbone, ours=True, **said):
        state = backbone.network.state_dict()
        content = {"network_weights": state}
        if ours:
            content["pretraining"] = {"pretrained_keys": list(state), **said}
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def numbers(*modules):
    """Numbers in modules, shared ones once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def size_of(backbone):
    """Numbers in the parameters and buffers of a network that are saved, shared ones once."""
    tensors = {id(tensor): tensor for tensor in backbone.network.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in tensors.values())


def counts(report):
    return {kind: entry["parameters"] for kind, entry in report.to_json()["totals"].items()}


def in_table(report, kind):
    """Per cents of a kind, as the table shows them, added up."""
    rows = [line.split() for line in str(report).splitlines()[3:]]
    return sum(float(row[4]) for row in rows if row[0] == kind and row[4] != "-")


def patch_of(kind):
    return (16, 32, 48) if kind in TOKENS else (16, 16, 16)


def features(backbone, image):
    """Feature maps of the encoder; UNETR's first one is the image itself."""
    with torch.no_grad():
        maps = backbone.eval().encode(image)
    return maps[1:] if torch.equal(maps[0], image) else maps


def assert_same(ours, theirs, exact=False):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}))


# ---------------------------------------------------------------------------------------------------- equal networks


@EVERY
def test_equal_networks(kind, save):
    donor, target = BUILDERS[kind](), BUILDERS[kind](seed=1)
    image = torch.randn(2, 1, *patch_of(kind))
    assert not torch.equal(features(target, image)[-1], features(donor, image)[-1])
    report = load_pretrained(target.network, save(donor))
    assert_same(features(target, image), features(donor, image), exact=True)
    assert counts(report) == {"loaded": size_of(target), "adapted": 0, "fresh": 0, "unused": 0}
    assert report.fraction == 1
    assert in_table(report, "loaded") == pytest.approx(100, abs=0.5)


@EVERY
def test_a_strangers_file_lacks_the_head_and_nothing_else(kind, save):
    donor, target = BUILDERS[kind](), BUILDERS[kind](seed=1)
    report = load_pretrained(target.network, save(donor, ours=False))
    network = target.network
    heads = {"plain": "decoder.seg_layers", "resenc": "decoder.seg_layers", "stunet": "seg_outputs", "unetr": "out"}
    head = numbers(network.get_submodule(heads.get(kind, "up_projection.decode.2")))
    assert counts(report)["fresh"] == head > 0
    assert report.share("fresh") == pytest.approx(head / size_of(target))
    assert in_table(report, "fresh") == pytest.approx(100 * report.share("fresh"), abs=0.1)
    assert all(entry.reason.startswith("segmentation head") for entry in report.fresh)


# ----------------------------------------------------------------------------------------------------- input channels


def projections(backbone):
    weights = [backbone.network.get_submodule(key).weight for key in backbone.input_projection_keys]
    return list({id(weight): weight for weight in weights}.values())


@EVERY
@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        (1, 3, "repeated 3 times over channels, divided by 3"),
        (2, 3, "channels 0 1 0 of the file, each divided by how often it occurs"),
        (3, 2, "mean of 3 channels, times 3/2"),
        (2, 1, "mean of 2 channels, times 2/1"),
    ],
)
def test_other_channels_give_the_same_features_of_identical_channels(kind, theirs, ours, reason, save):
    donor, target = BUILDERS[kind](channels=theirs), BUILDERS[kind](channels=ours, seed=1)
    report = load_pretrained(target.network, save(donor, patch_size=list(patch_of(kind))))
    assert {entry.reason for entry in report.adapted} == {reason}
    assert counts(report)["adapted"] == sum(weight.numel() for weight in projections(target))
    assert report.fraction == 1
    assert in_table(report, "adapted") == pytest.approx(100 * report.share("adapted"), abs=0.05)
    image = torch.randn(1, 1, *patch_of(kind))
    theirs_of = features(donor, image.repeat(1, theirs, 1, 1, 1))
    assert_same(features(target, image.repeat(1, ours, 1, 1, 1)), theirs_of)


@EVERY
@pytest.mark.parametrize("channels", [(0, 0, 1), (1, 0)])
def test_mapped_channels_see_what_they_are_said_to_be(kind, channels, save):
    donor, target = BUILDERS[kind](channels=2), BUILDERS[kind](channels=len(channels), seed=1)
    report = load_pretrained(target.network, save(donor, patch_size=list(patch_of(kind))), channels=channels)
    image = torch.randn(1, 2, *patch_of(kind))
    assert_same(features(target, image[:, list(channels)]), features(donor, image))
    shown = " ".join(map(str, channels))
    assert all(entry.reason.startswith(f"channels {shown} of the file, as asked") for entry in report.adapted)
    assert len(report.adapted) == len(projections(target))


def test_inner_layers_are_not_mapped(tmp_path):
    """This network does not say where the image goes in, and a layer within has as many inputs as the image."""
    donor, target = (nn.Sequential(nn.Conv3d(n, 3, 3), nn.Conv3d(3, 5, 3)) for n in (2, 3))
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    report = load_pretrained(target, tmp_path / "weights.pth", channels=[0, 0, 1])
    assert [entry.name for entry in report.adapted] == ["0.weight"]
    assert torch.equal(target[1].weight, donor[1].weight)


def test_a_mapping_that_changes_nothing_is_no_adaptation(save):
    donor, target = u_net("plain", channels=2), u_net("plain", channels=2, seed=1)
    report = load_pretrained(target.network, save(donor), channels=[0, 1], strict=True)
    assert report.adapted == ()
    assert report.fraction == 1


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([0, 1], "names 2 channels, but the network has 3 input channels"),
        ([0, 1, 2], "channel 2 of the file, which has 2"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(channels, message, save):
    donor, target = u_net("stunet", channels=2), u_net("stunet", channels=3, seed=1)
    before = kept(target)
    with pytest.raises(ValueError, match=message):
        load_pretrained(target.network, save(donor), channels=channels)
    assert_unchanged(target, before)


def test_a_mapping_without_anything_to_map_is_refused(tmp_path):
    target = u_net("plain")
    state = {key: value for key, value in target.network.state_dict().items() if key.startswith("decoder.stages")}
    torch.save(state, tmp_path / "decoder.pth")
    with pytest.raises(ValueError, match=r"channels '0' cannot be mapped: .*decoder\.pth has no weights for the layer"):
        load_pretrained(target.network, tmp_path / "decoder.pth", channels=[0])


# -------------------------------------------------------------------------------------------------------- patch size


@pytest.mark.parametrize("kind", list(TOKENS))
def test_another_patch(kind, save):
    donor, target = BUILDERS[kind](), BUILDERS[kind](patch=(32, 16, 48), seed=1)
    report = load_pretrained(target.network, save(donor, patch_size=[16, 32, 48]))
    (entry,) = report.adapted
    assert entry.name == target.position_keys[0]
    assert counts(report)["adapted"] == target.network.state_dict()[entry.name].numel()
    assert report.fraction == 1


def test_rotary_tables_are_those_of_the_new_patch(save):
    donor, target, never_loaded = (BUILDERS["primus"](patch=p) for p in ((16, 32, 48), (32, 16, 48), (32, 16, 48)))
    load_pretrained(target.network, save(donor, patch_size=[16, 32, 48]))
    rope = target.network.eva.rope
    assert rope.feat_shape == (4, 2, 6)
    assert torch.equal(rope.get_embed(), never_loaded.network.eva.rope.get_embed())
    assert not torch.equal(rope.get_embed(), donor.network.eva.rope.get_embed())


@pytest.mark.parametrize("has_table", [True, False])
def test_a_rotary_table_is_never_taken_from_a_file(has_table, tmp_path):
    """Some versions save the table with the network; of another patch it may even have the same shape."""
    donor, target = BUILDERS["primus"](), BUILDERS["primus"](patch=(32, 16, 48), seed=1)
    rope = target.network.eva.rope
    table = rope.get_embed().clone()
    if has_table:
        rope.register_buffer("pos_embed", table.clone(), persistent=True)
    state = {**donor.network.state_dict(), "eva.rope.pos_embed": donor.network.eva.rope.get_embed()}
    plan = {"pretrain_plan": {"configurations": {"any": {"patch_size": [16, 32, 48]}}}}
    torch.save({"network_weights": state, "nnssl_adaptation_plan": plan}, tmp_path / "nnssl.pth")
    report = load_pretrained(target.network, tmp_path / "nnssl.pth")
    assert torch.equal(rope.get_embed(), table)
    (entry,) = [e for e in (*report.fresh, *report.unused) if "rope" in e.name]
    assert entry.reason.startswith("rotary table:")


def test_positions_of_a_file_without_a_patch_are_taken_for_a_cube_if_they_can_be(tmp_path):
    donor, target = BUILDERS["primus"](patch=(16, 16, 16)), BUILDERS["primus"](patch=(16, 24, 16), seed=1)
    torch.save(donor.network.state_dict(), tmp_path / "bare.pth")
    (entry,) = load_pretrained(target.network, tmp_path / "bare.pth").adapted
    assert entry.reason == (
        "positions interpolated from 2x2x2, taken for a cube as the file does not say its patch size, to 2x3x2 tokens"
    )


# ------------------------------------------------------------------------------------------------ kernels and strides


@U_NETS
def test_kernels_that_grow_leave_the_features_as_they_were(kind, save):
    flat = [[1, 3, 3], [1, 3, 3], [3, 3, 3]]
    donor, target = u_net(kind, kernels=flat), u_net(kind, seed=1)
    report = load_pretrained(target.network, save(donor))
    image = torch.randn(1, 1, 16, 16, 16)
    assert_same(features(target, image), features(donor, image))
    assert {entry.reason for entry in report.adapted} == {"kernel 1x3x3 to 3x3x3: centred among zeros"}
    assert {entry.file_shape[2:] for entry in report.adapted} == {(1, 3, 3)}
    assert report.fraction == 1


@U_NETS
def test_kernels_that_shrink_are_means(kind, save):
    donor, target = u_net(kind), u_net(kind, kernels=[[1, 3, 3], [3, 1, 3], [3, 3, 3]], seed=1)
    report = load_pretrained(target.network, save(donor))
    theirs = donor.network.state_dict()
    for entry in report.adapted:
        axis = 2 if entry.network_shape[2] == 1 else 3
        expected = theirs[entry.name].mean(axis, keepdim=True)
        torch.testing.assert_close(target.network.state_dict()[entry.name], expected)
    reasons = {entry.reason for entry in report.adapted}
    assert reasons == {"kernel 3x3x3 to 1x3x3: mean", "kernel 3x3x3 to 3x1x3: mean"}
    assert report.fraction == 1


def test_a_kernel_and_the_channels_change_together(save):
    donor, target = u_net("resenc"), u_net("resenc", channels=2, kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]], seed=1)
    report = load_pretrained(target.network, save(donor))
    stem = next(entry for entry in report.adapted if "stem" in entry.name)
    assert stem.reason == "kernel 3x3x3 to 1x3x3: mean; repeated 2 times over channels, divided by 2"
    assert (stem.file_shape, stem.network_shape) == ((4, 1, 3, 3, 3), (4, 2, 1, 3, 3))


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_steps_of_upsampling(kind, save):
    flat = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    donor, target = u_net(kind), u_net(kind, strides=flat, seed=1)
    report = load_pretrained(target.network, save(donor))
    (entry,) = report.adapted
    assert entry.name == "decoder.transpconvs.1.weight"
    assert entry.reason == "step of upsampling 2x2x2 to 1x2x2: mean"
    (back,) = load_pretrained(donor.network, save(target)).adapted
    assert back.reason == "step of upsampling 1x2x2 to 2x2x2: repeated"


def test_kernels_that_cannot_be_made_are_left_with_the_reason(tmp_path):
    def build(kernel, step):
        return nn.Sequential(nn.Conv3d(2, 2, kernel), nn.ConvTranspose3d(2, 2, step, step), nn.InstanceNorm3d(2))

    donor, target = build(5, 4), build(3, 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    report = load_pretrained(target, tmp_path / "weights.pth")
    assert [(entry.name, entry.reason) for entry in report.fresh] == [
        ("0.weight", "kernels of 5x5x5 cannot become 3x3x3"),
        ("1.weight", "steps of upsampling of 4x4x4 cannot become 2x2x2"),
    ]
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in ("0.weight", "1.weight"))


def test_half_precision_is_adapted_in_full_precision(save):
    donor, target = u_net("plain"), u_net("plain", channels=3, seed=1)
    weight = projections(donor)[0].detach().clone()
    donor.network.half()
    load_pretrained(target.network, save(donor))
    expected = weight.half().float().repeat(1, 3, 1, 1, 1) / 3
    assert torch.equal(projections(target)[0], expected)


# ------------------------------------------------------------------------------------------------------------- stages

DECODERS = {
    "plain": ("decoder.transpconvs", "decoder.stages"),
    "resenc": ("decoder.transpconvs", "decoder.stages"),
    "stunet": ("upsample_layers", "conv_blocks_localization"),
}
ENCODERS = {"plain": "encoder.stages", "resenc": "encoder.stages", "stunet": "conv_blocks_context"}


def level(network, name, index):
    """Tensors of one entry of a list."""
    return list(network.get_submodule(name)[index].state_dict().values())


def equal(ours, theirs):
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@U_NETS
@pytest.mark.parametrize(("theirs", "ours"), [(3, 5), (5, 3), (4, 3)])
def test_a_stage_is_loaded_at_its_own_resolution_only(kind, theirs, ours, save):
    """All stages have the same shapes here, so that only the counting keeps them apart."""
    donor, target = u_net(kind, stages=theirs, width=SAME_WIDTH), u_net(kind, stages=ours, width=SAME_WIDTH, seed=1)
    fresh = u_net(kind, stages=ours, width=SAME_WIDTH, seed=1).network
    report = load_pretrained(target.network, save(donor))
    network, shared = target.network, min(theirs, ours)
    for index in range(ours):
        name = ENCODERS[kind]
        expected = donor.network if index < theirs else fresh
        assert equal(level(network, name, index), level(expected, name, index)), index
    for name in DECODERS[kind]:
        for depth in range(1, ours):  # 1 is the finest level, which comes last
            expected = donor.network if depth < theirs else fresh
            assert equal(level(network, name, -depth), level(expected, name, -depth)), (name, depth)
    missing = [entry for entry in report.fresh if "stages" in entry.reason]
    assert bool(missing) is (ours > theirs)
    assert all(entry.reason == f"the file has {theirs} stages, the network {ours}; as initialised" for entry in missing)
    assert all(entry.reason == f"the file has {theirs} stages, the network {ours}" for entry in report.unused)
    assert bool(report.unused) is (theirs > ours)
    moved = [entry for entry in report.loaded if entry.reason]
    assert all(entry.reason.endswith("in the file: the same resolution") for entry in moved)
    lists = [network.get_submodule(name)[1 - shared :] for name in DECODERS[kind]]
    assert {entry.name for entry in moved} >= {
        f"{name}.{ours - 1 - depth}.{key}"
        for name, part in zip(DECODERS[kind], lists, strict=True)
        for depth in range(1, shared)
        for key, _ in part[-depth].named_parameters()
    }


@U_NETS
def test_numbers_of_a_network_with_more_stages(kind, save):
    donor, target = u_net(kind, stages=3), u_net(kind, stages=5, seed=1)
    report = load_pretrained(target.network, save(donor, ours=False))
    network = target.network
    surplus = [network.get_submodule(ENCODERS[kind])[3:]]
    surplus += [network.get_submodule(name)[:2] for name in DECODERS[kind]]
    heads = network.get_submodule("seg_outputs" if kind == "stunet" else "decoder.seg_layers")
    assert counts(report)["fresh"] == numbers(heads, *surplus)
    assert counts(report)["adapted"] == 0
    assert report.fraction == pytest.approx(1 - numbers(heads, *surplus) / numbers(network))


@U_NETS
def test_the_finer_features_of_a_deeper_file(kind, save):
    donor, target = u_net(kind, stages=5), u_net(kind, stages=3, seed=1)
    report = load_pretrained(target.network, save(donor, ours=False))
    image = torch.randn(1, 1, 32, 32, 32)
    assert_same(features(target, image), features(donor, image)[:3], exact=True)
    assert sum(entry.reason == "the file has 5 stages, the network 3" for entry in report.unused) > 0


def test_stages_are_counted_under_a_wrapper_too(tmp_path):
    donor, target = u_net("resenc", stages=4, width=SAME_WIDTH), u_net("resenc", stages=3, width=SAME_WIDTH, seed=1)
    wrapped = {f"backbone.{key}": value for key, value in donor.network.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pth")
    load_pretrained(target.network, tmp_path / "wrapped.pth")
    for name in DECODERS["resenc"]:
        assert equal(level(target.network, name, -1), level(donor.network, name, -1))


def test_surplus_and_missing_blocks(tmp_path):
    def build(blocks):
        entry = architecture("resenc")
        entry["arch_kwargs"]["n_blocks_per_stage"] = blocks
        return build_backbone("plans", architecture=entry, input_channels=1, num_classes=3, patch=(16, 16, 16)).network

    donor, target = build([1, 3, 1]), build([1, 1, 2])
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    report = load_pretrained(target, tmp_path / "weights.pth")
    missing = {entry.name.rpartition(".conv")[0] for entry in report.fresh if "nothing in the file" in entry.reason}
    assert all(name.startswith("encoder.stages.2.blocks.1") for name in missing)
    assert missing
    assert {entry.name.split(".blocks.")[1][0] for entry in report.unused} == {"1", "2"}
    assert {entry.reason for entry in report.unused} == {"no such tensor in the network"}


# ------------------------------------------------------------------------------------------------------------- strict


def kept(backbone):
    return {key: value.clone() for key, value in backbone.network.state_dict().items()}


def assert_unchanged(backbone, before):
    assert all(torch.equal(value, before[key]) for key, value in backbone.network.state_dict().items())


@EVERY
def test_strict_accepts_everything_but_the_heads(kind, save):
    donor, target = BUILDERS[kind](), BUILDERS[kind](seed=1)
    file = save(donor, ours=False)
    report = load_pretrained(target.network, file, strict=True)
    assert report.adapted == report.unused == ()
    assert 0 < len(report.fresh) < len(report.loaded)


@EVERY
def test_strict_refuses_what_is_adapted(kind, save):
    donor, target = BUILDERS[kind](), BUILDERS[kind](channels=2, seed=1)
    file, before = save(donor, patch_size=list(patch_of(kind))), kept(target)
    with pytest.raises(ValueError, match=r"does not fit this network exactly.*repeated 2 times.*Leave strict out"):
        load_pretrained(target.network, file, strict=True)
    assert_unchanged(target, before)


def test_strict_refuses_what_is_fresh(tmp_path):
    target = u_net("plain")
    state, before = dict(u_net("plain", seed=1).network.state_dict()), kept(target)
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.")}
    torch.save(encoder, tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"decoder\.stages\.0\..*: nothing in the file.* and \d+ more"):
        load_pretrained(target.network, tmp_path / "encoder.pth", strict=True)
    assert_unchanged(target, before)


def test_strict_refuses_what_is_left_over(tmp_path):
    target = u_net("plain")
    state = {**u_net("plain", seed=1).network.state_dict(), "projector.weight": torch.zeros(3, 3)}
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"projector\.weight: no such tensor in the network \(3x3 in the file, - here"):
        load_pretrained(target.network, tmp_path / "more.pth", strict=True)


def test_what_a_reader_leaves_out_is_in_the_table(tmp_path):
    """nnssl's files of a Primus hold what the pretext task decoded with, under a name that the network has as well."""
    donor, target = BUILDERS["primus"](), BUILDERS["primus"](seed=1)
    plan = {
        "architecture_plans": {"arch_class_name": "PrimusM"},
        "key_to_encoder": "eva",
        "pretrain_plan": {"configurations": {"any": {"patch_size": [16, 32, 48]}}},
    }
    state = {**donor.network.state_dict(), "decoder.blocks.0.weight": torch.zeros(3)}
    torch.save({"network_weights": state, "nnssl_adaptation_plan": plan}, tmp_path / "nnssl.pth")
    report = load_pretrained(target.network, tmp_path / "nnssl.pth")
    reasons = {entry.name: entry.reason for entry in (*report.fresh, *report.unused)}
    assert reasons.pop("decoder.blocks.0.weight") == "left out of the file: part of the pretext task"
    assert {name.split(".")[0] for name in reasons} == {"mask_token", "up_projection"}
    assert set(reasons.values()) == {"left out of the file: part of the pretext task"}
    with pytest.raises(ValueError, match=r"up_projection\.decode\.0\.0\.weight: left out of the file"):
        load_pretrained(target.network, tmp_path / "nnssl.pth", strict=True)


# ----------------------------------------------------------------------------------------------- what cannot be adapted


@pytest.mark.parametrize(("theirs", "ours"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("wrapper", ["", "backbone."])
def test_weights_of_another_dimension_are_refused(theirs, ours, wrapper, tmp_path):
    def build(dimension):
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dimension == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        common = {"kernel_sizes": 3, "strides": [1, 2], "conv_bias": True, "norm_op": norm, "nonlin": nn.LeakyReLU}
        return PlainConvUNet(
            1, 2, [4, 8], conv, n_conv_per_stage=1, num_classes=3, n_conv_per_stage_decoder=1,
            norm_op_kwargs={"affine": True}, **common,
        )  # fmt: skip

    target = build(ours)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save({wrapper + key: value for key, value in build(theirs).state_dict().items()}, tmp_path / "weights.pth")
    message = rf"weights\.pth holds the weights of a {theirs}-D network, and this network is {ours}-D: .* Use weights"
    with pytest.raises(ValueError, match=message):
        load_pretrained(target, tmp_path / "weights.pth")
    assert all(torch.equal(target.state_dict()[key], value) for key, value in before.items())


def test_another_kind_of_network_is_refused(save):
    with pytest.raises(ValueError, match=r"Nothing in .* fits this network\. The file has .*down_projection\.proj"):
        load_pretrained(u_net("plain").network, save(BUILDERS["primus"]()))


def test_another_width_is_left_with_the_reason(save):
    donor, target = u_net("stunet", width=4, stages=3), u_net("stunet", stages=3, seed=1)
    report = load_pretrained(target.network, save(donor))
    reasons = {entry.reason for entry in report.fresh if entry.file_shape}
    assert reasons == {"the shapes differ"}
    assert {entry.name.split(".")[0] for entry in report.loaded} >= {"conv_blocks_context", "seg_outputs"}


def test_the_report_is_in_the_log(save, caplog):
    donor, target = u_net("stunet"), u_net("stunet", channels=2, seed=1)
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        report = load_pretrained(target.network, save(donor))
    assert caplog.messages == [str(report)]


# ------------------------------------------------------------------------------------------------- networks of MONAI


def monai_unetr(size, channels=1):
    nets = pytest.importorskip("monai.networks.nets")
    scale = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 24, "num_heads": 2}
    return nets.UNETR(channels, 3, size, proj_type="conv", **scale)


def test_positions_of_monais_unetr_are_interpolated(tmp_path):
    donor, target = monai_unetr((16, 32, 48)), monai_unetr((32, 48, 16), channels=2)
    plan = {"pretrain_plan": {"configurations": {"any": {"patch_size": [16, 32, 48]}}}}
    torch.save({"state_dict": donor.state_dict(), "nnssl_adaptation_plan": plan}, tmp_path / "unetr.pth")
    report = load_pretrained(target, tmp_path / "unetr.pth")
    adapted = {entry.name: entry.reason for entry in report.adapted}
    name = "vit.patch_embedding.position_embeddings"
    assert adapted.pop(name) == "positions interpolated from 1x2x3 to 2x3x1 tokens"
    expected = resize_positions(donor.state_dict()[name], (1, 2, 3), (2, 3, 1))
    assert torch.equal(target.state_dict()[name], expected)
    assert set(adapted.values()) == {"repeated 2 times over channels, divided by 2"}
    assert {entry.name.split(".")[0] for entry in report.fresh} == {"out"}


def test_the_head_of_monais_swin_unetr_is_a_head(tmp_path):
    nets = pytest.importorskip("monai.networks.nets")
    donor, target = (nets.SwinUNETR(in_channels=c, out_channels=3, feature_size=12) for c in (1, 2))
    torch.save(donor.state_dict(), tmp_path / "swin.pth")
    report = load_pretrained(target, tmp_path / "swin.pth")
    assert {entry.name for entry in report.fresh} == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert {entry.name.split(".")[0] for entry in report.adapted} == {"swinViT", "encoder1"}
    assert report.unused == ()
