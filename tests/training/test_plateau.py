"""The loss of mean answers: what a network on the plateau has, and one that looks at the image has not."""

import importlib
import json

import pytest
import torch
from architectures import architecture
from conftest import REPOSITORY
from made_data import write_dataset
from methods.cells import affine_of_views, network_for
from torch import nn

from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.methods import METHODS
from ssl_pretrain.methods.base import MethodSetup, RunLength
from ssl_pretrain.networks import NETWORKS, build_backbone
from ssl_pretrain.training.plateau import PLATEAU, Plateau, mean_answer, mean_answers

PATCH = (16, 16, 16)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module("benchmarks.plateau")


def test_every_channel_of_a_volume_has_its_mean():
    answer = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = mean_answer(answer)
    assert mean.shape == answer.shape
    for channel in range(3):
        assert mean[:, channel].unique().numel() == 1
        torch.testing.assert_close(mean[0, channel, 0, 0, 0], answer[:, channel].mean())


def test_every_voxel_of_a_cell_has_its_mean():
    answer = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mean = mean_answer(answer)
    torch.testing.assert_close(mean, answer.flatten(0, 1).mean(0).expand(2, 5, 8))


def test_the_network_answers_for_itself_again_afterwards():
    network, image = nn.Conv3d(1, 2, 1), torch.randn(2, 1, 2, 2, 2)
    with mean_answers(network):
        assert network(image)[:, 0].unique().numel() == 1
    assert network(image)[:, 0].unique().numel() > 1
    with pytest.raises(RuntimeError, match="stop"), mean_answers(network):
        raise RuntimeError("stop")
    assert network(image)[:, 0].unique().numel() > 1


def build(name):
    method = METHODS[name]
    network = network_for(name)
    backbone = build_backbone(
        network,
        architecture=architecture("plain"),
        input_channels=1,
        num_classes=2,
        patch=PATCH,
        settings=NETWORKS[network].tiny,
    )
    return method(method.Config(), MethodSetup(backbone=backbone, patch=PATCH, length=RunLength(1, 1, 2)))


def batch_of(method, coarse):
    """Smooth crops of two cases, four or as many as two samples have, from a grid of so many random values per axis."""
    views = method.sample_views
    samples = max(2, 4 // views.count)
    crops = samples * views.count
    image = nn.functional.interpolate(torch.randn(crops, 1, *(coarse,) * 3), size=views.size or PATCH, mode="trilinear")
    rows = [2 * number // crops for number in range(crops)]
    affine = affine_of_views(method).repeat(samples, 1, 1)
    return {"image": image, "row": rows, "index": list(range(crops)), "affine": affine}


def ratio(method, batch):
    method.eval()
    with torch.no_grad():
        real = method.validation_step(batch, 0)
        with mean_answers(method.judged):
            blind = method.validation_step(batch, 0)
    return float(real / blind)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_answers_the_same_whatever_it_sees_loses_nothing(name):
    torch.manual_seed(0)
    method = build(name)
    batch = batch_of(method, PATCH[0])
    for module in method.trained.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
            nn.init.zeros_(module.weight)
    assert ratio(method, batch) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_has_seen_the_batch_often_loses_much(name):
    torch.manual_seed(0)
    method = build(name)
    batch = batch_of(method, 2)
    batch["image"] *= 2
    # AnatoMask's teacher chooses masks in training, not in validation.
    method.eval()
    method.trained.train()
    optimizer = torch.optim.AdamW(method.trained.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        method.validation_step(batch, 0).backward()
        optimizer.step()
    assert ratio(method, batch) < PLATEAU


@pytest.mark.parametrize(("losses", "flat"), [(None, False), ((0.96, 1.0), True), ((0.94, 1.0), False)])
def test_what_is_flat(losses, flat):
    plateau = Plateau()
    plateau.losses = losses
    assert plateau.is_flat() == flat


def test_finished_runs_can_be_judged_afterwards(tmp_path, monkeypatch, benchmark):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_dataset(tmp_path / "preprocessed", cases=6)
    size = {"epochs": 1, "iters": 2, "val_iters": 3, "num_workers": 0, "device": "cpu", "fold": "0"}
    result = pretrain(PretrainConfig(dataset="7", output_folder=str(tmp_path / "w" / "SparK"), method="SparK", **size))
    found = benchmark.measure(result.folder)
    assert found["loss"] == pytest.approx(result.metrics[-1]["val_loss"], rel=1e-6)
    assert found["loss_of_mean"] != found["loss"]
    assert (found["method"], found["run"].endswith("w/SparK")) == ("SparK", True)


def test_the_published_table_is_what_was_measured(benchmark):
    runs = json.loads((REPOSITORY / "benchmarks" / "results" / "cpu_plateau.json").read_text())["runs"]
    page = (REPOSITORY / "benchmarks" / "README.md").read_text()
    assert all(f"| {' | '.join(benchmark.cells(run))} |" in page for run in runs)
    ratios = {(run["run"], run["method"]): run["loss"] / run["loss_of_mean"] for run in runs}
    flat = {name for name, ratio in ratios.items() if ratio > PLATEAU}
    assert {method for _, method in flat} == {"S3D", "ModelsGenesis"}
    assert len(flat) == 4
