"""Weights on the Hugging Face Hub, without a network: from a made cache, and the messages where that is empty."""

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_command
from made_weights import stunet

from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.sources.hub import fetch, is_reference, parse
from ssl_pretrain.transfer.weights_file import read_weights

constants = pytest.importorskip("huggingface_hub.constants", reason="an extra: pip install anatomask[hub]")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


def fill(cache: Path, *names: str, commit: str = COMMIT, refs: tuple[str, ...] = ("main",)) -> Path:
    """A cache of the Hub with a repository ORG/REPO in it; returns the folder with its files."""
    repository = cache / "models--ORG--REPO"
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    for name in names:
        file = repository / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": stunet().state_dict()} if file.suffix != ".md" else "text", file)
    return repository / "snapshots" / commit


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The variables HF_HOME and HF_HUB_OFFLINE are read once, when the library is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("source", "repository", "file", "revision"),
    [
        ("hf://ORG/REPO", "ORG/REPO", None, None),
        ("hf://ORG/REPO/", "ORG/REPO", None, None),
        ("hf://ORG/REPO/a/b.pth", "ORG/REPO", "a/b.pth", None),
        ("hf://ORG/REPO@v1", "ORG/REPO", None, "v1"),
        ("hf://ORG/REPO@v1/a.pth", "ORG/REPO", "a.pth", "v1"),
        ("hf://ORG/REPO/a.pth@v1", "ORG/REPO", "a.pth", "v1"),
        (Path("hf://ORG/REPO/a.pth"), "ORG/REPO", "a.pth", None),
    ],
)
def test_references_are_taken_apart(source, repository, file, revision):
    assert is_reference(source)
    found = parse(source)
    assert (found.repository, found.file, found.revision) == (repository, file, revision)


@pytest.mark.parametrize("path", ["weights.pth", "/hf/x.pth", "hf/x.pth", "c:/x.pth", Path("hf.pth")])
def test_files_are_no_references(path):
    assert not is_reference(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://ORG", "names no repository"),
        ("hf://ORG/@v1", "an @ without a repository"),
        ("hf://ORG/REPO@/a.pth", "or a revision behind it"),
        ("hf://ORG/REPO@", "or a revision behind it"),
        ("hf://ORG/RE..PO/a.pth", "is no name of a repository"),
    ],
)
def test_what_is_no_reference_is_refused(source, message, cache):
    with pytest.raises(ValueError, match=rf"{message}.*Write hf://ORG/REPO, hf://ORG/REPO/FILE"):
        fetch(source)


def test_a_file_is_found_by_name_and_revision(cache):
    fill(cache, "a/b.pth", "README.md")
    old = fill(cache, "a/b.pth", commit=OTHER, refs=("v1",))
    assert fetch("hf://ORG/REPO/a/b.pth").parts[-3:] == (COMMIT, "a", "b.pth")
    assert fetch("hf://ORG/REPO@v1/a/b.pth") == old / "a" / "b.pth"
    assert fetch("hf://ORG/REPO@v1") == old / "a" / "b.pth"
    assert fetch(f"hf://ORG/REPO/a/b.pth@{OTHER}") == old / "a" / "b.pth"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("base_ep4k.model", "README.md"), "base_ep4k.model"),
        (("checkpoint_final.pth", "checkpoint_best.pth", "a.pt"), "checkpoint_final.pth"),
        (("checkpoint_final.pth", "model.safetensors"), "model.safetensors"),
    ],
)
def test_the_one_file_of_weights_needs_no_name(names, chosen, cache):
    folder = fill(cache, *names)
    assert fetch("hf://ORG/REPO") == folder / chosen


def test_several_files_of_weights_are_listed(cache):
    fill(cache, "small_ep4k.model", "base_ep4k.model", "README.md")
    with pytest.raises(
        ValueError, match=r"holds 2 files .*: hf://ORG/REPO/base_ep4k\.model, hf://ORG/REPO/small_ep4k\.model\."
    ):
        fetch("hf://ORG/REPO")


def test_a_repository_without_weights_is_refused(cache):
    fill(cache, "README.md")
    with pytest.raises(ValueError, match=r"hf://ORG/REPO holds no weights: none of its 1 files ends in \.safetensors"):
        fetch("hf://ORG/REPO")


@pytest.mark.parametrize(
    ("source", "download"),
    [
        ("hf://ORG/OTHER", "hf download ORG/OTHER."),
        ("hf://ORG/OTHER/a.pth", "hf download ORG/OTHER a.pth."),
        ("hf://ORG/REPO@v2/a.pth", "hf download ORG/REPO a.pth --revision v2."),
    ],
)
@pytest.mark.parametrize("filled", [True, False])
def test_what_is_not_in_the_cache_says_how_to_get_it_there(source, download, filled, cache):
    if filled:
        fill(cache, "a.pth")
    with pytest.raises(FileNotFoundError, match="is not in the cache") as refusal:
        read_weights(source)
    text = str(refusal.value)
    assert f"Where there is a network run: {download} Then name the file" in text
    assert str(cache) in text
    assert "HF_HOME" in text
    assert "HF_HUB_OFFLINE=1" in text


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs the package huggingface_hub, which is not installed: pip install"):
        read_weights("hf://ORG/REPO")


def test_load_pretrained_takes_a_reference(cache):
    fill(cache, "base_ep4k.model")
    report = load_pretrained(stunet(classes=2), "hf://ORG/REPO")
    assert report.fraction > 0.9


def test_the_variables_of_the_environment_are_heeded(tmp_path):
    folder = fill(tmp_path / "home" / "hub", "weights.pth")
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    program = "from ssl_pretrain.transfer.weights_file import read_weights as r; print(r('hf://ORG/REPO').file)"
    assert run_command(("python", "-c", program), env).stdout.split()[-1] == str(folder / "weights.pth")
