"""The scripts of the page on features, as a user saves and runs them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import run_command
from made_plans import empty_home, fullres, made_cases, plan
from pretrained import content_of, save
from test_documentation import HOW_TO, blocks

from ssl_pretrain.methods import MethodSetup, SparK, SparKConfig
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.transfer.encoder import load_encoder

PAGE, PATCH = HOW_TO / "features.md", (16, 32, 32)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with eight images, the file of a network that was planned for them, and the script of the page."""
    empty_home(tmp_path, monkeypatch)
    planned = plan(made_cases(tmp_path / "images", 8))
    torch.manual_seed(0)
    architecture = fullres(planned)["architecture"]
    backbone = build_backbone("plans", architecture=architecture, input_channels=1, num_classes=2, patch=PATCH)
    method = SparK(SparKConfig(), MethodSetup(backbone=backbone, patch=PATCH))
    content = content_of(method, "plans", config={}, plans=planned.plans)
    (tmp_path / "embed.py").write_text(blocks(PAGE, "python")[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return save(content, tmp_path)


def test_the_scripts_run_one_after_the_other(desk, tmp_path, capsys):
    first, _, alike, classifier = blocks(PAGE, "python")
    exec(compile(first, "in short", "exec"), {})
    assert "torch.Size([1, " in capsys.readouterr().out
    images = sorted((tmp_path / "images").iterdir())
    run_command(("python", "embed.py", desk.name, *images), cwd=tmp_path)
    content = np.load("vectors.npz")
    assert content["names"].tolist() == [f"phantom_{i}" for i in range(8)]
    assert content["vectors"].shape == (8, load_encoder(desk, pool="all").embedding_size)
    assert np.isfinite(content["vectors"]).all()
    exec(compile(alike, "alike", "exec"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == content["names"].tolist()
    assert all(len({*row}) == 4 for row in rows), "nobody is his own neighbour"
    exec(compile(classifier, "classifier", "exec"), {})
    assert "accuracy " in capsys.readouterr().out


def test_the_classifier_learns_what_can_be_learned():
    """Two clouds of points."""
    source = blocks(PAGE, "python")[3].partition("vectors = np.load")[0]
    names: dict = {}
    exec(compile(source, "classifier", "exec"), names)
    labels = np.arange(40) % 2
    vectors = np.random.default_rng(0).normal(size=(40, 5)) + 2 * labels[:, None]
    found = names["fit"](vectors[:20], labels[:20])(vectors[20:])
    assert found.sum(1) == pytest.approx(np.ones(20))
    assert (found.argmax(1) == labels[20:]).mean() > 0.9


def test_patches_cover_an_image_of_any_size():
    names: dict = {"__name__": "page"}
    exec(compile(blocks(PAGE, "python")[1], "embed", "exec"), names)
    for size in range(1, 40):
        begins = names["starts"](size, 8)
        covered = {voxel for begin in begins for voxel in range(begin, begin + 8)}
        assert covered >= set(range(size))
        assert all(0 < b - a <= 4 for a, b in pairwise(begins))
