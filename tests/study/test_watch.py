"""A watched training is the training that it would have been; what is seen is noted once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import architecture, backbone
from torch import nn

from ssl_pretrain.networks.registry import NETWORKS, build_backbone
from ssl_pretrain.study.probe import LinearProbe, backbone_of
from ssl_pretrain.study.watch import NOTES, START, Watch, distances, parameters_of, step_after

FOUND = {"dice": 0.5, "labels": {"a": 0.5}, "per_case": {"case": {"a": 0.5}}}


class Trainer:
    """As much of nnU-Net's trainer as is looked at: an epoch of dropout and noise, and a validation that disturbs."""

    def __init__(self, folder: Path, epochs: int = 4, iters: int = 5) -> None:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that batchgenerators uses
        self.network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)
        self.output_folder = str(folder)
        self.num_epochs, self.num_iterations_per_epoch, self.current_epoch = epochs, iters, 0
        self.enable_deep_supervision, self.deep_supervision = True, True
        self.validated = 0

    def train_step(self, batch: torch.Tensor) -> float:
        assert self.network.training and self.deep_supervision
        loss = self.network(batch + float(np.random.rand())).square().mean()  # noqa: NPY002
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        self.deep_supervision = enabled

    def validate(self) -> dict[str, Any]:
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        torch.rand(3), np.random.rand(3)  # noqa: NPY002
        torch.set_num_threads(1)
        self.validated += 1
        return FOUND

    def train(self) -> list[float]:
        losses = []
        while self.current_epoch < self.num_epochs:
            self.network.train()
            losses += [self.train_step(torch.randn(2, 4)) for _ in range(self.num_iterations_per_epoch)]
            self.current_epoch += 1
        return losses


def test_a_training_is_bit_for_bit_the_same_with_points_and_without(tmp_path):
    plain, watched = Trainer(tmp_path / "plain"), Trainer(tmp_path / "watched")
    before = plain.train()
    watched = Trainer(tmp_path / "watched")
    watch = Watch(watched, watched.validate, (0.05, 0.35, 1.0))
    assert watched.train() == before
    ours, theirs = watched.network.state_dict(), plain.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [point.steps for point in watch.notes.curve] == [1, 7, 20]
    assert [entry.steps for entry in watch.notes.movement] == [1, 2, 7, 20]
    assert watched.validated == 3
    assert sorted(file.name for file in (tmp_path / "watched").iterdir()) == [START, NOTES]


def test_a_run_that_goes_on_neither_repeats_nor_loses_a_point(tmp_path):
    first = Trainer(tmp_path)
    Watch(first, first.validate, (0.3, 0.5, 0.8))
    first.num_epochs = 3  # killed after twelve steps or so; its checkpoint is of the first five
    with pytest.raises(StopIteration):
        steps = iter(range(12))
        step, first.train_step = first.train_step, lambda batch: (next(steps), step(batch))[1]
        first.train()
    again = Trainer(tmp_path)
    start = parameters_of(again.network)
    again.network.load_state_dict(first.network.state_dict())
    again.current_epoch = 1
    watch = Watch(again, again.validate, (0.3, 0.5, 0.8))
    assert [point.steps for point in watch.notes.curve] == [6, 10]
    again.train()
    assert [point.steps for point in watch.notes.curve] == [6, 10, 16]
    assert again.validated == 1
    last = watch.notes.movement[-1]
    assert last.steps == 20
    assert last.parts["network"].distance == pytest.approx(distances(again.network, start)["network"]["distance"])


def test_a_run_of_an_older_version_goes_on_without_its_start(tmp_path):
    trainer = Trainer(tmp_path)
    trainer.current_epoch = 2
    watch = Watch(trainer, trainer.validate, (1.0,))
    trainer.train()
    assert watch.notes.movement == [] and [point.steps for point in watch.notes.curve] == [20]


def test_notes_that_are_damaged_are_named(tmp_path):
    (tmp_path / NOTES).write_text('{"curve": [{"steps": 0}]}', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{NOTES}: .*Remove the folder of this run, and --c runs it again"):
        Watch(Trainer(tmp_path), dict)


def test_shares_are_the_nearest_steps():
    assert [step_after(share, 50) for share in (0.001, 0.05, 0.11, 0.5, 1.0)] == [1, 3, 6, 25, 50]


def test_distance_and_cosine_are_those_of_the_vectors_of_each_part():
    network = backbone().network
    start = parameters_of(network)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    found = distances(network, start)
    assert set(found) == {"encoder", "rest"}
    inside = [name for name in start if name.startswith("encoder.")]
    now = parameters_of(network)
    before, after = (torch.cat([side[name].flatten().double() for name in inside]) for side in (start, now))
    assert found["encoder"]["distance"] == pytest.approx(float((after - before).norm() / before.norm()))
    assert found["encoder"]["cosine"] == pytest.approx(float(torch.cosine_similarity(after, before, dim=0)))
    still = distances(network, now)["rest"]
    assert still == {"distance": 0.0, "cosine": pytest.approx(1.0)}
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    assert distances(network, start)["encoder"] == {"distance": None, "cosine": None}


def test_the_linear_head_is_one_convolution_of_all_maps_interpolated_and_concatenated():
    torch.manual_seed(0)
    made = backbone()
    probe = LinearProbe(made, 3).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    maps = [nn.functional.interpolate(one, (16, 16, 16), mode="trilinear") for one in made.encode(image)]
    # In eval mode fresh statistics are mean 0 and variance 1.
    weight = torch.cat([head.weight for head in probe.heads], 1) / (1 + 1e-5) ** 0.5
    bias = torch.stack([head.bias for head in probe.heads]).sum(0)
    assert torch.allclose(probe(image), nn.functional.conv3d(torch.cat(maps, 1), weight, bias), atol=1e-5)
    assert not {id(p) for p in probe.parameters()} & {id(p) for p in made.network.parameters()}
    probe(image).sum().backward()
    assert all(p.grad is None for p in made.network.parameters())


def trainer_of(network: nn.Module, entry: dict[str, Any]) -> SimpleNamespace:
    """What is asked of a trainer about its network."""
    manager = SimpleNamespace(patch_size=(16, 16, 16), configuration={"architecture": entry})
    labels = SimpleNamespace(num_segmentation_heads=3)
    return SimpleNamespace(
        network=network, configuration_manager=manager, num_input_channels=1, label_manager=labels, device="cpu"
    )


def test_the_feature_maps_of_a_transformer_are_found_too():
    made = build_backbone(
        "PrimusS",
        architecture=architecture(),
        input_channels=1,
        num_classes=3,
        patch=(16, 16, 16),
        settings=NETWORKS["PrimusS"].tiny,
    ).eval()
    entry = {
        "network_class_name": made.architecture,
        "arch_kwargs": made.architecture_kwargs,
        "_kw_requires_import": [],
    }
    found = backbone_of(trainer_of(made.network, entry))
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(found.encode(image)[0], made.encode(image)[0])
    with pytest.raises(
        ValueError, match=r"-probe needs to know the feature maps of the encoder of Conv3d, which is none"
    ):
        backbone_of(trainer_of(nn.Conv3d(1, 3, 1), architecture()))
