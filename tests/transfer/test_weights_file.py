"""One door for weights of every format; what is behind it is tested in ``sources/``."""

import importlib

import pytest
import torch

import ssl_pretrain.transfer.sources as package
from ssl_pretrain.transfer.sources.base import Opened
from ssl_pretrain.transfer.weights_file import SOURCES, WeightsFile, read_weights

LAYOUTS = {
    "ours": {"network_weights": {"a.b": torch.ones(2)}, "pretraining": {"pretrained_keys": ["a.b"]}},
    "anatomask": {"network_weights": {"module.sparse_encoder.sp_cnn.a.b": torch.ones(2)}},
    "nnssl": {"network_weights": {"a.b": torch.ones(2)}, "nnssl_adaptation_plan": {"key_to_encoder": "a"}},
    "stunet": {"state_dict": {"conv_blocks_context.0.0.conv1.weight": torch.ones(2)}, "plot_stuff": ()},
    "nnunet_v1": {"state_dict": {"conv_blocks_context.0.blocks.0.conv.weight": torch.ones(2)}},
    "nnunet_v2": {"network_weights": {"a.b": torch.ones(2)}, "init_args": {"plans": {}}},
    "dae": {"model": {"encoder.layers1.0.0.blocks.0.attn.qkv.weight": torch.ones(2)}},
    "monai_swin": {"state_dict": {"module.layers1.0.blocks.0.attn.qkv.weight": torch.ones(2)}},
    "simmim3d": {"state_dict": {"net.encoder.patch_embedding.position_embeddings": torch.ones(2)}},
    "plain": {"a.b": torch.ones(2), "epoch": 3},
}
"""What tells each format from the others."""


@pytest.fixture
def file(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def test_every_format_has_its_layout_here():
    assert [source.__name__.rpartition(".")[2] for source in SOURCES] == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read_by_its_reader(name, file):
    reader = importlib.import_module(f"{package.__name__}.{name}")
    weights = read_weights(file(LAYOUTS[name]))
    assert isinstance(weights, WeightsFile)
    assert weights.origin == reader.ORIGIN
    assert weights.ours == (name == "ours")
    assert len(weights.tensors) == 1
    assert "network_weights" not in weights.metadata


def test_origins_differ():
    origins = [importlib.import_module(f"{package.__name__}.{name}").ORIGIN for name in LAYOUTS]
    assert len({*origins}) == len(origins)


def test_the_patch_of_ours_is_that_of_the_run_or_of_its_plan(file):
    plan = {"pretrain_plan": {"configurations": {"x": {"patch_size": [8, 16, 24]}}}}
    content = {**LAYOUTS["ours"], "nnssl_adaptation_plan": plan}
    assert read_weights(file(content)).patch == (8, 16, 24)
    content["pretraining"] = {**content["pretraining"], "patch_size": [16, 16, 16]}
    assert read_weights(file(content)).patch == (16, 16, 16)


@pytest.mark.parametrize("size", [None, [16, 16], "unknown", 7])
def test_what_is_no_patch_of_a_volume_is_none(size, file):
    content = {**LAYOUTS["ours"], "pretraining": {"pretrained_keys": ["a.b"], "patch_size": size}}
    assert read_weights(file(content)).patch is None


def test_entries_that_are_not_there_are_empty(tmp_path):
    opened = Opened(tmp_path, [1, 2], {})
    assert (opened.entry("pretraining"), opened.value("epoch"), opened.about) == ({}, None, {})


def test_a_missing_file_names_both_kinds_of_places(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"gone\.pth does not exist\..*or hf://ORG/REPO on the Hugging Face Hub"
    ):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_weights(tmp_path)


def test_a_file_without_tensors_is_refused(file):
    with pytest.raises(ValueError, match=r"holds no weights.*network_weights, state_dict, model"):
        read_weights(file({"epoch": 3}))


def test_axes_of_another_file_are_left_alone(file):
    with pytest.raises(ValueError, match=r"fix_nnssl_axes is for Primus checkpoints of nnssl.*is none \(STU-Net\)"):
        read_weights(file(LAYOUTS["stunet"]), fix_nnssl_axes=True)
