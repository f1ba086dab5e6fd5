"""Ours against numbers of OpenMind's published code, in ``nnssl.json`` with the commit they came from.

Its Bézier map, shuffling and fusion are in ``tests/functional``, each with its commit. Where we differ on purpose, the
test says so.
"""

import json
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_pretrain.data.spatial import Transform, box_to_read, rotation_matrix
from ssl_pretrain.functional.losses import absolute_errors, masked_mean
from ssl_pretrain.functional.masking import count_masked
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods import METHODS, Method, MethodSetup, build_method
from ssl_pretrain.methods.masking import Hidden
from ssl_pretrain.networks import build_backbone

RECORDED = json.loads(Path(__file__).with_name("nnssl.json").read_text(encoding="utf-8"))
LOSS = RECORDED["loss"]
PATCH = (RECORDED["patch"],) * 3
MILLIONS = RECORDED["millions_of_parameters"]


def build(
    method: str, network: str, patch=PATCH, channels: int = 1, classes: int = 1, settings=None, **config
) -> Method:
    backbone = build_backbone(
        network, architecture={}, input_channels=channels, num_classes=classes, patch=patch, settings=settings or {}
    )
    return build_method(method, METHODS[method].Config(**config), MethodSetup(backbone=backbone, patch=patch))


@pytest.fixture
def meta():
    """Networks are built to be counted: without memory, and in no time."""
    with torch.device("meta"):
        yield


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def volume(channels: int, a: float, b: float, c: float) -> torch.Tensor:
    shape = (LOSS["batch"], channels, *LOSS["patch"])
    i = np.arange(prod(shape), dtype=np.float64)
    values = (1 + 3 * i / len(i)) * np.sin(a * i) + b * np.cos(c * i)
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def masked_cells() -> torch.Tensor:
    grid = tuple(p // c for p, c in zip(LOSS["patch"], LOSS["cell"], strict=True))
    mask = torch.zeros(LOSS["batch"], prod(grid), dtype=torch.bool)
    for sample, cells in zip(mask, LOSS["masked_cells"], strict=True):
        sample[cells] = True
    return mask.view(-1, *grid)


class Said(nn.Module):
    """A network that gives one answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("channels", [1, 2])
def test_the_loss_of_mae_is_the_published_one(channels, monkeypatch):
    small = {"width": 4, "widest": 8, "depth": 1}
    patch = (32, 32, 32)  # the network's; the loss has no opinion on it
    made = build("MAE", "ResEncL", patch, channels, settings=small, mask_cell=tuple(LOSS["cell"]))
    made.network = Said(volume(channels, **LOSS["prediction"]))
    mask = masked_cells()
    monkeypatch.setattr(made, "choose", lambda *_: Hidden(mask, int(mask[0].sum())))
    image = volume(channels, **LOSS["target"])
    loss = made({"image": image, "case": ["a", "b"], "index": list(range(2))}, torch.Generator()).loss
    # There, the sum over channels is divided by the voxels of a single one; all runs had one. Ours is a mean.
    key = f"{channels} channel" + "s" * (channels > 1)
    assert loss.item() * channels == pytest.approx(LOSS["squared"][key], rel=1e-5)
    cells = (to_cells(v, tuple(LOSS["cell"])) for v in (volume(channels, **LOSS["prediction"]), image))
    absolute = masked_mean(absolute_errors(*cells), masked_cells().flatten(1))
    assert absolute.item() * channels == pytest.approx(LOSS["absolute"][key], rel=1e-5)


def test_cells_and_masked_cells_are_as_many(meta):
    recorded = RECORDED["cells_of_mae_and_s3d"]
    mae, s3d = build("MAE", "ResEncL"), build("S3D", "ResEncL")
    for made in (mae, s3d):
        assert (made.cell, made.grid) == ((recorded["cell"],) * 3, (recorded["grid"],) * 3)
    assert mae.masked == recorded["masked"]
    assert [s3d.masked, s3d.most_masked] == recorded["masked_of_s3d"]


def test_tokens_and_kept_tokens_are_as_many(meta):
    recorded = RECORDED["tokens_of_primus"]
    mae, simmim = build("MAE", "PrimusM"), build("SimMIM", "PrimusM")
    for made in (mae, simmim):
        assert (made.cell, made.grid) == ((recorded["token"],) * 3, (recorded["grid"],) * 3)
        assert made.masked == recorded["masked"]
    assert mae.network.visible == recorded["kept"]


@pytest.mark.parametrize("case", RECORDED["masked_of"], ids=lambda case: f"{case['ratio']} of {case['cells']}")
def test_the_number_of_masked_cells_differs_by_one_at_most(case):
    """There, the masked ones are rounded down; here, as in SparK, the visible ones to the nearest."""
    assert 0 <= count_masked(case["cells"], case["ratio"]) - case["masked"] <= 1


def test_mae_of_primus_has_as_many_parameters(meta):
    recorded = MILLIONS["mae_of_primus_m"]
    network = build("MAE", "PrimusM").network
    primus = network.backbone.network
    assert millions(primus.eva) == pytest.approx(recorded["eva"], abs=0.005)
    assert millions(primus.down_projection) == pytest.approx(recorded["down_projection"], abs=0.005)
    assert millions(primus.up_projection) == pytest.approx(recorded["up_projection"], abs=0.005)
    assert millions(network.decoder) == pytest.approx(recorded["decoder"], abs=0.005)
    assert millions(primus, network.decoder) == pytest.approx(recorded["all"], abs=0.05)


def convolutions(module: nn.Module) -> list[nn.ConvTranspose3d]:
    return [m for m in module.modules() if isinstance(m, nn.ConvTranspose3d)]


def test_the_decoder_of_primus_has_the_published_widths_with_one_class_and_those_of_the_segmentation_otherwise(meta):
    """There, it is thrown away, so its widths follow the image's channels; here, it is fine-tuned as it is."""
    published = build("MAE", "PrimusM").network
    layers = convolutions(published.backbone.network.up_projection)
    assert [layers[0].in_channels, *(layer.out_channels for layer in layers)] == RECORDED["decoder_widths_of_primus_m"]
    other = build("MAE", "PrimusM", classes=2).network
    layers = convolutions(other.backbone.network.up_projection)
    assert [layers[0].in_channels, *(layer.out_channels for layer in layers[:-1])] == [864, 144, 24]
    assert (other.head.in_channels, other.head.out_channels) == (24, 1)


def test_s3d_has_as_many_parameters(meta):
    recorded = MILLIONS["s3d_of_resenc_l"]
    student = build("S3D", "ResEncL").student
    network = student.backbone.network
    densify = millions(student.densify)
    assert millions(network) == pytest.approx(recorded["network"], abs=0.005)
    # There, the coarsest map has a token, too: 320 numbers that are never used, as it is all visible.
    assert student.densify[-1].token is None
    assert densify == pytest.approx(recorded["densify"], abs=0.01)
    assert millions(network) + densify == pytest.approx(recorded["all"], abs=0.05)


def box(angles: tuple[float, ...], scale: float) -> tuple[int, ...]:
    """Voxels that are read for a crop, per axis."""
    matrix = rotation_matrix(np.deg2rad(angles)) / scale
    low, high = box_to_read(Transform(matrix, (False,) * 3), (0, 0, 0), PATCH)
    return tuple(b - a for a, b in zip(low, high, strict=True))


def test_a_crop_reads_what_it_needs():
    """There, 257 voxels per axis are read for every crop: enough for a rotation about one axis, and never less."""
    recorded = RECORDED["read_for_a_crop"]
    angle, scale = recorded["rotation"], recorded["scale"]
    one_axis = max(max(box(tuple(angle * np.eye(3)[axis]), scale)) for axis in range(3))
    assert recorded["voxels"] <= one_axis <= recorded["voxels"] + 1, "and one to interpolate with"
    low, high = box_to_read(Transform(None, (True, False, True)), (5, 6, 7), PATCH)
    assert tuple(b - a for a, b in zip(low, high, strict=True)) == PATCH
    all_axes = max(max(box(angles, scale)) for angles in product((-angle, angle), repeat=3))
    assert all_axes > recorded["voxels"], "there, the corners of such a crop are filled with 0"


def test_the_numbers_say_where_they_came_from():
    assert (RECORDED["source"], RECORDED["commit"]) == ("MIC-DKFZ/nnssl", "70448644")
