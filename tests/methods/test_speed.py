"""What makes a step faster changes nothing that it computes."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from architectures import backbone

from ssl_pretrain.methods import AnatoMask, AnatoMaskConfig, MethodSetup, RunLength, SparK, SparKConfig
from ssl_pretrain.methods.light_decoder import LightDecoder, decoder_widths
from ssl_pretrain.methods.tuning import choose_backend, time_encoder
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.backends import Choice, fastest

PATCH = (16, 16, 16)


def anatomask(batch_size: int = 2, **config) -> AnatoMask:
    torch.manual_seed(0)
    setup = MethodSetup(backbone=backbone(), patch=PATCH, length=RunLength(10, 5, batch_size), seed=1)
    method = AnatoMask(AnatoMaskConfig(mask_cell=(4, 4, 4), **config), setup).train()
    method.tune()
    return method


def step(method: SparK, seed: int = 0) -> list[torch.Tensor]:
    """The loss of a batch, every gradient and every running statistic."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 1, *PATCH, generator=generator)
    loss = method({"image": image, "case": ["a", "b"], "index": list(range(2))}, generator).loss
    loss.backward()
    gradients = [p.grad for p in method.trained.parameters() if p.requires_grad]
    return [loss.detach(), *gradients, *method.trained.buffers()]


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([t.flatten().double() for t in tensors]).norm())


@pytest.mark.parametrize("decoder", ["spark", "slim"])
@pytest.mark.parametrize("decoder_norm", ["batch", "instance"])
@pytest.mark.parametrize(
    "switch",
    [{"sparse": "blocks"}, {"memory_format": "channels_last_3d"}, {"checkpointing": True}, {"compile": True}],
    ids=lambda switch: next(iter(switch)),
)
def test_a_switch_changes_no_loss_no_gradient_and_no_running_statistic(switch, decoder, decoder_norm):
    settings = {"decoder": decoder, "decoder_norm": decoder_norm}
    expected = step(anatomask(**{"sparse": "masked", "memory_format": "contiguous", **settings}))
    found = step(anatomask(**{"sparse": "masked", "memory_format": "contiguous", **settings, **switch}))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    difference = norm([a - b for a, b in zip(found, expected, strict=True)])
    assert difference <= 1e-4 * norm(expected)


def test_the_memory_format_does_not_reach_the_optimiser():
    """The fused optimiser walks weights and moments in memory order; a run may continue with another format."""
    methods = [anatomask(memory_format=name, decoder_norm="batch") for name in ("contiguous", "channels_last_3d")]
    optimizers = [m.configure_optimizers()["optimizer"] for m in methods]
    for number in range(2):
        for method, optimizer in zip(methods, optimizers, strict=True):
            step(method, number)
            optimizer.step()
            optimizer.zero_grad()
        # From here on they are where the other one was.
        state = copy.deepcopy(optimizers[0].state_dict())
        optimizers[1].load_state_dict(state)
        methods[1].load_state_dict(methods[0].state_dict())
    for name, parameter in methods[1].student.named_parameters():
        assert parameter.is_contiguous(), name
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            assert moments["exp_avg"].stride() == parameter.stride()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sparse": "bloks"}, "sparse must be one of auto, masked, blocks, spconv, got 'bloks'"),
        ({"decoder": "slimm"}, "decoder must be one of spark, slim"),
        ({"memory_format": "chanels"}, "memory_format must be one of auto, contiguous, channels_last_3d"),
        ({"decoder_norm": "layer"}, "decoder_norm must be one of auto, batch, instance"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
        ({"accumulate": 1.5}, "accumulate must be a whole number of at least 1"),
    ],
)
def test_values_that_are_no_choice_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AnatoMaskConfig(**config)


def test_switches_do_not_change_names_or_weights():
    plain = anatomask(sparse="masked").state_dict()
    switched = anatomask(sparse="blocks", memory_format="channels_last_3d", compile=True, checkpointing=True)
    assert list(switched.state_dict()) == list(plain)
    for name, tensor in switched.state_dict().items():
        assert torch.equal(tensor, plain[name])
    switched.load_state_dict(plain)


def test_on_the_cpu_auto_packs_by_the_rule_and_student_and_teacher_agree():
    method = anatomask(sparse="auto")
    # Cells of 4³, 2³ and 1 voxels.
    assert [n.packed_stages for n in method.networks()] == [2, 2]
    assert [n.packed_stages for n in anatomask(sparse="masked").networks()] == [0, 0]


def test_what_was_chosen_is_logged_with_the_reason_for_the_rest(caplog):
    caplog.set_level(logging.INFO, "ssl_pretrain")
    method = anatomask(sparse="blocks")
    assert "sparse=blocks, 3 encoder stages: blocks in the first 2" in caplog.text
    method.student.packable = (1, "stage 1 has Conv3d(…)")
    caplog.clear()
    method.tune()
    assert "stages from 1 on cannot leave masked voxels out: stage 1 has Conv3d(…)" in caplog.text


def test_timing_an_encoder_leaves_network_and_random_state_alone():
    method = anatomask(sparse="masked")
    before, state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    image = torch.zeros(2, 1, *PATCH)
    assert time_encoder(method.student, Choice(2), image, method.masked) > 0
    assert method.student.packed_stages == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_the_fastest_choice_wins_and_all_times_are_logged(caplog):
    caplog.set_level(logging.INFO, "ssl_pretrain")
    seconds = {Choice(0): 0.3, Choice(1): 0.1, Choice(1, "spconv"): 0.2}
    assert fastest(seconds.__getitem__, list(seconds)) == Choice(1)
    assert (
        "masked in all: 300.0 ms, blocks in the first 1: 100.0 ms, spconv in the first 1: 200.0 ms; takes blocks"
    ) in caplog.text


def test_spconv_without_a_gpu_says_what_to_do():
    method = anatomask()
    with pytest.raises(ValueError, match="-set sparse="):
        choose_backend(method.student, "spconv", torch.zeros(2, 1, *PATCH), method.masked)


def test_several_teacher_masks_are_one_batch_of_what_each_would_be():
    method = anatomask(teacher_masks=3)
    image = torch.randn(2, 1, *PATCH)
    together = method.rate({"image": image}, [np.random.default_rng(i) for i in range(2)])
    method.config = AnatoMaskConfig(teacher_masks=1, mask_cell=(4, 4, 4))
    one_after_the_other = [generator for i in range(2) for generator in [np.random.default_rng(i)] * 3]
    apart = method.rate({"image": image.repeat_interleave(3, 0)}, one_after_the_other).view(2, 3, *method.grid)
    rated = apart != -torch.inf
    mean = apart.masked_fill(~rated, 0).sum(1) / rated.sum(1).clamp_min(1)
    expected = mean.masked_fill(~rated.any(1), -torch.inf)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-6)


def test_the_slim_decoder_costs_about_a_third_and_convolves_at_the_width_that_goes_out():
    spark, slim = anatomask(decoder="spark"), anatomask(decoder="slim")
    costs = [m.multiply_adds()["decoder"] for m in (spark, slim)]
    assert 0.25 < costs[1] / costs[0] < 0.45
    for block, width in zip(slim.student.decoder.blocks, slim.student.decoder.widths[1:], strict=True):
        assert block.up_sample.weight.shape[1] == width
        assert block.conv[0].weight.shape[:2] == (width, width)


def test_the_slim_decoder_is_no_wider_than_the_finest_map_at_full_resolution():
    strides = [(2, 2, 2), (2, 2, 2), (1, 1, 1)]
    assert decoder_widths(64, strides) == [64, 32, 16, 16]
    assert decoder_widths(64, strides, finest=4) == [64, 32, 4, 4]
    decoder = LightDecoder(64, strides, 1, "instance", "slim", finest=4)
    maps = [torch.zeros(1, w, n, n, n) for w, n in ((64, 2), (32, 4), (4, 8))]
    assert decoder(maps)[0].shape == (1, 1, 8, 8, 8)


def test_multiply_adds_are_those_of_the_published_network():
    """STU-Net base at 112×112×128: encoder 109.0, decoder 598.1, densify 83.2 of which 44.4 were never used (10^9)."""
    made = {"arch_kwargs": {"strides": [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 1]]}}
    patch = (112, 112, 128)
    network = build_backbone("STUNet_base", architecture=made, input_channels=1, num_classes=2, patch=patch)
    setup = MethodSetup(backbone=network, patch=patch, length=RunLength(10, 5, 1))
    config = SparKConfig(stages=5, sparse="masked", mask_cell=(16, 16, 16), decoder="spark")
    found = SparK(config, setup).multiply_adds()
    assert {name: round(n / 1e9, 1) for name, n in found.items()} == {
        "encoder, all voxels": 109.0,
        "encoder": 109.0,
        "densify": 38.8,
        "decoder": 598.1,
    }


def test_the_mask_saves_its_share_of_the_encoder():
    found = anatomask(sparse="blocks", mask_ratio=0.75).multiply_adds()
    assert found["encoder"] < 0.4 * found["encoder, all voxels"]
    assert found["teacher"] == found["encoder"] + found["densify"] + found["decoder"]
    dense = anatomask(sparse="masked", mask_ratio=0.75).multiply_adds()
    assert dense["encoder"] == dense["encoder, all voxels"] == found["encoder, all voxels"]
