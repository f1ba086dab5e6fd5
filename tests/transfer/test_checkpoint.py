import os

import pytest
import torch
from architectures import backbone
from made_data import plans

from ssl_pretrain.files import save_atomic, written_beside
from ssl_pretrain.methods import MethodSetup, SparK, SparKConfig
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint
from ssl_pretrain.transfer.load import load_pretrained

PATCH = (16, 16, 16)
NNSSL_KEYS = {
    "architecture_plans",
    "pretrain_plan",
    "pretrain_num_input_channels",
    "recommended_downstream_patchsize",
    "key_to_encoder",
    "key_to_stem",
    "keys_to_in_proj",
    "key_to_lpe",
}


def made(name: str = "plans", **config):
    method = SparK(SparKConfig(**config), MethodSetup(backbone=backbone(name), patch=PATCH))
    provenance = Provenance("SparK", name, {"epochs": 1}, plans(), "3d_fullres", PATCH, SparK.citations, 1, 0)
    trained = {id(t) for t in (*method.student.parameters(), *method.student.buffers())}
    return method, build_checkpoint(method.backbone, trained, provenance)


@pytest.mark.parametrize("name", ["plans", "STUNet_small"])
def test_the_file_is_complete_and_opens_without_unpickling_code(name, tmp_path):
    method, content = made(name)
    save_atomic(content, tmp_path / "final.pth")
    read = torch.load(tmp_path / "final.pth", weights_only=True)
    expected = method.backbone.network.state_dict()
    assert list(read["network_weights"]) == list(expected)
    assert all(torch.equal(read["network_weights"][k], v) for k, v in expected.items())
    pretraining = read["pretraining"]
    assert not set(pretraining["pretrained_keys"]) & set(pretraining["fresh_keys"])
    assert set(pretraining["pretrained_keys"]) | set(pretraining["fresh_keys"]) == set(expected)
    assert set(pretraining["pretrained_keys"]) == set(method.backbone.encoder_keys)
    assert set(read["nnssl_adaptation_plan"]) == NNSSL_KEYS


def test_aliases_are_stored_once(tmp_path):
    method, content = made()
    save_atomic(content, tmp_path / "final.pth")
    parameters = sum(p.numel() for p in method.backbone.network.parameters())
    assert (tmp_path / "final.pth").stat().st_size < 1.3 * 4 * parameters + 100_000
    weights = torch.load(tmp_path / "final.pth", weights_only=True)["network_weights"]
    names = [k for k in weights if k.endswith("stages.0.0.convs.0.conv.weight")]
    assert len(names) == 2
    assert weights[names[0]].data_ptr() == weights[names[1]].data_ptr()


def test_stages_that_were_not_pretrained_count_as_fresh():
    _, content = made(stages=2)
    keys = content["pretraining"]["pretrained_keys"]
    assert any(k.startswith("encoder.stages.1.") for k in keys)
    assert not any("encoder.stages.2." in k for k in keys)


def test_our_own_loader_takes_the_pretrained_tensors_only(tmp_path):
    _, content = made()
    save_atomic(content, tmp_path / "final.pth")
    torch.manual_seed(99)
    target = backbone().network
    before = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_pretrained(target, tmp_path / "final.pth")
    for key, value in target.state_dict().items():
        pretrained = key in content["pretraining"]["pretrained_keys"]
        assert torch.equal(value, content["network_weights"][key] if pretrained else before[key]), key
    assert not [entry for entry in report.fresh if entry.file_shape]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_leaves_the_previous_file(tmp_path):
    target = tmp_path / "final.pth"
    save_atomic({"a": torch.ones(3)}, target)
    written_beside(tmp_path / "final.pth").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"Could not write .*final\.pth: .*previous final\.pth is intact"):
        save_atomic({"a": torch.zeros(10**6)}, target)
    assert torch.load(target, weights_only=True)["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["final.pth"]
