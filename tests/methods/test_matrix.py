"""What must hold for every method on every network."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from cells import CHANNELS, batch_for, build, cells, families, generator, goes_together
from drift import DRIFT, measure

from ssl_pretrain.functional.masking import repeat_to
from ssl_pretrain.methods import METHODS
from ssl_pretrain.methods.recipe import build_optimizer
from ssl_pretrain.networks.registry import NETWORKS, shown_names
from ssl_pretrain.report.pictures import draw_picture
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint
from ssl_pretrain.transfer.load import load_pretrained

CELLS = cells()
MASKED = [(method, network) for method, network in CELLS if METHODS[method].masks]


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_every_trainable_parameter_gets_a_gradient_and_no_other_changes(method, network):
    made = build(method, network)
    made.train()
    loss = made(batch_for(made), generator()).loss
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    trained = {name: p for name, p in made.trained.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    ids = {id(p) for p in trained.values()}
    others = {name: p.detach().clone() for name, p in made.backbone.network.named_parameters() if id(p) not in ids}
    before = {name: p.detach().clone() for name, p in trained.items()}
    build_optimizer(made.recipe, made.trained.parameters(), fused=False).step()
    after = dict(made.backbone.network.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in others.items())
    moved = [name for name, p in trained.items() if not torch.equal(before[name], p)]
    # A bias before a normalisation has no influence, and a gradient of 0 or of rounding errors.
    assert len(moved) > 0.6 * len(trained)
    assert all("seg_layers" not in name for name in moved)


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_the_loss_falls_on_one_batch(method, network):
    made = build(method, network, optimizer="adamw", lr=3e-3)
    made.eval()
    # Nothing is augmented and no mask guided; norms over a batch are what they are in training.
    made.trained.train()
    batch, optimizer = batch_for(made), build_optimizer(made.recipe, made.trained.parameters(), fused=False)
    losses = []
    for _ in range(12):
        loss = made(batch, generator()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.97 * losses[0], losses


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_loss_and_gradient_are_what_they_were(method, network):
    """Renew with ``python tests/methods/drift.py`` where a change is meant, and say so in the changelog."""
    stored = json.loads(DRIFT.read_text(encoding="utf-8"))
    assert f"{method} {network}" in stored, "a new cell: renew the file"
    assert measure(method, network) == pytest.approx(stored[f"{method} {network}"], rel=2e-3)


def test_nothing_is_stored_that_is_not_tested():
    assert set(json.loads(DRIFT.read_text(encoding="utf-8"))) == {f"{m} {n}" for m, n in CELLS}


@pytest.mark.parametrize("network", families())
@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_go_together_says_what_does(method, network):
    if goes_together(method, network):
        assert build(method, network).trained is not None
        return
    needed = "|".join(word for words in METHODS[method].needs for word in words)
    with pytest.raises(ValueError) as refused:
        build(method, network)
    said = str(refused.value)
    assert re.match(rf"{method} needs a network with .*({needed})", said)
    networks = shown_names([other for other in NETWORKS if goes_together(method, other)])
    methods = ", ".join(other for other in METHODS if goes_together(other, network))
    assert said.endswith(f"Use -network {networks}. With this network use -m {methods}.")


@pytest.mark.parametrize(("method", "network"), MASKED)
def test_the_loss_looks_at_masked_voxels_only(method, network, monkeypatch):
    made = build(method, network).eval()
    batch = batch_for(made)
    hidden = made.choose(batch, generator(3))
    with torch.no_grad():
        fixed = torch.randn(made.predict(batch["image"], hidden).shape, generator=generator(9))
    monkeypatch.setattr(made, "predict", lambda image, hidden: fixed)

    def loss_of(batch):
        # What compares several views has other losses beside that of its predictions.
        several = made.sample_views.count > 1
        return made.loss_of(fixed, batch, hidden) if several else made(batch, generator(3)).loss

    loss = loss_of(batch)
    assert 0 < hidden.mask.float().mean() < 1
    voxels = repeat_to(hidden.mask, made.patch)[:, None]
    elsewhere = {**batch, "image": torch.where(voxels, batch["image"], batch["image"] ** 2 + 1)}
    assert torch.equal(loss_of(elsewhere), loss)
    inside = {**batch, "image": torch.where(voxels, batch["image"] ** 2 + batch["image"], batch["image"])}
    assert not torch.allclose(loss_of(inside), loss, rtol=1e-4)


@pytest.mark.parametrize(("method", "network"), MASKED)
def test_masked_voxels_do_not_leak_into_the_prediction(method, network):
    """Not even one voxel across the border of a cell, which the published S3D lets through."""
    made = build(method, network).eval()
    image = batch_for(made)["image"]
    hidden = made.choose({"image": image}, generator(5))
    voxels = repeat_to(hidden.mask, made.patch)[:, None]
    with torch.no_grad():
        plain = made.predict(image, hidden)
        other = made.predict(torch.where(voxels, 50 * torch.randn(image.shape), image), hidden)
    assert torch.equal(plain, other)


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_what_is_exported_arrives_in_a_network_that_fine_tuning_builds(method, network, tmp_path):
    made = build(method, network)
    with torch.no_grad():
        for parameter in made.trained.parameters():
            parameter.add_(0.01)
    pretrained = {id(t) for t in (*[p for p in made.trained.parameters() if p.requires_grad], *made.trained.buffers())}
    provenance = Provenance(
        method=method,
        network=network,
        config={},
        plans={"configurations": {"3d_fullres": {}}},
        configuration="3d_fullres",
        patch=made.patch,
        citations=made.citations,
        epoch=1,
        seed=0,
    )
    content = build_checkpoint(made.backbone, pretrained, provenance)
    file = tmp_path / "checkpoint_final.pth"
    torch.save(content, file)
    fresh = build(method, network).backbone.network
    report = load_pretrained(fresh, file)
    weights, arrived = content["network_weights"], fresh.state_dict()
    keys = content["pretraining"]["pretrained_keys"]
    # The finest map of a U-Net enters no block of SparK's decoder, so that its last parameters may be left out.
    assert set(made.backbone.encoder_keys) <= set(keys) or hasattr(made.config, "stages")
    if made.exports == "network":
        assert set(made.backbone.decoder_keys) <= set(keys)
    else:
        assert not set(made.backbone.decoder_keys) & set(keys)
    assert [key for key in keys if not torch.equal(arrived[key], weights[key])] == []
    assert not [entry for entry in report.fresh if entry.file_shape]
    assert set(weights) == set(arrived), "stock nnU-Net wants every key"


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_a_batch_of_one_crop_with_one_channel_and_isotropic_strides(method, network):
    made = build(method, network, channels=1, strides="isotropic").train()
    assert torch.isfinite(made(batch_for(made, size=1), generator()).loss)
    assert Path(DRIFT).is_file()


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_ignored_voxels_have_no_influence_on_the_target(method, network):
    """Everything ignored: nothing is left to learn from."""
    made = build(method, network).train()
    batch = batch_for(made)
    everything = torch.ones(len(batch["image"]), 1, *made.patch, dtype=torch.bool)
    output = made({**batch, "ignored": everything}, generator())
    if made.masks:  # others have a target, or a part of the loss, in which no voxel of the image stands
        assert float(output.log.get("reconstruction", output.loss)) == pytest.approx(0.0, abs=1e-6)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.trained.parameters() if p.grad is not None)


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_the_picture_has_what_is_drawn(method, network, tmp_path):
    made = build(method, network).eval()
    with torch.no_grad():
        columns = made.panels(batch_for(made), generator())
    draw_picture(tmp_path / "picture.png", columns, title="x")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert any(column.tinted is not None for column in columns) == made.masks
    assert made.describe()


@pytest.mark.parametrize(("method", "network"), CELLS)
def test_the_dry_run_can_measure_it_without_numbers(method, network):
    made = build(method, network)
    crops = 2 * made.sample_views.count
    seen = []
    twin = copy.deepcopy(made).to("meta")
    for module in twin.trained.modules():
        module.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        twin.probe(torch.empty(crops, CHANNELS, *made.patch, device="meta"))
    layers = [m for m in twin.trained.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    assert len({id(module) for module in seen} & {id(module) for module in layers}) > 0.8 * len(layers)
