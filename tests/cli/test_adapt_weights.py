"""``nnUNetv2_adapt_weights`` as a user types it: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from architectures import backbone
from conftest import REPOSITORY
from made_data import NAME, volume, write_case
from made_target import checkpoint, write_checkpoint, write_target

from ssl_pretrain.cli.adapt_weights import build_parser, main
from ssl_pretrain.data.cases import UNLABELLED
from ssl_pretrain.transfer.adapt import read_content
from ssl_pretrain.transfer.extension import extension_folder
from ssl_pretrain.transfer.load import load_pretrained


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    write_target(tmp_path / "preprocessed")
    write_checkpoint(tmp_path)
    return tmp_path


def adapt(*arguments, output="out.pth"):
    return main(["-w", "checkpoint_final.pth", "-d", "7", "-c", "3d_fullres", "-o", str(output), *arguments])


def test_adapting_writes_weights_and_report_and_says_what_comes_next(home, capsys):
    assert adapt(output="my weights.pth") == 0
    out = capsys.readouterr().out
    command = shlex.split(out.strip().splitlines()[-1])
    weights = str(home / "my weights.pth")
    assert command == ["nnUNetv2_train", "7", "3d_fullres", "0", "-pretrained_weights", weights]
    report = json.loads((home / "my weights_report.json").read_text(encoding="utf-8"))
    assert set(report["totals"]) == {"loaded", "adapted", "fresh", "unused"}
    content = torch.load(home / "my weights.pth", weights_only=True)
    assert content["pretraining"]["adaptation"]["dataset"] == NAME
    # The table is there once, with a line for each tensor, and so is its summary.
    assert out.count("Pretrained weights from checkpoint_final.pth: ") == 1
    for tensor in report["tensors"]:
        assert f"{tensor['kind']} " in out
        assert out.count(f"  {tensor['name']} ") == 1, tensor
    assert list((home / "results").iterdir()) == []


def test_unused_tensors_of_a_part_are_one_line_and_all_of_them_if_asked_for(home, capsys):
    content = checkpoint()
    content["network_weights"] |= {f"encoder.stages.{n}.extra.{i}": torch.ones(1) for n in (4, 5) for i in range(30)}
    content["network_weights"]["decoder.encoder.stages.5.extra.0"] = torch.ones(1)
    torch.save({"state_dict": content["network_weights"]}, "checkpoint_final.pth")
    assert adapt() == 0
    short = capsys.readouterr().out
    assert re.search(r"unused +stage 4: 30 tensors +- +- +- +the file has 6 stages, the network 4\n", short)
    assert re.search(r"unused +stage 5: 31 tensors +- +- +- +the file has 6 stages, the network 4\n", short)
    assert "stages.5.extra.7" not in short
    assert "encoder.stages.5.extra.7" in (home / "out_report.json").read_text(encoding="utf-8")
    assert adapt("--verbose") == 0
    assert re.search(r"unused +encoder\.stages\.5\.extra\.7 +1 +- +- +the file has 6", capsys.readouterr().out)


def test_flags_reach_the_engine(home, capsys):
    assert adapt("-channels", "0", "0", "-seed", "3", "-p", "nnUNetPlans") == 0
    said = read_content(home / "out.pth")["pretraining"]["adaptation"]
    assert (said["channels"], said["seed"], said["strict"]) == ([0, 0], 3, False)
    assert adapt("-channels", "0", "1") == 1
    assert "channel" in capsys.readouterr().err
    assert adapt("-strict") == 1
    assert "strict" in capsys.readouterr().err
    assert adapt("-fix_nnssl_axes") == 1
    assert "fix_nnssl_axes" in capsys.readouterr().err


def test_a_later_stage_of_a_cascade_is_adapted_to_as_well(home, capsys):
    weights = ["-w", "checkpoint_final.pth", "-d", "7", "-o", "out.pth"]
    assert main([*weights, "-c", "3d_cascade_fullres"]) == 0
    output = capsys.readouterr().out
    assert "3 channels of the previous segmentation as initialised" in output
    assert "nnUNetv2_train 7 3d_cascade_fullres 0 -pretrained_weights" in output
    assert main([*weights, "-c", "2d"]) == 1
    assert "Choose from: 3d_fullres, 3d_cascade_fullres" in capsys.readouterr().err


def test_a_trainer_of_ours_comes_with_the_folder_where_nnunet_finds_it(home, capsys):
    plans = Path("preprocessed/Dataset007_Made/nnUNetPlans.json").read_text(encoding="utf-8")
    mine = json.dumps({**json.loads(plans), "plans_name": "MyPlans"})
    Path("preprocessed/Dataset007_Made/MyPlans.json").write_text(mine, encoding="utf-8")
    torch.save(backbone("STUNet_small").network.state_dict(), "checkpoint_final.pth")
    assert adapt("-tr", "STUNetTrainer_small_ft", "-p", "MyPlans", output="out.safetensors") == 0
    *_, folder, command = capsys.readouterr().out.strip().splitlines()
    assert shlex.split(folder) == ["export", f"nnUNet_extTrainer={extension_folder()}"]
    assert "3d_fullres 0 -p MyPlans -tr STUNetTrainer_small_ft -pretrained_weights" in command
    assert read_content(home / "out.safetensors")["pretraining"]["network"] == "STUNet_small"


def test_nnunets_own_trainer_is_not_sent_a_file_that_it_cannot_read(home, capsys):
    assert adapt(output="out.safetensors") == 0
    assert "nnUNetTrainer reads .pth files only: take -o out.pth" in capsys.readouterr().out
    # What a user with that file does: the format alone, back to nnU-Net's.
    assert main(["-w", "out.safetensors", "-o", "back.pth"]) == 0
    assert adapt(output="direct.pth") == 0
    back, direct = (torch.load(file, weights_only=True) for file in ("back.pth", "direct.pth"))
    assert back.keys() == direct.keys()
    assert back["pretraining"] == direct["pretraining"]
    assert back["nnssl_adaptation_plan"] == direct["nnssl_adaptation_plan"]
    assert back["network_weights"].keys() == direct["network_weights"].keys()
    assert all(torch.equal(tensor, direct["network_weights"][n]) for n, tensor in back["network_weights"].items())


def test_without_a_dataset_only_the_format_changes(home, capsys):
    content = checkpoint()
    assert main(["-w", "checkpoint_final.pth", "-o", "new/out.safetensors"]) == 0
    assert main(["-w", "new/out.safetensors", "-o", "back.pth"]) == 0
    back = torch.load("back.pth", weights_only=True)
    weights = content["network_weights"]
    assert back["network_weights"].keys() == weights.keys()
    assert all(torch.equal(tensor, back["network_weights"][name]) for name, tensor in weights.items())
    for entry in ("pretraining", "nnssl_adaptation_plan", "citations"):
        assert back[entry] == json.loads(json.dumps(content[entry])), entry
    assert not list(home.glob("**/*_report.json"))
    assert capsys.readouterr().out.split() == ["Written:", "new/out.safetensors", "Written:", "back.pth"]


def test_a_strangers_format_becomes_a_plain_file_without_claims(home):
    state = backbone().network.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "theirs.model")
    assert main(["-w", "theirs.model", "-o", "plain.pth"]) == 0
    plain = torch.load("plain.pth", weights_only=True)
    assert set(plain) == {"network_weights"}
    assert plain["network_weights"].keys() == state.keys()


def test_a_card_comes_with_a_folder_for_the_hub(home, capsys):
    (home / "results.md").write_text("None of it helped.", encoding="utf-8")
    options = ("--model_card", "-license", "cc-by-4.0", "-results", "results.md")
    assert adapt(*options, output="hub") == 0
    names = {"model.safetensors", "config.json", "plans.json", "report.json", "README.md"}
    assert {file.name for file in (home / "hub").iterdir()} == names
    card = (home / "hub" / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in card
    assert "None of it helped." in card
    assert "hf upload ORG/REPO hub" in capsys.readouterr().out
    assert load_pretrained(backbone().network, home / "hub" / "model.safetensors").loaded
    # The card may have been edited since.
    assert adapt(*options, output="hub") == 1
    assert "README.md is there already and may be edited" in capsys.readouterr().err
    assert main(["-w", "checkpoint_final.pth", "-o", "as it is", "--model_card"]) == 0
    assert not (home / "as it is" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "7"], "-d and -c go together"),
        (["-c", "3d_fullres"], "-d and -c go together"),
        (["-p", "nnUNetPlans", "-strict"], "-p, -strict says something about a network to fit into: name it with -d"),
        (["-tr", "nnUNetTrainer"], "-tr says something about a network to fit into"),
        (["-channels", "0", "0"], "-channels says something about a network to fit into"),
        (["-seed", "1"], "-seed says something about a network to fit into"),
        (["-license", "mit"], "-license is for the card: add --model_card"),
        (["-results", "study.json"], "-results is for the card: add --model_card"),
        (["-d", "9", "-c", "3d_fullres"], "Dataset 9 is not in"),
        (["-d", "Hippocampus", "-c", "3d_fullres"], "DATASET must be a number such as 4 or a name"),
        (["-d", "7", "-c", "3d_lowres"], "Configuration '3d_lowres' is not in"),
        (["-d", "7", "-c", "2d"], "is 2-D; what is pretrained here is 3-D. Choose from: 3d_fullres"),
        (["-d", "7", "-c", "3d_planned_only"], "3d_planned_only of Dataset007_Made is not preprocessed yet"),
        (["-d", "7", "-c", "3d_fullres", "-p", "NoPlans"], "Plans 'NoPlans' do not exist in"),
        (["-d", "7", "-c", "3d_fullres", "-tr", "NoTrainer"], "-tr NoTrainer: there is no trainer of that name"),
        (["-d", "7", "-c", "3d_fullres", "-o", "out.txt"], "out.txt must end in .pth or .safetensors"),
        (["-o", "checkpoint_final.pth"], "checkpoint_final.pth is the file that is read"),
        (["-w", "gone.pth"], "gone.pth does not exist"),
        (["-w", "gone.pth", "-d", "7", "-c", "3d_fullres"], "gone.pth does not exist"),
        (["--model_card", "-o", "card", "-results", "gone.md"], "-results gone.md does not exist"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_status_1(home, capsys, arguments, message):
    before = set(home.rglob("*"))
    assert main(["-w", "checkpoint_final.pth", "-o", "out.pth", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert set(home.rglob("*")) == before


def test_a_dataset_without_labels_is_refused(home, capsys):
    folder = home / "preprocessed" / NAME / "nnUNetPlans_3d_fullres"
    shutil.rmtree(folder)
    write_case(folder.with_name(f"{folder.name}{UNLABELLED}"), "case", volume(0, channels=2), labels=False)
    assert adapt() == 1
    error = capsys.readouterr().err
    assert "preprocessed without labels only" in error
    assert "nnUNetv2_preprocess -d 7 -plans_name nnUNetPlans -c 3d_fullres" in error


def test_folders_that_are_not_set_are_named(home, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert adapt() == 1
    assert "The environment variable nnUNet_preprocessed is not set" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_preprocessed", str(home / "preprocessed"))
    monkeypatch.delenv("nnUNet_results")
    assert adapt() == 0


def test_every_flag_is_documented_and_the_commands_of_the_pages_are_accepted():
    pages = [REPOSITORY / "documentation" / "how-to" / f"{name}.md" for name in ("adapt-weights", "share-weights")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    flags = {option for action in build_parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert [flag for flag in sorted(flags) if f"| `{flag}" not in text] == []
    for line in (line for line in text.splitlines() if line.startswith("nnUNetv2_adapt_weights ")):
        build_parser().parse_args(shlex.split(line.removesuffix("\\").partition(" ")[2]))
