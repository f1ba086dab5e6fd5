"""Checkpoints as safetensors: what goes in comes out, aliases are stored once, and damage is named."""

from __future__ import annotations

import json
import os

import pytest
import torch
from made_target import checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

from ssl_pretrain.files import written_beside
from ssl_pretrain.transfer.safetensors_file import load_safetensors, save_safetensors
from ssl_pretrain.transfer.weights_file import read_weights


def test_what_goes_in_comes_out(tmp_path):
    content = json_like(checkpoint())
    save_safetensors(content, tmp_path / "w.safetensors")
    read = load_safetensors(tmp_path / "w.safetensors")
    weights, expected = read.pop("network_weights"), content.pop("network_weights")
    assert read == content
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def json_like(content):
    weights = content.pop("network_weights")
    return {**json.loads(json.dumps(content)), "network_weights": weights}


def test_the_header_is_what_the_format_says(tmp_path):
    content = checkpoint()
    save_safetensors(content, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        header, names = file.metadata(), set(file.keys())
    assert set(header) == {"format", "anatomask", "aliases"}
    assert header["format"] == "pt"
    about, aliases = json.loads(header["anatomask"]), json.loads(header["aliases"])
    assert set(about) == {"pretraining", "nnssl_adaptation_plan", "citations", "trainer_name"}
    weights = content["network_weights"]
    assert names | set(aliases) == set(weights)
    assert not names & set(aliases)
    assert set(aliases.values()) <= names
    assert aliases["decoder.encoder.stages.0.0.convs.0.conv.weight"] == "encoder.stages.0.0.convs.0.conv.weight"
    assert all(weights[alias].data_ptr() == weights[name].data_ptr() for alias, name in aliases.items())


def test_aliases_are_one_tensor_again_after_reading(tmp_path):
    save_safetensors(checkpoint(), tmp_path / "w.safetensors")
    weights = load_safetensors(tmp_path / "w.safetensors")["network_weights"]
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert weights[name].data_ptr() == weights[f"decoder.{name}"].data_ptr()


def test_our_reader_takes_the_same_from_either_format(tmp_path):
    content = checkpoint()
    torch.save(content, tmp_path / "w.pth")
    save_safetensors(content, tmp_path / "w.safetensors")
    one, other = (read_weights(tmp_path / f"w{suffix}") for suffix in (".pth", ".safetensors"))
    assert one.ours
    assert other.ours
    assert one.patch == other.patch
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_views_layouts_types_and_empty_tensors_keep_their_values(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    weights = {
        "view": whole[:, 1:],
        "transposed": whole.transpose(0, 2),
        "channels_last": torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0),
        "empty_too": torch.zeros(0),
    }
    save_safetensors({"network_weights": weights}, tmp_path / "w.safetensors")
    read = load_safetensors(tmp_path / "w.safetensors")
    assert set(read) == {"network_weights"}
    assert all(torch.equal(read["network_weights"][name], tensor) for name, tensor in weights.items())
    assert read["network_weights"]["half"].dtype == torch.bfloat16
    assert read["network_weights"]["count"].shape == ()


def test_a_strangers_file_has_tensors_and_nothing_else(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"author": "somebody"})
    assert set(load_safetensors(tmp_path / "w.safetensors")) == {"network_weights"}
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert load_safetensors(tmp_path / "w.safetensors")["network_weights"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "header",
    [
        {"anatomask": "{"},
        {"anatomask": "3"},
        {"aliases": json.dumps({"b": "gone"})},
        {"aliases": "[1]"},
    ],
)
def test_a_damaged_header_is_named(tmp_path, header):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", header)
    with pytest.raises(
        ValueError, match=r"w\.safetensors cannot be opened as a safetensors file \(.*header is damaged"
    ):
        load_safetensors(tmp_path / "w.safetensors")


def test_a_truncated_file_is_named(tmp_path):
    save_safetensors(checkpoint(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for size in (0, 5, 2000, len(whole) - 10):
        (tmp_path / "w.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"w\.safetensors cannot be opened.*truncated.*download it again"):
            load_safetensors(tmp_path / "w.safetensors")


def test_an_entry_that_json_cannot_say_is_named(tmp_path):
    content = {"network_weights": {"a": torch.ones(2)}, "citations": {1j}}
    with pytest.raises(ValueError, match=r"entry 'citations' cannot be written into the header.*Write a \.pth file"):
        save_safetensors(content, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_leaves_the_previous_file(tmp_path):
    save_safetensors({"network_weights": {"a": torch.ones(2)}}, tmp_path / "w.safetensors")
    written_beside(tmp_path / "w.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"Could not write .*The previous w\.safetensors is intact"):
        save_safetensors({"network_weights": {"a": torch.zeros(10**5)}}, tmp_path / "w.safetensors")
    assert load_safetensors(tmp_path / "w.safetensors")["network_weights"]["a"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
