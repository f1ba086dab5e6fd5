"""A decoder whose finest blocks compute decoded cells alone."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from architectures import architecture
from cells import batch_for, build, generator
from test_waiting import META, MetaGenerator, NoWaiting
from torch import Tensor, nn

from ssl_pretrain.functional.losses import cell_errors
from ssl_pretrain.functional.masking import Cells, draw_cells, random_mask, repeat_to
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods import METHODS, Method, MethodSetup, RunLength, build_method
from ssl_pretrain.methods.light_decoder import LightDecoder
from ssl_pretrain.methods.masking import Hidden
from ssl_pretrain.methods.spark_network import alone_level
from ssl_pretrain.networks import build_backbone

CELL, PATCH, GRID = (8, 8, 8), (16, 16, 32), (2, 2, 4)
STEPS = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "anisotropic": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "no map at the image's resolution": [[2, 2, 2], [1, 2, 2], [2, 1, 1]],
}


def made(method: str = "SparK", steps: str = "isotropic", *, patch=PATCH, **config) -> Method:
    """Cells of 8³; their last block, or the last two, computes cells alone."""
    torch.manual_seed(0)
    backbone = build_backbone(
        "plans", architecture=architecture("plain", STEPS[steps]), input_channels=1, num_classes=2, patch=patch
    )
    setup = MethodSetup(backbone=backbone, patch=patch, length=RunLength(10, 5, 2), seed=1)
    settings = {"mask_cell": CELL, "decode": 0.5, "sparse": "masked", **config}
    method = build_method(method, METHODS[method].Config(**settings), setup).train()
    method.tune()
    return method


def image(size: int = 2) -> Tensor:
    return torch.randn(size, 1, *PATCH, generator=torch.Generator().manual_seed(0))


def batch(size: int = 2) -> dict:
    return {"image": image(size), "case": ["a"] * size, "index": list(range(size)), "seeds": list(range(7, 7 + size))}


def masked_dense(network: nn.Module, filled: list[Tensor], cells: Tensor) -> Tensor:
    """The slow reference: whole maps, multiplied by the cells after every layer of the blocks that work alone."""
    decoder = network.decoder
    x = filled[0]
    with decoder.decoded.visible(cells):
        for i, block in enumerate(decoder.blocks):
            if 0 < i < len(filled):
                shown = repeat_to(cells, tuple(filled[i].shape[2:])).unsqueeze(1) if i > decoder.alone else 1.0
                x = x + filled[i] * shown
            if i == decoder.alone:
                x = block.up_sample(x)
                x = block.conv(x * repeat_to(cells, tuple(x.shape[2:])).unsqueeze(1))
            else:
                x = block(x)
        return decoder.head(x)


def whole_maps(network: nn.Module, picture: Tensor, mask: Tensor) -> list[Tensor]:
    """The decoder's inputs, every voxel of them."""
    level, network.decoder.alone = network.decoder.alone, None
    try:
        return network.densified(picture, mask)
    finally:
        network.decoder.alone = level


FORMS = [(1, *rest) for rest in product(STEPS, ["batch", "instance"], ["spark", "slim"])]


@pytest.mark.parametrize(("level", "steps", "decoder_norm", "decoder"), [*FORMS, (2, "anisotropic", "batch", "slim")])
def test_cells_alone_equal_their_masked_dense_form(level, steps, decoder_norm, decoder):
    method = made(decoder=decoder, decoder_norm=decoder_norm, steps=steps).double()
    network = method.student
    mask = random_mask(2, GRID, 9, generator())
    cells = draw_cells(mask, 5, [np.random.default_rng(i) for i in range(2)])
    strides = [block.up_sample for block in network.decoder.blocks]
    assert len(strides) == 3
    # As if it had been built to work alone from there.
    network.decoder = LightDecoder(
        network.decoder.widths[0],
        [getattr(up, "stride", (1, 1, 1)) for up in strides],
        1,
        decoder_norm,
        decoder,
        method.student.maps[0].channels if decoder == "slim" else None,
        alone=level,
    ).double()
    twin = copy.deepcopy(network)
    expected = masked_dense(twin, whole_maps(twin, image().double(), mask), cells.chosen)
    found = network(image().double(), mask, None, cells)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    outside = ~repeat_to(cells.chosen, PATCH).unsqueeze(1)
    assert torch.equal(found[outside], torch.zeros_like(found[outside]))
    gradient = torch.randn(found.shape, generator=generator(), dtype=found.dtype)
    found.backward(gradient)
    expected.backward(gradient)
    size = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]).norm()
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-9 * size, name
    for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("coarsest", "strides", "cell", "level"),
    [
        ((16, 16, 16), [(2, 2, 2)] * 4, (16, 16, 16), 2),
        ((8, 8, 8), [(2, 2, 2)] * 3, (8, 8, 8), 2),
        ((8, 8, 8), [(2, 2, 2)] * 3, (4, 4, 4), None),
        ((24, 24, 24), [(2, 2, 2), (2, 2, 2), (3, 3, 3), (2, 2, 2)], (48, 48, 48), 3),
        ((12, 12, 12), [(2, 2, 2), (2, 2, 2), (3, 3, 3)], (48, 48, 48), None),
    ],
)
def test_blocks_work_alone_from_where_cells_are_large_and_every_step_allows_it(coarsest, strides, cell, level):
    assert alone_level(coarsest, strides, cell) == level


def test_drawn_cells_are_masked_ones_and_each_is_as_likely_as_any_other():
    mask = random_mask(1, (3, 3, 3), 12, generator())
    times = torch.zeros(27)
    for seed in range(600):
        cells = draw_cells(mask, 4, [np.random.default_rng(seed)])
        assert cells.chosen.sum() == cells.each == 4
        times += cells.chosen.flatten()
    assert torch.equal(times > 0, mask.flatten())
    # 600 draws of 4 of 12: 200 ± 11.5.
    assert (times[mask.flatten()] - 200).abs().max() < 50


@pytest.mark.parametrize("method", ["SparK", "AnatoMask"])
def test_the_loss_of_a_training_step_is_the_mean_error_of_the_drawn_cells(method):
    task = made(method, decoder_norm="instance")
    hidden = task.choose(batch(), generator())
    assert hidden.decoded.each == task.drawn == round(0.5 * task.masked)
    assert hidden.decoded.chosen.flatten(1).sum(1).tolist() == [task.drawn] * 2
    assert not (hidden.decoded.chosen & ~hidden.mask).any()
    predicted = to_cells(task.student(image(), hidden.mask, None, hidden.decoded), CELL)
    errors = cell_errors(predicted, to_cells(image(), CELL))[hidden.decoded.chosen.flatten(1)]
    torch.testing.assert_close(task(batch(), generator()).loss, errors.mean())


def test_hard_cells_are_drawn_as_often_as_the_others():
    """Even those that the sample's own numbers lead to: as scores they choose what is masked and what is rated."""
    task, times, of = made("AnatoMask"), 0, 0
    for seed in range(300):
        scores = torch.from_numpy(np.random.default_rng(seed).random(16, dtype=np.float32))
        order = scores.argsort(descending=True)
        mask = torch.zeros(16, dtype=torch.bool)
        mask[order[: task.masked]] = True
        hidden = Hidden(mask.view(1, *GRID), task.masked)
        drawn = task.thinned(hidden, {**batch(1), "seeds": [seed]}, generator()).decoded.chosen.flatten()
        times, of = times + int(drawn[order[:5]].sum()), of + 5
    # 750 of 1500 expected, ± 14.
    assert task.drawn / task.masked == 0.5
    assert abs(times / of - 0.5) < 0.05


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch():
    task = made("AnatoMask")
    whole = task.choose(batch(), generator())
    second = {k: v[1:] for k, v in batch().items()}
    part = task.choose(second, generator(5))
    assert torch.equal(whole.decoded.chosen[1:], part.decoded.chosen)
    other = task.choose({**batch(), "seeds": [1, 2]}, generator())
    assert not torch.equal(whole.decoded.chosen, other.decoded.chosen)


@pytest.mark.parametrize("method", ["SparK", "AnatoMask"])
def test_validation_and_pictures_have_all_masked_cells(method):
    task = made(method).eval()
    hidden = task.choose(batch(), generator())
    assert hidden.decoded is None
    with torch.no_grad():
        predicted = to_cells(task.student(image(), hidden.mask), CELL)
        loss = task(batch(), generator()).loss
        panels = task.panels(batch(), generator())
    errors = cell_errors(predicted, to_cells(image(), CELL))
    torch.testing.assert_close(loss, errors[hidden.mask.flatten(1)].mean())
    reconstructed = to_cells(panels[2].values.unsqueeze(0), CELL)[0]
    assert (reconstructed.std(1) > 0).all()
    for teacher in task.networks()[1:]:
        assert teacher.decoder.alone == task.student.decoder.alone


def test_both_ways_have_the_same_parameters():
    alone, whole = (made("AnatoMask", teacher="coarse", decode=decode).state_dict() for decode in (0.5, None))
    assert list(alone) == list(whole)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in alone.items())


def test_the_coarse_head_learns_from_all_masked_cells():
    task = made("AnatoMask", teacher="coarse")
    task(batch(), generator()).loss.backward()
    coarse = task.student.decoder.coarse_head.weight.grad
    twin = made("AnatoMask", teacher="coarse", decode=0.1)
    twin(batch(), generator()).loss.backward()
    torch.testing.assert_close(twin.student.decoder.coarse_head.weight.grad, coarse)
    assert not torch.allclose(twin.student.decoder.head.weight.grad, task.student.decoder.head.weight.grad)


def step(task: Method) -> list[Tensor]:
    """Loss, gradients and running statistics."""
    loss = task(batch(), generator()).loss
    loss.backward()
    return [loss.detach(), *[p.grad for p in task.trained.parameters() if p.requires_grad], *task.trained.buffers()]


@pytest.mark.parametrize("decoder_norm", ["batch", "instance"])
@pytest.mark.parametrize(
    "switch",
    [{"sparse": "blocks"}, {"memory_format": "channels_last_3d"}, {"checkpointing": True}, {"compile": True}],
    ids=lambda switch: next(iter(switch)),
)
def test_a_switch_changes_nothing_here_either(switch, decoder_norm):
    settings = {"teacher": "coarse", "decoder_norm": decoder_norm, "memory_format": "contiguous"}
    expected = step(made("AnatoMask", **settings))
    found = step(made("AnatoMask", **{**settings, **switch}))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    size = torch.cat([t.flatten() for t in expected]).norm()
    assert torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)]).norm() <= 1e-4 * size


def test_mixed_precision_differs_by_its_rounding():
    task = made("AnatoMask", teacher="full", decoder_norm="instance")
    exact = task(batch(), generator()).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task(batch(), generator()).loss
    rounded.backward()
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.trained.parameters())


@pytest.mark.parametrize("teacher", ["full", "coarse"])
def test_a_step_that_draws_cells_asks_the_device_nothing(teacher, monkeypatch):
    task = build("AnatoMask", "plans", decode=0.5, teacher=teacher, mask_cell=CELL, sparse="blocks").train()
    assert task.student.decoder.alone == 1
    task.tune()
    data = batch_for(task)
    task.to(META)
    data["image"] = data["image"].to(META)
    monkeypatch.setattr(torch, "Generator", MetaGenerator)
    with NoWaiting():
        loss = task(data, torch.Generator().manual_seed(0)).loss
        loss.backward()
        task.update_teachers()
    assert loss.device == META


def test_the_cost_is_that_of_the_drawn_cells_and_the_teachers_of_the_masked_ones():
    none, every, few = (made("AnatoMask", teacher="full", decode=decode).multiply_adds() for decode in (None, 1.0, 0.2))
    assert few["decoder"] < every["decoder"] < none["decoder"]
    assert few["densify"] <= every["densify"]
    assert few["teacher"] == every["teacher"] < none["teacher"]
    assert few["encoder"] == none["encoder"]


def test_the_description_says_what_is_decoded():
    assert "the last 1 blocks compute 5 of the 10 masked cells in a training step" in made().describe()
    assert made(decode=None).describe().endswith("feature maps densified")
    small = made(mask_cell=(4, 4, 4))
    assert "decode=0.5 has no effect: cells of (4, 4, 4) voxels are too small" in small.describe()
    assert small.choose(batch(), generator()).decoded is None
    assert torch.equal(
        small(batch(), generator()).loss, made(mask_cell=(4, 4, 4), decode=None)(batch(), generator()).loss
    )


@pytest.mark.parametrize("decode", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(decode):
    with pytest.raises(ValueError, match="decode must be greater than 0 and at most 1, or None for every cell"):
        METHODS["SparK"].Config(decode=decode)


def test_cells_that_nobody_counted_are_counted():
    task = made(decode=1.0)
    mask = random_mask(2, GRID, task.masked, generator())
    told = task.student(image(), mask, 16 - task.masked, Cells(mask, task.masked))
    assert torch.equal(task.student(image(), mask), told)
