"""Files for another dataset or other plans: complete, described, reproducible, and taken by nnU-Net's own loader."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import replace

import pytest
import torch
from architectures import architecture, backbone
from made_data import PATCH, plans
from made_target import (
    SOURCE_PATCH,
    STRIDES,
    TARGET_PATCH,
    checkpoint,
    target_dataset,
    target_plans,
    write_checkpoint,
    write_target,
)
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as stock_load
from torch import nn

from ssl_pretrain.methods import METHODS, MethodSetup
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.primus import MODULE as PRIMUS
from ssl_pretrain.networks.primus import PrimusSize, primus_architecture
from ssl_pretrain.transfer.adapt import (
    FineTuningTarget,
    adapt_weights,
    build_target,
    check_output,
    read_content,
    save_content,
)
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint
from ssl_pretrain.transfer.encoder import load_encoder
from ssl_pretrain.transfer.images import images_of_plans
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.recognition import Built, recognise

TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn


class OwnNetwork(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.first = nn.Conv3d(channels, 4, 3, padding=1)
        self.head = nn.Conv3d(4, classes, 1)

    def forward(self, x):
        return self.head(self.encoder.first(x))


class MadeOwnTrainer(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, channels, classes, deep_supervision=True):
        return OwnNetwork(channels, classes)


class MadeOldTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(name, kwargs, imports, channels, classes, deep_supervision=True):
        return get_network_from_plans(name, kwargs, imports, channels, classes, deep_supervision=deep_supervision)
"""

PRIMUS_ENTRY = {"network_class_name": f"{PRIMUS}.PrimusS", "arch_kwargs": {}, "_kw_requires_import": []}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """nnU-Net's folders with the target's dataset; results are nowhere."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    write_target(tmp_path / "preprocessed", primus=PRIMUS_ENTRY)
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path)


def target(configuration="3d_fullres", trainer="nnUNetTrainer", channels=2):
    return FineTuningTarget(target_plans(primus=PRIMUS_ENTRY), target_dataset(channels), configuration, trainer)


def test_nnunets_own_loader_takes_the_file_as_it_is(home, source):
    adapted = adapt_weights(source, target())
    save_content(adapted.content, home / "out.pth")
    network = build_target(target(), seed=99).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with contextlib.redirect_stdout(io.StringIO()):
        stock_load(network, home / "out.pth")
    weights = adapted.content["network_weights"]
    assert weights.keys() == before.keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if ".seg_layers." in name else weights[name]), name


def test_what_the_source_gives_is_pretrained_and_the_rest_is_as_nnunet_initialises_it(home, source):
    adapted = adapt_weights(source, target(), seed=3)
    about, weights = adapted.content["pretraining"], adapted.content["network_weights"]
    by_hand, scratch = build_target(target(), seed=3).network, build_target(target(), seed=3).network.state_dict()
    report = load_pretrained(by_hand, source)
    assert report.adapted
    assert report.to_json() == adapted.report.to_json()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in by_hand.state_dict().items())
    pretrained, fresh = set(about["pretrained_keys"]), set(about["fresh_keys"])
    assert pretrained | fresh == set(weights)
    assert not pretrained & fresh
    assert {entry.name for entry in (*report.loaded, *report.adapted)} <= pretrained
    assert {entry.name for entry in report.fresh} <= fresh
    assert all(torch.equal(weights[name], scratch[name]) for name in fresh)
    # The stage that the source does not have, and what only a decoder has.
    assert "encoder.stages.3.0.convs.0.conv.weight" in fresh
    assert "encoder.stages.2.0.convs.0.conv.weight" in pretrained
    assert "decoder.encoder.stages.2.0.convs.0.conv.weight" in pretrained


def test_our_hook_takes_the_same_from_the_adapted_file_as_from_the_source(home, source):
    adapted = adapt_weights(source, target())
    save_content(adapted.content, home / "out.pth")
    direct, through = build_target(target(), seed=5).network, build_target(target(), seed=5).network
    load_pretrained(direct, source)
    report = load_pretrained(through, home / "out.pth")
    assert not report.adapted
    assert all(torch.equal(tensor, through.state_dict()[name]) for name, tensor in direct.state_dict().items())


def test_a_later_stage_of_a_cascade_gets_the_image_from_the_file_and_keeps_its_own_for_the_segmentation(home, source):
    """3 organs are 3 more input channels, after those of the image."""
    cascade = FineTuningTarget(cascaded(), target_dataset(2), "3d_cascade_fullres")
    adapted = adapt_weights(source, cascade, seed=3)
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    scratch = build_target(cascade, seed=3).network.state_dict()[stem]
    file = torch.load(source, weights_only=True)["network_weights"][stem]
    made = adapted.content["network_weights"][stem]
    assert made.shape[1] == 2 + 3
    assert torch.allclose(made[:, :2].sum(1, keepdim=True), file)
    assert torch.equal(made[:, 2:], scratch[:, 2:])
    entry = next(entry for entry in adapted.report.adapted if entry.name == stem)
    assert entry.reason.endswith("; 3 channels of the previous segmentation as initialised")
    chosen = adapt_weights(source, cascade, seed=3, channels=[0, 0]).content["network_weights"][stem]
    assert torch.equal(chosen, made)
    with pytest.raises(ValueError, match="names 5 channels, but the network has 2 input channels"):
        adapt_weights(source, cascade, channels=[0] * 5)
    # Back again: into the same network as it is, into that of the image alone without what is not the image's.
    save_content(adapted.content, home / "cascade.pth")
    network, images = build_target(cascade, seed=4).network, images_of_plans(cascade.plans, cascade.configuration)
    report = load_pretrained(network, home / "cascade.pth", images=images)
    assert torch.equal(network.state_dict()[stem], made)
    assert stem in {entry.name for entry in report.loaded}
    alone = adapt_weights(home / "cascade.pth", target())
    assert torch.equal(alone.content["network_weights"][stem], made[:, :2])
    assert [e.reason for e in alone.report.adapted] == ["3 channels of the previous segmentation in the file left out"]


def cascaded():
    plans = target_plans()
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"]["previous_stage"] = "3d_lowres"
    return plans


def test_images_that_were_prepared_otherwise_are_warned_about_also_by_the_adapted_file(home, source, caplog):
    plans = target_plans()
    plans["configurations"]["3d_fullres"].update(spacing=[4.0, 1.0, 1.0], normalization_schemes=["CTNormalization"])
    aim = FineTuningTarget({**plans, "transpose_forward": [1, 0, 2]}, target_dataset(), "3d_fullres")
    adapted = adapt_weights(source, aim)
    assert len(adapted.report.warnings) == 3
    assert caplog.messages[-3:] == list(adapted.report.warnings)
    save_content(adapted.content, home / "out.safetensors")
    images = images_of_plans(aim.plans, aim.configuration)
    again = load_pretrained(build_target(aim).network, home / "out.safetensors", images=images)
    assert [line.partition(" ")[2] for line in again.warnings] == [
        line.partition(" ")[2] for line in adapted.report.warnings
    ]


def test_it_says_what_the_tensors_are_of_now_and_what_they_were(home, source):
    original = checkpoint()
    content = adapt_weights(source, target(), channels=[0, 0], seed=1).content
    about, said = content["pretraining"], content["pretraining"]["adaptation"]
    assert about["plans"] == target().plans
    assert (about["network"], about["configuration"]) == ("plans", "3d_fullres")
    assert (tuple(about["patch_size"]), about["input_channels"]) == (TARGET_PATCH, 2)
    for name in ("method", "epoch", "seed", "config", "citations", "versions"):
        assert about[name] == original["pretraining"][name], name
    assert said["source"]["plans"] == original["pretraining"]["plans"]
    assert tuple(said["source"]["patch_size"]) == SOURCE_PATCH
    assert said["source"]["input_channels"] == 1
    assert (said["file"], said["origin"], said["dataset"]) == (source.name, "anatomask", target().plans["dataset_name"])
    assert (said["trainer"], said["channels"], said["seed"]) == ("nnUNetTrainer", [0, 0], 1)
    assert 0 < said["fraction"] < 1
    plan = content["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"
    assert plan["architecture_plans"]["arch_kwargs"]["strides"] == STRIDES
    assert plan["pretrain_num_input_channels"] == 2
    assert tuple(plan["recommended_downstream_patchsize"]) == TARGET_PATCH
    assert plan["key_to_encoder"] == original["nnssl_adaptation_plan"]["key_to_encoder"]
    assert content["citations"] == original["citations"]
    assert content["trainer_name"] == "SparK"


def test_adapting_again_keeps_the_whole_history(home, source):
    save_content(adapt_weights(source, target()).content, home / "first.pth")
    said = adapt_weights(home / "first.pth", target()).content["pretraining"]["adaptation"]
    assert said["file"] == "first.pth"
    assert said["source"]["adaptation"]["file"] == source.name
    assert tuple(said["source"]["adaptation"]["source"]["patch_size"]) == SOURCE_PATCH


def test_of_a_strangers_file_it_says_no_more_than_there_is(home):
    torch.save({"state_dict": backbone().network.state_dict()}, home / "theirs.pth")
    content = adapt_weights(home / "theirs.pth", target()).content
    about = content["pretraining"]
    assert {about[name] for name in ("method", "epoch", "seed", "versions")} == {None}
    assert about["config"] == {}
    assert about["citations"] == []
    assert about["adaptation"]["source"] == {}
    assert not {"citations", "trainer_name"} & set(content)
    assert "encoder.stages.0.0.convs.0.conv.weight" in about["pretrained_keys"]


def test_the_seed_decides_about_fresh_tensors_and_nothing_else_is_touched(home, source):
    environment, state = dict(os.environ), torch.get_rng_state()
    first, again, other = (adapt_weights(source, target(), seed=seed).content for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == environment
    assert {file.name for file in home.iterdir()} == {"preprocessed", source.name}
    fresh = "encoder.stages.3.0.convs.0.conv.weight"
    weights = [content["network_weights"] for content in (first, again, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not torch.equal(weights[0][fresh], weights[2][fresh])
    assert torch.equal(
        weights[0]["encoder.stages.0.0.convs.0.conv.weight"], weights[2]["encoder.stages.0.0.convs.0.conv.weight"]
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_file_is_complete_and_small_in_either_format(home, source, suffix):
    content = adapt_weights(source, target()).content
    file = home / "deep" / f"out{suffix}"
    save_content(content, file)
    weights = content["network_weights"]
    numbers = sum({tensor.data_ptr(): tensor.numel() for tensor in weights.values()}.values())
    assert sum(tensor.numel() for tensor in weights.values()) > 1.5 * numbers
    assert file.stat().st_size < 4 * numbers + 200_000
    read = read_content(file)
    assert read["pretraining"] == content["pretraining"]
    assert read["network_weights"].keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read["network_weights"].items())


def test_an_encoder_gives_the_same_features_before_and_after(home, source):
    same = FineTuningTarget(target_plans(), target_dataset(1), "3d_fullres")
    save_content(adapt_weights(source, same).content, home / "out.pth")
    image = torch.randn(1, 1, *SOURCE_PATCH)
    with torch.no_grad():
        before, after = (load_encoder(file)(image).maps for file in (source, home / "out.pth"))
    assert len(before) == len(after) == 3
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_sizes_of_a_network_that_was_asked_for_are_in_the_plans_now(home):
    """A Primus that pretraining built by ``-network PrimusS -network_settings``, and nnU-Net builds by its plans."""
    small = {"width": 36, "depth": 1, "heads": 2}
    method = METHODS["SimMIM"](METHODS["SimMIM"].Config(), MethodSetup(backbone=primus(small), patch=SOURCE_PATCH))
    config = {"network": "PrimusS", "network_settings": small}
    provenance = Provenance("SimMIM", "PrimusS", config, plans(), "3d_fullres", SOURCE_PATCH, (), 1, 0)
    source = build_checkpoint(method.backbone, {id(p) for p in method.backbone.network.parameters()}, provenance)
    torch.save(source, home / "primus.pth")
    written = target_plans(primus=primus_architecture(PrimusSize(**small)))
    written["configurations"]["primus"]["patch_size"] = list(SOURCE_PATCH)
    wanted = FineTuningTarget(written, target_dataset(1), "primus", "PrimusTrainer_ft")
    content = adapt_weights(home / "primus.pth", wanted).content
    about = content["pretraining"]
    assert about["network"] == "plans"
    assert "network_settings" not in about["config"]
    assert about["adaptation"]["network_settings"] == small
    save_content(content, home / "out.pth")
    image = torch.randn(1, 1, *SOURCE_PATCH)
    with torch.no_grad():
        before, after = (load_encoder(file)(image).pooled for file in (home / "primus.pth", home / "out.pth"))
    assert torch.equal(before, after)


def primus(settings):
    size = {"input_channels": 1, "num_classes": 3, "patch": SOURCE_PATCH}
    return build_backbone("PrimusS", architecture=architecture(), settings=settings, **size)


@pytest.fixture
def own_trainers(tmp_path, monkeypatch):
    folder = tmp_path / "trainers"
    folder.mkdir()
    (folder / "trainers_of_a_user.py").write_text(TRAINERS, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    yield folder
    sys.modules.pop("trainers_of_a_user", None)


def test_a_users_trainer_builds_a_network_that_is_none_of_ours(home, own_trainers):
    wanted = target(trainer="MadeOwnTrainer")
    network = build_target(wanted).network
    nn.init.constant_(network.encoder.first.weight, 0.5)
    torch.save(network.state_dict(), home / "own.pth")
    content = adapt_weights(home / "own.pth", wanted).content
    assert "network" not in content["pretraining"]
    assert content["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] == "OwnNetwork"
    assert content["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"] is None
    assert (content["network_weights"]["encoder.first.weight"] == 0.5).all()
    save_content(content, home / "out.pth")
    with pytest.raises(ValueError, match="OwnNetwork"):
        load_encoder(home / "out.pth")


def test_an_old_signature_and_deep_supervision_are_as_the_trainer_has_them(home, own_trainers):
    built = build_target(target(trainer="MadeOldTrainer"))
    assert built.network.decoder.deep_supervision is False
    assert build_target(target()).network.decoder.deep_supervision is True
    assert (built.input_channels, built.num_classes, built.patch) == (2, 4, TARGET_PATCH)


def test_our_trainers_are_found_without_setting_anything(home, monkeypatch):
    monkeypatch.setattr(run_training, "load_pretrained_weights", stock_load)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    built = build_target(target(trainer="STUNetTrainer_small_ft"))
    assert recognise(built).name == "STUNet_small"
    # Looking at a network does not change whose loader a training in this process runs.
    assert run_training.load_pretrained_weights is stock_load
    assert "nnUNet_extTrainer" not in os.environ


def test_errors_of_trainers_say_what_to_do(home, source):
    with pytest.raises(ValueError, match=r"-tr NoTrainer: there is no trainer of that name in nnU-Net nor in the fold"):
        build_target(target(trainer="NoTrainer"))
    with pytest.raises(ValueError, match=r"cannot build the network of primus in nnUNetPlans \(.*-tr PrimusTrainer_ft"):
        build_target(target("primus"))
    assert recognise(build_target(target("primus", "PrimusTrainer_ft"))).name == "plans"


def test_plans_that_name_code_or_places_elsewhere_are_refused_before_a_trainer_is_made(home):
    made = target()
    made.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "os.system"
    with pytest.raises(ValueError, match=r"code that we do not know: nonlin 'os\.system'"):
        build_target(made)
    elsewhere = replace(target(), plans={**target().plans, "dataset_name": "../elsewhere"})
    with pytest.raises(ValueError, match=r"dataset_name '\.\./elsewhere' leads to another folder"):
        build_target(elsewhere)


def test_strict_refuses_and_says_why(home, source):
    with pytest.raises(ValueError, match="strict"):
        adapt_weights(source, target(), strict=True)


@pytest.mark.parametrize(
    ("name", "built_as"),
    [
        *((name, name) for name in ("plans", "STUNet_small", "STUNet_large", "PrimusS", "PrimusL")),
        ("ViT_B16", "ViT_B16"),
        ("SwinUNETR", "SwinUNETR"),
        ("ResEncM", "ResEncM"),
    ],
)
def test_a_network_is_recognised_and_its_encoder_found(name, built_as):
    if name in ("ViT_B16", "SwinUNETR"):
        pytest.importorskip("monai")
    size = {"input_channels": 2, "num_classes": 4, "patch": (64, 64, 64)}
    with torch.device("meta"):
        ours = build_backbone(name, architecture=architecture(), **size)
    found = recognise(Built(ours.network, architecture(), **size))
    assert found.name == built_as
    for entry in ("architecture", "architecture_kwargs", "architecture_imports", "encoder_key", "stem_key"):
        assert getattr(found.backbone, entry) == getattr(ours, entry), entry
    assert found.backbone.input_projection_keys == ours.input_projection_keys
    assert found.backbone.position_keys == ours.position_keys
    assert set(found.backbone.encoder_keys) == set(ours.encoder_keys)


def test_a_network_of_another_size_is_not_taken_for_that_of_the_plans():
    other = architecture()
    other["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    size = {"input_channels": 2, "num_classes": 4, "patch": PATCH}
    network = build_backbone("plans", architecture=other, **size).network
    assert recognise(Built(network, architecture(), **size)).name is None


def test_a_place_to_write_to_is_checked_first(tmp_path):
    source = tmp_path / "weights.pth"
    source.touch()
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "README.md").touch()
    for output, folder, message in (
        ("out.txt", False, r"must end in \.pth or \.safetensors"),
        ("weights.pth", False, "is the file that is read"),
        ("folder.pth", False, "is a folder. Name a file"),
        ("weights.pth", True, "is there already and may be edited"),
        (".", True, r"README\.md is there already and may be edited"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output(tmp_path / output, source, folder=folder)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"model\.safetensors is there already"):
        check_output(tmp_path / "hub", tmp_path / "hub" / "model.safetensors", folder=True)
    check_output(tmp_path / "out.pth", "hf://org/repo")
    check_output(tmp_path / "folder.pth", source, folder=True)
