"""A loaded encoder gives the features that it gave at the end of pretraining: every kind of network, every road."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from methods.cells import CHANNELS, families
from pretrained import CONFIGURATION, content_of, image_for, own_features, pretrain, same, save, write_plans
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import grid_of
from ssl_pretrain.methods import Method
from ssl_pretrain.networks.registry import trainer_of
from ssl_pretrain.transfer.encoder import load_encoder
from ssl_pretrain.transfer.extension import extension_folder
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.plans import write_network_plans

CASES = [*(("ModelsGenesis", network) for network in families()), ("MAE", "PrimusS")]


class Donor(NamedTuple):
    """A pretrained network.

    Attributes:
        network: what ``-network`` calls it.
        method: after pretraining.
        content: of its file.
        file: the file.
        image: some image.
        maps: the features of the image at the end of pretraining.
    """

    network: str
    method: Method
    content: dict[str, Any]
    file: Path
    image: Tensor
    maps: list[Tensor]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def donor(request, tmp_path_factory) -> Donor:
    name, network = request.param
    if network in ("ViT_B16", "SwinUNETR"):
        pytest.importorskip("monai", reason="MONAI is an extra: pip install anatomask[monai]")
    method = pretrain(network, name)
    content, image = content_of(method, network), image_for(network)
    file = save(content, tmp_path_factory.mktemp("pretrained"))
    return Donor(network, method, content, file, image, own_features(method.backbone.network, image))


def built_by_nnunet(donor: Donor, folder: Path, monkeypatch: pytest.MonkeyPatch, classes: int = 3) -> nn.Module:
    """The network as nnU-Net's trainer builds it from the plans that a run leaves."""
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    backbone, plans = donor.method.backbone, write_plans(folder, donor.method.patch)
    if donor.network != "plans":
        plans = write_network_plans(plans, CONFIGURATION, donor.network, backbone, donor.method.patch)
    manager = PlansManager(str(plans))
    # Importing our trainers installs the hook; the rest of the session must find nnU-Net as it was.
    monkeypatch.setattr(run_training, "load_pretrained_weights", run_training.load_pretrained_weights)
    monkeypatch.setenv("nnUNet_extTrainer", str(extension_folder()))
    name = trainer_of(donor.network, backbone.architecture, planned=True)
    trainer = recursive_find_trainer_class_by_name(name) if name else nnUNetTrainer
    torch.manual_seed(99)
    configuration = manager.get_configuration(CONFIGURATION)
    return trainer.build_network_architecture(manager, configuration, CHANNELS, classes, True)


def test_the_view_of_a_method_gives_the_networks_own_features(donor):
    with torch.no_grad():
        maps = donor.method.backbone.encode(donor.image)
    assert same(maps[-len(donor.maps) :], donor.maps)


def test_pretraining_changed_the_features(donor, tmp_path, monkeypatch):
    """Else the comparisons below would say nothing."""
    assert not any(
        map(torch.equal, own_features(built_by_nnunet(donor, tmp_path, monkeypatch), donor.image), donor.maps)
    )


@pytest.mark.parametrize("classes", [3, 5])
def test_our_loader_into_the_network_that_nnunet_builds(donor, tmp_path, monkeypatch, classes):
    network = built_by_nnunet(donor, tmp_path, monkeypatch, classes)
    load_pretrained(network, donor.file)
    assert same(own_features(network, donor.image), donor.maps)


def test_nnunets_own_loader(donor, tmp_path, monkeypatch, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    network = built_by_nnunet(donor, tmp_path, monkeypatch)
    load_pretrained_weights(network, str(donor.file))
    assert str(donor.file) in capsys.readouterr().out
    assert same(own_features(network, donor.image), donor.maps)


def test_the_encoder_alone(donor):
    with torch.no_grad():
        features = load_encoder(donor.file)(donor.image)
    assert same(features.maps, donor.maps)
    assert torch.equal(features.pooled, donor.maps[-1].mean((2, 3, 4)))


def test_the_encoder_of_a_file_as_nnssl_writes_it(donor, tmp_path):
    """Every tensor of the network, and of ours only the entry that nnssl's files have as well."""
    names = ("network_weights", "nnssl_adaptation_plan", "trainer_name")
    file = save({name: donor.content[name] for name in names}, tmp_path)
    with torch.no_grad():
        assert same(load_encoder(file)(donor.image).maps, donor.maps)


def test_safetensors(donor, tmp_path, monkeypatch):
    from ssl_pretrain.transfer.safetensors_file import save_safetensors

    file = tmp_path / "weights.safetensors"
    save_safetensors(donor.content, file)
    network = built_by_nnunet(donor, tmp_path, monkeypatch)
    load_pretrained(network, file)
    assert same(own_features(network, donor.image), donor.maps)
    with torch.no_grad():
        assert same(load_encoder(file)(donor.image).maps, donor.maps)


@pytest.mark.parametrize(("method", "network"), [("SparK", "plans"), ("AnatoMask", "ResEncM")])
def test_a_sparse_encoder_that_saw_everything(method, network, tmp_path):
    """Its layers sum over visible voxels in another order than the network's own; nothing else differs."""
    made, image = pretrain(network, method), image_for(network)
    cells = torch.ones(2, *grid_of(made.patch, made.cell), dtype=torch.bool)
    with torch.no_grad(), made.student.mask.visible(cells):
        maps = made.backbone.encode(image)
    with torch.no_grad():
        found = load_encoder(save(content_of(made, network), tmp_path))(image).maps
    assert len(found) == len(maps)
    for ours, theirs in zip(found, maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
