"""safetensors with our metadata, and without."""

import pytest
import safetensors.torch
import torch
from made_weights import primus, stunet

from ssl_pretrain.transfer.safetensors_file import save_safetensors
from ssl_pretrain.transfer.weights_file import read_weights


def test_ours_is_what_the_checkpoint_is(tmp_path):
    """A tensor of several names is stored once, and read under all of them."""
    weights = primus().state_dict()
    weights["alias"] = weights["eva.pos_embed"]
    trained = [name for name in weights if name.startswith("eva.")] + ["alias"]
    content = {
        "network_weights": weights,
        "pretraining": {"pretrained_keys": trained, "method": "MAE", "patch_size": [16, 16, 24]},
        "nnssl_adaptation_plan": {"key_to_encoder": "eva"},
        "citations": [],
        "trainer_name": "MAE",
    }
    torch.save(content, tmp_path / "a.pth")
    save_safetensors(content, tmp_path / "a.safetensors")
    one, other = read_weights(tmp_path / "a.pth"), read_weights(tmp_path / "a.safetensors")
    assert set(one.tensors) == set(other.tensors) == set(trained)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in trained)
    assert (one.ours, one.patch, one.origin, dict(one.metadata)) == (
        True,
        (16, 16, 24),
        "anatomask",
        dict(other.metadata),
    )
    assert (other.ours, other.patch, other.origin) == (True, (16, 16, 24), "anatomask")
    assert one.metadata["pretraining"]["method"] == "MAE"
    assert one.metadata["nnssl_adaptation_plan"] == {"key_to_encoder": "eva"}
    assert "network_weights" not in one.metadata


def test_a_strangers_is_read_by_its_names(tmp_path):
    state = {f"module.{name}": value for name, value in stunet().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = read_weights(tmp_path / "model.safetensors")
    assert (weights.origin, weights.ours) == ("STU-Net", False)
    assert set(weights.tensors) == set(stunet().state_dict())


@pytest.mark.parametrize("content", [b"", b"\x05", b"hello, I am a text file\n" * 9])
def test_what_is_none_is_refused(content, tmp_path):
    (tmp_path / "notes.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.safetensors cannot be opened as a safetensors file.*truncated"):
        read_weights(tmp_path / "notes.safetensors")


def test_a_truncated_one_is_refused(tmp_path):
    file = tmp_path / "half.safetensors"
    safetensors.torch.save_file({"a": torch.ones(99)}, file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"half\.safetensors cannot be opened.*truncated"):
        read_weights(file)


@pytest.mark.parametrize("header", [{"anatomask": "{"}, {"aliases": '{"b": "gone"}'}])
def test_a_damaged_header_is_refused(header, tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "odd.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        read_weights(tmp_path / "odd.safetensors")
