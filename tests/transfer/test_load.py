"""Weights from every kind of file, into the networks that nnU-Net builds."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from ssl_pretrain.networks.stunet import STUNet
from ssl_pretrain.transfer.load import load_pretrained

COMMON = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 12],
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": [1, 2, 2],
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"affine": True},
    "nonlin": nn.LeakyReLU,
    "n_conv_per_stage_decoder": 1,
    "deep_supervision": True,
}


def plain(channels=1, classes=3):
    return PlainConvUNet(input_channels=channels, num_classes=classes, n_conv_per_stage=1, **COMMON)


def resenc(channels=1, classes=3):
    return ResidualEncoderUNet(input_channels=channels, num_classes=classes, n_blocks_per_stage=1, **COMMON)


def stunet(channels=1, classes=3):
    return STUNet(
        input_channels=channels,
        num_classes=classes,
        n_stages=3,
        features_per_stage=[4, 8, 12],
        n_blocks_per_stage=1,
        strides=[1, 2, 2],
        kernel_sizes=[3, 3, 3],
        deep_supervision=True,
    )


ENCODER = {plain: "encoder.", resenc: "encoder.", stunet: "conv_blocks_context."}
NETWORKS = pytest.mark.parametrize("build", [plain, resenc, stunet])


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def is_head(key):
    return "seg_layers" in key or "seg_outputs" in key


def is_from(network, donor, keys):
    ours, theirs = network.state_dict(), donor.state_dict()
    assert keys
    return all(torch.equal(ours[key], theirs[key]) for key in keys)


def body(network):
    return [key for key in network.state_dict() if not is_head(key)]


def encoder(network, build):
    return {key: value for key, value in network.state_dict().items() if key.startswith(ENCODER[build])}


# ---------------------------------------------------------------------------------------------- what is accepted


@NETWORKS
def test_our_file_gives_what_is_pretrained_and_nothing_else(build, save):
    donor, network = build(), build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    keys = list(encoder(donor, build))
    file = save({"network_weights": donor.state_dict(), "pretraining": {"pretrained_keys": keys, "method": "SparK"}})
    report = load_pretrained(network, file)
    aliases = {id(t) for k, t in network.state_dict(keep_vars=True).items() if k.startswith(ENCODER[build])}
    rest = [key for key, t in network.state_dict(keep_vars=True).items() if id(t) not in aliases]
    assert is_from(network, donor, keys)
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in rest)
    assert len(report.loaded) == len(aliases)
    assert (report.adapted, report.unused) == ((), ())
    assert report.fresh
    assert {entry.name for entry in report.fresh} <= set(rest)
    assert {entry.file_shape for entry in report.fresh} == {None}


def test_our_file_may_name_a_head_as_pretrained(save):
    donor, network = stunet(), stunet()
    content = {"network_weights": donor.state_dict(), "pretraining": {"pretrained_keys": list(donor.state_dict())}}
    report = load_pretrained(network, save(content))
    assert is_from(network, donor, list(donor.state_dict()))
    assert report.fraction == 1.0


@NETWORKS
@pytest.mark.parametrize("container", ["network_weights", "state_dict", "model", None])
def test_a_strangers_file_gives_everything_but_the_heads(build, container, save):
    donor, network = build(classes=3), build(classes=3)
    heads = {k: v.clone() for k, v in network.state_dict().items() if is_head(k)}
    state = donor.state_dict()
    report = load_pretrained(network, save(state if container is None else {container: state, "epoch": 7}))
    assert is_from(network, donor, body(network))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in heads.items())
    assert {entry.name for entry in report.fresh} == set(heads)
    assert all("segmentation head" in entry.reason for entry in report.fresh)
    assert report.unused == ()


def test_another_number_of_classes_is_no_obstacle(save):
    donor, network = plain(classes=9), plain(classes=2)
    report = load_pretrained(network, save({"network_weights": donor.state_dict()}))
    assert is_from(network, donor, body(network))
    assert report.fresh[0].file_shape[0] == 9
    assert report.fresh[0].network_shape[0] == 2


def test_a_nested_container_is_opened(save):
    donor, network = stunet(), stunet()
    load_pretrained(network, save({"model": {"state_dict": donor.state_dict(), "name": "x"}}))
    assert is_from(network, donor, body(network))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_of_wrappers_do_not_matter(prefix, save):
    donor, network = resenc(), resenc()
    report = load_pretrained(network, save({prefix + key: value for key, value in donor.state_dict().items()}))
    assert is_from(network, donor, body(network))
    assert report.unused == ()


def test_a_wrapped_network_is_filled(save):
    donor, network = resenc(channels=1), resenc(channels=2)
    wrapped = nn.DataParallel(torch.compile(network, backend="eager"))
    report = load_pretrained(wrapped, save(donor.state_dict()))
    keys = [key for key in body(network) if "stem.convs.0" not in key]
    assert is_from(network, donor, keys)
    assert [entry.name for entry in report.adapted] == ["encoder.stem.convs.0.conv.weight"]
    assert not any(entry.name.startswith(("module", "_orig_mod")) for entry in report.loaded)


def test_a_compiled_part_is_filled(save):
    donor, network = resenc(), resenc()
    network.encoder.stem = torch.compile(network.encoder.stem, backend="eager")
    report = load_pretrained(network, save(donor.state_dict()))
    assert torch.equal(network.encoder.stem.convs[0].conv.weight, donor.encoder.stem.convs[0].conv.weight)
    assert all(is_head(entry.name) for entry in report.fresh)


@NETWORKS
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("wrapper", ["", "encoder.", "backbone.network."])
def test_an_encoder_alone_finds_its_place(build, relative, wrapper, save):
    donor, network = build(), build()
    keys = encoder(donor, build)
    state = {wrapper + (key.removeprefix(ENCODER[build]) if relative else key): value for key, value in keys.items()}
    report = load_pretrained(network, save(state))
    assert is_from(network, donor, list(keys))
    assert report.unused == ()
    assert all(entry.name.startswith(ENCODER[build]) for entry in report.loaded)


def test_names_of_the_published_anatomask_code_are_understood(save):
    donor, network = stunet(), stunet()
    state = {f"module.sparse_encoder.sp_cnn.{key}": value for key, value in encoder(donor, stunet).items()}
    state["module.dense_decoder.proj.weight"] = torch.zeros(1, 4, 1, 1, 1)
    report = load_pretrained(network, save({"network_weights": state, "train_loss": [1.0]}))
    assert is_from(network, donor, list(encoder(donor, stunet)))
    assert [(entry.name, entry.network_shape) for entry in report.unused] == [("dense_decoder.proj.weight", None)]


@pytest.mark.parametrize("alias", [".conv.", ".all_modules.0."])
def test_any_one_alias_loads_the_tensor_and_counts_once(alias, save):
    donor, network = plain(), plain()
    other = ({".conv.", ".all_modules.0."} - {alias}).pop()
    other_norm = ".all_modules.1." if alias == ".conv." else ".norm."
    state = {
        key: value
        for key, value in donor.state_dict().items()
        if not key.startswith("decoder.encoder.") and other not in key and other_norm not in key
    }
    assert len(state) < len(donor.state_dict()) / 2
    report = load_pretrained(network, save({"network_weights": state}))
    assert is_from(network, donor, body(network))
    assert all(is_head(entry.name) for entry in report.fresh)
    assert report.unused == ()
    assert len(report.loaded) + len(report.fresh) == len(list(network.parameters()))


def test_an_alias_by_way_of_the_decoder_is_enough(save):
    donor, network = plain(), plain()
    state = {k: v for k, v in donor.state_dict().items() if k.startswith("decoder.encoder.") and "all_modules" in k}
    report = load_pretrained(network, save(state))
    assert is_from(network, donor, list(encoder(donor, plain)))
    assert len(report.loaded) == len(list(network.encoder.parameters()))


def test_a_checkpoint_of_nnunet_with_numpy_numbers_in_its_log_is_opened(save):
    donor, network = plain(), plain()
    content = {
        "network_weights": donor.state_dict(),
        "optimizer_state": torch.optim.SGD(donor.parameters(), 0.1).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.1)], "n": np.int64(3), "a": np.arange(3.0)},
        "_best_ema": np.float64(0.7),
        "flag": np.bool_(True),
        "name": np.str_("é"),
        "init_args": {"device": torch.device("cuda", 0), "fold": 0},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    load_pretrained(network, save(content))
    assert is_from(network, donor, body(network))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2_are_opened(module, save, tmp_path):
    donor, network = plain(), plain()
    source = save({"network_weights": donor.state_dict(), "ema": np.float64(0.5), "a": np.arange(4)})
    renamed = tmp_path / "renamed.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                present = b"numpy._core.multiarray" if b"numpy._core" in content else b"numpy.core.multiarray"
                assert present in content
                content = content.replace(present, module)
            new.writestr(name, content)
    load_pretrained(network, renamed)
    assert is_from(network, donor, body(network))
    assert not any("numpy" in str(entry) for entry in torch.serialization.get_safe_globals())


def test_half_precision_becomes_the_networks_precision(save):
    donor, network = stunet().half(), stunet()
    load_pretrained(network, save(OrderedDict(donor.state_dict())))
    assert network.conv_blocks_context[1][0].conv1.weight.dtype == torch.float32
    expected = donor.conv_blocks_context[1][0].conv1.weight.float()
    assert torch.equal(network.conv_blocks_context[1][0].conv1.weight, expected)


def test_buffers_are_loaded_too(save):
    donor, network = (nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)) for _ in range(2))
    donor(torch.randn(2, 1, 5, 5, 5))
    report = load_pretrained(network, save(donor.state_dict()))
    assert torch.equal(network[1].running_mean, donor[1].running_mean)
    assert int(network[1].num_batches_tracked) == 1
    assert report.fraction == 1.0


# ------------------------------------------------------------------------------------------------ more channels


@NETWORKS
def test_more_channels_give_the_same_answer_to_identical_channels(build, save):
    donor, network = build(channels=1), build(channels=4)
    report = load_pretrained(network, save({"network_weights": donor.state_dict(), **everything(donor)}))
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        one, four = donor(image), network(image.repeat(1, 4, 1, 1, 1))
    torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-5)
    assert len(report.adapted) == (2 if build is stunet else 1)
    assert report.adapted[0].file_shape == (4, 1, 3, 3, 3)
    assert report.adapted[0].network_shape == (4, 4, 3, 3, 3)
    assert report.adapted[0].reason == "repeated 4 times over channels, divided by 4"
    assert report.fraction == 1.0


def test_two_channels_become_four_in_the_same_order(save):
    donor, network = stunet(channels=2), stunet(channels=4)
    load_pretrained(network, save({"network_weights": donor.state_dict(), **everything(donor)}))
    image = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(torch.cat((image, image), 1)), donor(image), rtol=1e-4, atol=1e-5)


def test_a_network_that_names_no_input_projection_is_understood(save):
    def build(channels):
        return nn.Sequential(nn.Conv3d(channels, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))

    donor, network = build(1), build(3)
    report = load_pretrained(network, save(donor.state_dict()))
    assert [entry.name for entry in report.adapted] == ["0.weight"]
    torch.testing.assert_close(network[0].weight, donor[0].weight.repeat(1, 3, 1, 1, 1) / 3)


def test_inner_layers_are_never_repeated(save):
    donor, network = (nn.Sequential(nn.Conv3d(1, width, 3), nn.Conv3d(width, 8, 3)) for width in (4, 8))
    report = load_pretrained(network, save(donor.state_dict()))
    assert [(entry.name, entry.reason) for entry in report.fresh] == [
        ("0.weight", "the shapes differ"),
        ("0.bias", "the shapes differ"),
        ("1.weight", "the shapes differ"),
    ]
    assert report.adapted == ()


def everything(network):
    return {"pretraining": {"pretrained_keys": list(network.state_dict())}}


# ------------------------------------------------------------------------------------------------- what is refused


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(zipped, tmp_path):
    network, marker, file = stunet(), tmp_path / "marker", tmp_path / "evil.pth"
    content = {"network_weights": stunet().state_dict(), "extra": RunsCode(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"evil\.pth is refused: opening it would run (posix|nt|os)\.mkdir"):
        load_pretrained(network, file)
    assert not marker.exists()
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_an_array_of_objects_is_refused(save):
    content = {"network_weights": stunet().state_dict(), "extra": np.array([{}, None], dtype=object)}
    with pytest.raises(ValueError, match=r"refused|cannot be opened"):
        load_pretrained(stunet(), save(content))


def test_a_plain_pickle_that_would_run_code_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(RunsCode(marker)))
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        load_pretrained(stunet(), tmp_path / "evil.pkl")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"hello, I am a text file\n" * 9, b"", b"PK\x03\x04 not really", b"\x80\x02}"])
def test_what_is_no_checkpoint_is_refused_by_name(content, tmp_path):
    (tmp_path / "notes.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pth cannot be opened as a checkpoint.*truncated"):
        load_pretrained(stunet(), tmp_path / "notes.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_checkpoint_is_refused(zipped, tmp_path):
    file = tmp_path / "half.pth"
    torch.save({"network_weights": stunet().state_dict()}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.pth cannot be opened as a checkpoint.*truncated"):
        load_pretrained(stunet(), file)


@pytest.mark.parametrize("content", [{"network_weights": {}}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_file_without_tensors_is_refused(content, save):
    with pytest.raises(ValueError, match=r"holds no weights.*network_weights, state_dict, model"):
        load_pretrained(stunet(), save(content))


@pytest.mark.parametrize("keys", [[], ["encoder.gone.weight"]])
def test_a_file_of_ours_that_contradicts_itself_is_refused(keys, save):
    content = {"network_weights": stunet().state_dict(), "pretraining": {"pretrained_keys": keys}}
    with pytest.raises(ValueError, match=r"pretrained.*damaged"):
        load_pretrained(stunet(), save(content))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        load_pretrained(stunet(), tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_pretrained(stunet(), tmp_path)


def test_a_file_of_which_nothing_fits_is_refused_with_both_sides_named(save):
    network = stunet()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"Nothing in .* fits this network") as refusal:
        load_pretrained(network, save({"swinViT.layers1.0.weight": torch.zeros(3, 3), "out.conv.bias": torch.ones(2)}))
    assert "The file has swinViT.layers1, out.conv" in str(refusal.value)
    assert "the network has conv_blocks_context, upsample_layers, conv_blocks_localization, seg_outputs." in str(
        refusal.value
    )
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_heads_alone_are_nothing_that_fits(save):
    donor = stunet(classes=3)
    heads = {key: value for key, value in donor.state_dict().items() if is_head(key)}
    with pytest.raises(ValueError, match=r"Names that agree: seg_outputs.0.weight: segmentation head"):
        load_pretrained(stunet(classes=3), save({"network_weights": heads}))


def test_a_coincidence_of_names_under_another_path_is_not_taken_for_the_encoder(save):
    """The decoder of one network must not end in the encoder of another because both count their stages."""
    donor = {
        k.replace("decoder.stages", "tail.stages"): v for k, v in plain().state_dict().items() if "decoder.stages" in k
    }
    wide = PlainConvUNet(
        input_channels=1, num_classes=3, n_conv_per_stage=1, **{**COMMON, "features_per_stage": [8, 16, 24]}
    )
    with pytest.raises(ValueError, match="Nothing in"):
        load_pretrained(wide, save(donor))


def test_a_decoder_under_a_strange_path_is_not_taken_for_a_wider_encoder(save):
    """Its coarsest stage is as wide as that encoder's finest: biases and norms agree, and little else."""
    state = {k.replace("conv_blocks_localization", "tail"): v for k, v in stunet().state_dict().items() if "local" in k}
    settings = {"features_per_stage": [8, 16, 24], "strides": [1, 2, 2], "kernel_sizes": [3, 3, 3], "n_stages": 3}
    with pytest.raises(ValueError, match="Nothing in"):
        load_pretrained(STUNet(1, 3, n_blocks_per_stage=1, **settings), save(state))


def test_integers_do_not_become_weights(save):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = {**network.state_dict(), "1.weight": torch.ones(2, 2, dtype=torch.int64)}
    before = network[1].weight.clone()
    report = load_pretrained(network, save(state))
    assert [entry.name for entry in report.fresh] == ["1.weight"]
    assert report.fresh[0].reason == "torch.int64 in the file, torch.float32 in the network"
    assert torch.equal(network[1].weight, before)
