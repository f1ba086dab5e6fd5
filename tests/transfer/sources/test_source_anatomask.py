"""Checkpoints of the published AnatoMask and SparK-3D code."""

import pytest
import torch
from made_weights import save, stunet

from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module."])
def test_the_network_is_taken_out_of_its_pretext_task(wrapper, tmp_path):
    donor, network = stunet(), stunet()
    encoder = {name: value for name, value in donor.state_dict().items() if name.startswith("conv_blocks_context.")}
    others = {
        "dense_decoder.dec.0.up_sample.weight": torch.ones(8, 8, 4, 4, 4),
        "dense_decoder.proj.weight": torch.ones(1, 4, 1, 1, 1),
        "densify_norms.0.weight": torch.ones(12),
        "densify_projs.1.weight": torch.ones(8, 8, 3, 3, 3),
        "mask_tokens.0": torch.ones(1, 12, 1, 1, 1),
    }
    state = {f"{wrapper}sparse_encoder.sp_cnn.{name}": value for name, value in encoder.items()}
    content = {
        "network_weights": state | {f"{wrapper}{name}": value for name, value in others.items()},
        "optimizer_state": {},
        "grad_scaler_state": None,
        "train_loss": [0.5],
        "val_loss": [],
        "current_epoch": 999,
    }
    file = save(content, tmp_path / "STUNet_B_head_latest.pt")
    weights = read_weights(file)
    assert weights.origin == "AnatoMask (published code)"
    assert weights.metadata == {"current_epoch": 999}
    assert set(weights.tensors) == {*encoder, *others}
    report = load_pretrained(network, file)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in encoder.items())
    assert {entry.name for entry in report.unused} == set(others)
