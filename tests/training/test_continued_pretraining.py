"""Pretraining that begins with weights from elsewhere: a file of nnssl's layout, by path and from the Hub's cache."""

import csv

import pytest
import torch
from architectures import architecture
from made_data import PATCH, write_dataset

from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.training.checkpoints import FINAL, LATEST
from ssl_pretrain.transfer.weights_file import read_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return write_dataset(tmp_path / "preprocessed", cases=6)


@pytest.fixture
def donor():
    """The network of the made plans, with one output as in nnssl's pretraining."""
    torch.manual_seed(7)
    size = {"input_channels": 1, "num_classes": 1, "patch": PATCH}
    return build_backbone("plans", architecture=architecture("plain"), **size).network.state_dict()


def checkpoint(state, network="PlainConvUNet", trainer="BaseMAETrainer_BS8", kwargs=None, encoder="encoder.stages"):
    plan = {
        "architecture_plans": {"arch_class_name": network, "arch_kwargs": kwargs or {}},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": list(PATCH)}}},
        "key_to_encoder": encoder,
        "key_to_stem": "encoder.stages.0" if network == "PlainConvUNet" else "down_projection",
    }
    return {"network_weights": state, "trainer_name": trainer, "nnssl_adaptation_plan": plan}


def after(tmp_path, weights, **options):
    """Tensors after a run whose steps are too small to matter."""
    settings = {**options, "epochs": 1, "iters": 1, "val_iters": 1, "num_workers": 0, "device": "cpu", "fold": "0"}
    config = PretrainConfig(dataset="7", output_folder=str(tmp_path / "run"), pretrained_weights=weights, **settings)
    folder = pretrain(config.with_settings({"lr": "1e-12"})).folder
    content = torch.load(folder / FINAL, weights_only=True)
    assert content["pretraining"]["config"]["pretrained_weights"] == weights
    return content["network_weights"], content["pretraining"]["pretrained_keys"]


def assert_from(donor, found):
    weights, pretrained = found
    assert pretrained
    for name in pretrained:
        torch.testing.assert_close(weights[name], donor[name], rtol=1e-4, atol=1e-6)


def test_from_a_file_of_nnssl(dataset, donor, tmp_path):
    torch.save(checkpoint(donor), tmp_path / "openmind.pth")
    assert_from(donor, after(tmp_path, str(tmp_path / "openmind.pth")))


def test_from_the_hub(dataset, donor, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="an extra: pip install anatomask[hub]")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--ORG--REPO"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    torch.save(checkpoint(donor), repository / "snapshots" / COMMIT / FINAL)
    assert_from(donor, after(tmp_path, "hf://ORG/REPO"))


def test_a_primus_of_nnssl_goes_on_with_its_axes_in_order(dataset, tmp_path):
    size = {"width": 36, "depth": 1, "heads": 2}
    network = build_backbone(
        "PrimusS", architecture={}, input_channels=1, num_classes=1, patch=PATCH, settings=size
    ).network
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in network.state_dict().items()}
    kwargs = {"embed_dim": 36, "eva_depth": 1, "eva_numheads": 2}
    file = tmp_path / "openmind.pth"
    torch.save(checkpoint(state, "Primus", "BaseEvaMAETrainer_BS8", kwargs, "eva"), file)
    in_order = read_weights(file, fix_nnssl_axes=True).tensors
    assert not torch.equal(in_order["eva.pos_embed"], state["eva.pos_embed"])

    options = {"method": "MAE", "network": "PrimusS", "network_settings": size, "fix_nnssl_axes": True}
    found, pretrained = after(tmp_path, str(file), **options)
    assert {"eva.pos_embed", "down_projection.proj.weight"} <= set(pretrained)
    assert_from(in_order, (found, [name for name in pretrained if name in in_order and name in state]))


def test_axes_without_a_file_are_refused():
    with pytest.raises(ValueError, match="fix_nnssl_axes is about the file of -pretrained_weights, and none is given"):
        PretrainConfig(dataset="7", fix_nnssl_axes=True)


def test_a_second_stage_of_two_views_begins_with_a_mae(dataset, tmp_path):
    """Encoder and decoder of student and teacher; each of its losses is logged as its mean over the epoch."""
    short = {"dataset": "7", "epochs": 1, "iters": 3, "val_iters": 1, "num_workers": 0, "device": "cpu", "fold": "0"}
    first = pretrain(PretrainConfig(method="MAE", output_folder=str(tmp_path / "first"), **short))
    start = {"pretrained_weights": str(first.checkpoint), "output_folder": str(tmp_path / "second")}
    config = PretrainConfig(method="TwoViewMAE", **start, **short)
    folder = pretrain(config.with_settings({"lr": "1e-12", "projector": "16", "predictor": "8"})).folder
    taken, began = (torch.load(f / FINAL, weights_only=True) for f in (first.folder, folder))
    names = taken["pretraining"]["pretrained_keys"]
    assert sorted(names) == sorted(began["pretraining"]["pretrained_keys"])
    assert any(name.startswith("decoder") for name in names)
    state = torch.load(folder / LATEST, weights_only=True)["state_dict"]
    for name in names:
        expected = taken["network_weights"][name]
        torch.testing.assert_close(began["network_weights"][name], expected, rtol=1e-4, atol=1e-6)
        teacher = state[f"teacher.module.autoencoder.backbone.network.{name}"]
        torch.testing.assert_close(teacher, expected, rtol=1e-4, atol=1e-6)
    with (folder / "metrics.csv").open() as handle:
        (row,) = csv.DictReader(handle)
    parts = [float(row[name]) for name in ("reconstruction", "consistency", "contrast")]
    assert min(parts) > 0
    weighted = sum(weight * part for weight, part in zip((5, 1, 0.1), parts, strict=True))
    assert float(row["train_loss"]) == pytest.approx(weighted, rel=1e-4)
