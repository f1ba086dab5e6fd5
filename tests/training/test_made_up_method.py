"""A method that nobody has heard of is trained, pictured, judged, measured and exported by what it declares."""

import pytest
import torch
from made_data import write_dataset
from torch import nn

from ssl_pretrain import PretrainConfig, load_pretrained, pretrain
from ssl_pretrain.cli import dry_run
from ssl_pretrain.cli.pretrain import main
from ssl_pretrain.methods import METHODS, Method, Output
from ssl_pretrain.methods.dense import DenseNetwork
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.training.plateau import JUDGED_FROM
from ssl_pretrain.training.prepare import prepare


class TwoAnswers(nn.Module):
    """What comes out of most heads of self-supervised methods: more than one tensor."""

    def __init__(self, backbone):
        super().__init__()
        self.network = DenseNetwork(backbone, 2 * backbone.input_channels)

    def forward(self, image):
        mean, spread = self.network(image).chunk(2, 1)
        return {"mean": mean, "spread": (spread,)}


class Gaussian(Method):
    """The density of an image from itself with noise; no more than what is compulsory."""

    Config = OptimizerConfig

    def __init__(self, config, setup):
        super().__init__(config, setup)
        self.network = TwoAnswers(setup.backbone)

    @property
    def trained(self):
        return self.network

    def forward(self, batch, generator):
        noisy = batch["image"] + torch.randn(batch["image"].shape, generator=generator)
        answer = self.network(noisy)
        (spread,) = answer["spread"]
        return Output(nn.functional.gaussian_nll_loss(answer["mean"], batch["image"], spread.exp()), {})


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_dataset(tmp_path / "preprocessed", cases=4)
    monkeypatch.setitem(METHODS, "Gaussian", Gaussian)
    size = {"epochs": JUDGED_FROM, "iters": 1, "val_iters": 1, "num_workers": 0, "device": "cpu", "fold": "all"}
    return PretrainConfig(dataset="7", output_folder=str(tmp_path / "run"), method="Gaussian", **size)


def test_it_is_trained_judged_pictured_and_exported(made_up, caplog):
    result = pretrain(made_up.with_settings({"lr": "1e-12"}))
    assert len(result.metrics) == JUDGED_FROM
    assert "hardly learned to look at the image" in caplog.text, "its answers are two tensors"
    assert (result.folder / "pictures" / f"epoch_{JUDGED_FROM:04d}.png").stat().st_size > 5000
    network = prepare(made_up).method.backbone.network
    report = load_pretrained(network, result.checkpoint)
    assert {entry.name for entry in report.fresh} == {n for n, _ in network.named_parameters() if "seg_layers" in n}


def test_the_dry_run_measures_it(made_up):
    shown = dry_run.show(prepare(made_up))
    assert "views: 1" in shown
    assert "activations 0.0" in shown


def test_the_command_knows_it(made_up, tmp_path, capsys):
    run = [
        "7",
        "3d_fullres",
        "all",
        "-epochs",
        "1",
        "-iters",
        "1",
        "-val_iters",
        "1",
        "-num_workers",
        "0",
        "-device",
        "cpu",
        "-o",
    ]
    assert main([*run, str(tmp_path / "command"), "-m", "Gaussian"]) == 0
    assert "-m Gaussian" not in capsys.readouterr().err
    assert main([*run, str(tmp_path / "other"), "-m", "Gausian"]) != 0
    assert "Choose from AnatoMask" in (said := capsys.readouterr().err)
    assert "Gaussian" in said


def test_it_says_which_networks_it_needs(made_up, monkeypatch):
    monkeypatch.setattr(Gaussian, "needs", (frozenset({"tokens", "decoder"}),))
    with pytest.raises(ValueError, match=r"Gaussian needs a network with decoder and tokens; .* Use -network Primus"):
        prepare(made_up)
