"""The folder for the Hub: what is in it, what must not be, and that the card says only what the file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from architectures import backbone
from made_data import NAME, plans
from made_target import CONFIG, checkpoint

from ssl_pretrain.methods import SparK
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.model_card import model_card, results_text
from ssl_pretrain.transfer.model_folder import without_places, write_model_folder

SECTIONS = ["Data", "Method", "Network", "What was loaded and adapted", "Results", "How to use", "Citations"]

STUDY = {
    "dataset": {"name": "Dataset004_Hippocampus"},
    "summary": [
        {
            "size": "10 %",
            "cases": 4.0,
            "arm": "scratch",
            "runs": 5,
            "failed": 0,
            "mean": 0.81234,
            "median": 0.8,
            "sd": None,
        }
        | {"lowest": 0.7, "highest": 0.9, "collapsed": 1}
    ],
    "differences": [
        {
            "size": "10 %",
            "arm": "SparK",
            "baseline": "scratch",
            "pairs": 5,
            "difference": -0.01,
            "low": -0.02,
            "high": 0.0,
        }
    ],
    "notes": "Dice is nnU-Net's.",
}


def parts(card):
    _, front, body = card.split("---\n", 2)
    sections = dict(section.split("\n\n", 1) for section in body.split("\n## ")[1:])
    return yaml.safe_load(front), sections


def test_the_folder_is_complete_and_loads(tmp_path):
    content = checkpoint()
    write_model_folder(content, tmp_path / "hub" / "model", license="cc-by-4.0")
    folder = tmp_path / "hub" / "model"
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "plans.json", "README.md"}
    assert json.loads((folder / "plans.json").read_text(encoding="utf-8")) == plans()
    network = backbone().network
    report = load_pretrained(network, folder / "model.safetensors")
    assert report.loaded
    weights, state = content["network_weights"], network.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in content["pretraining"]["pretrained_keys"])


def test_no_path_of_the_disk_is_in_the_folder(tmp_path):
    content = checkpoint()
    report = load_pretrained(backbone().network, save(content, tmp_path / "secret.pth"))
    write_model_folder(content, tmp_path / "model", report=report)
    for file in (tmp_path / "model").iterdir():
        data = file.read_bytes()
        assert b"secret/" not in data, file.name
        assert str(tmp_path).encode() not in data, file.name
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config == {**{k: v for k, v in CONFIG.items() if k not in ("output_folder", "files")}} | {
        "pretrained_weights": "before.pth"
    }
    assert content["pretraining"]["config"] == CONFIG


def save(content, file):
    torch.save(content, file)
    return file


def test_places_are_left_out_wherever_they_are():
    entry = {
        "pretrain_info": {"checkpoint_path": "C:\\weights\\a.pth", "name": "a"},
        "list": ["/abs/olute", "~/home", "relative", 3, None],
        "pretrained_weights": "hf://ORG/REPO/file.pth",
        "ratio": "1/2",
        "site": "https://doi.org/10",
        "options": ["--data=/home/me/x", "file:///home/me/a", "../me/secret/a.pth", "first line\n/home/me/d"],
        "/home/me/key": 1,
        "place": Path("/home/me/z"),
        "filters": ["subject=sub-01", "modality=T1w"],
        "balance": "subjects",
    }
    assert without_places(entry) == {
        "pretrain_info": {"name": "a"},
        "list": ["relative", 3, None],
        "pretrained_weights": "hf://ORG/REPO/file.pth",
        "ratio": "1/2",
        "site": "https://doi.org/10",
        "options": [],
        "filters": ["modality=T1w"],
        "balance": "subjects",
    }
    assert without_places({"pretrained_weights": "C:\\weights\\a.pth"}) == {"pretrained_weights": "a.pth"}
    assert without_places({"pretrained_weights": None}) == {"pretrained_weights": None}


def test_the_card_says_what_the_file_says():
    content = checkpoint()
    front, sections = parts(model_card(content, license="cc-by-4.0"))
    assert front["license"] == "cc-by-4.0"
    assert (front["library_name"], front["pipeline_tag"]) == ("anatomask", "image-feature-extraction")
    assert {"medical", "3d", "nnU-Net", "SparK"} <= set(front["tags"])
    assert list(sections) == SECTIONS
    assert f"- dataset: {NAME}" in sections["Data"]
    assert "- spacing in mm: 1.0 x 1.0 x 1.0" in sections["Data"]
    assert "- normalisation: ZScoreNormalization" in sections["Data"]
    for line in ("method: SparK", "epochs: 5", "steps per epoch: 250", "batch size: 2", "seed: 3"):
        assert f"- {line}\n" in sections["Method"]
    numbers = sum(parameter.numel() for parameter in backbone().network.parameters())
    assert f"- parameters: {numbers:,}".replace(",", " ") in sections["Network"]
    assert "- class: PlainConvUNet" in sections["Network"]
    trained = len(content["pretraining"]["pretrained_keys"])
    assert sections["What was loaded and adapted"].startswith(f"{trained} of the tensors")
    assert sections["Results"].strip() == "None given."
    assert "hf://ORG/REPO" in sections["How to use"]
    assert all(citation in sections["Citations"] for citation in SparK.citations)


def test_a_licence_that_nobody_chose_is_a_placeholder():
    card = model_card(checkpoint())
    assert parts(card)[0]["license"] == "unknown"
    assert "No licence was chosen yet" in card
    assert "No licence was chosen yet" not in model_card(checkpoint(), license="mit")


def test_of_bare_tensors_it_says_nothing_that_is_not_there(tmp_path):
    content = {"network_weights": backbone().network.state_dict()}
    write_model_folder(content, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "README.md"}
    _, sections = parts((tmp_path / "README.md").read_text(encoding="utf-8"))
    for section in ("Data", "Method"):
        assert sections[section].strip() == "The file says nothing about it."
    assert "None" not in sections["Network"]
    assert sections["Citations"].strip() == "None given."
    assert sections["What was loaded and adapted"].startswith("The tensors are as they were in the file")


@pytest.mark.parametrize(
    ("run", "architecture", "trainer"),
    [
        ("plans", "PlainConvUNet", None),
        ("STUNet_base", "STUNet", "STUNetTrainer_base_ft"),
        ("PrimusM", "PrimusM", "PrimusTrainer_ft"),
        ("ViT_B16", "UNETR", "UNETRTrainer_ft"),
        (None, "PrimusL", "PrimusTrainer_ft"),
    ],
)
def test_the_commands_name_the_trainer_that_the_network_wants(run, architecture, trainer):
    content = {
        "network_weights": {},
        "pretraining": {"config": {"network": run}},
        "nnssl_adaptation_plan": {"architecture_plans": {"arch_class_name": architecture}},
    }
    usage = parts(model_card(content))[1]["How to use"]
    assert (f"-tr {trainer} -o adapted.pth" in usage) == (trainer is not None)
    assert ("export nnUNet_extTrainer=" in usage) == (trainer is not None)


def test_adapted_weights_are_described_by_what_they_were_pretrained_on():
    content = checkpoint()
    elsewhere = {**plans(), "dataset_name": "Dataset009_Target"}
    said = {"file": "a.pth", "dataset": "Dataset009_Target", "trainer": "nnUNetTrainer", "fraction": 0.5}
    once = {**said, "source": {"plans": plans(), "configuration": "3d_fullres", "input_channels": 1}}
    twice = {**said, "source": {"plans": elsewhere, "adaptation": once}}
    content["pretraining"] = {**content["pretraining"], "plans": elsewhere, "input_channels": 2, "adaptation": twice}
    _, sections = parts(model_card(content))
    assert f"- dataset: {NAME}" in sections["Data"]
    assert "- input channels: 1" in sections["Data"]
    assert "- input channels: 2" in sections["Network"]
    assert (
        "adapted from `a.pth` to Dataset009_Target (nnUNetTrainer): 50.0 %" in sections["What was loaded and adapted"]
    )


def test_weights_of_nnssl_are_described_by_their_plan():
    plan = {"dataset_name": "Dataset745_OpenMind", "configurations": {"onemmiso": {"spacing": [1, 1, 1]}}}
    content = {"network_weights": {}, "nnssl_adaptation_plan": {"pretrain_plan": plan}}
    data = parts(model_card(content))[1]["Data"]
    assert "- dataset: Dataset745_OpenMind" in data
    assert "- configuration: onemmiso" in data


def test_results_are_those_of_the_study_or_the_users_own_words(tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY), encoding="utf-8")
    text = results_text(file)
    assert "Dataset004_Hippocampus" in text
    assert "| 10 % | scratch | 5 | 0.8123 | 0.8000 | - | 1 | 0 |" in text
    assert "| 10 % | SparK | scratch | 5 | -0.0100 | -0.0200 | 0.0000 |" in text
    assert text.endswith("Dice is nnU-Net's.")
    own = tmp_path / "results.md"
    own.write_text("It helped **a little**.\n", encoding="utf-8")
    assert parts(model_card(checkpoint(), results=results_text(own)))[1]["Results"].strip() == "It helped **a little**."
    own.write_text(" \n", encoding="utf-8")
    assert results_text(own) == "None given."


@pytest.mark.parametrize("text", ["no json", "{}", "[]", json.dumps({**STUDY, "summary": 3})])
def test_results_that_are_neither_are_refused(tmp_path, text):
    file = tmp_path / "study.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"-results .*study\.json is neither study\.json of a study that has results"):
        results_text(file)
    with pytest.raises(FileNotFoundError, match=r"-results .*gone\.md does not exist"):
        results_text(tmp_path / "gone.md")
