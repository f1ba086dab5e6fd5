"""The command as a user types it: flags, messages, exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import run_command
from made_data import IDENTIFIER, NAME, volume, write_case, write_dataset

from ssl_pretrain.cli.console import message_of
from ssl_pretrain.cli.pretrain import build_parser, config_from, main, parse_settings
from ssl_pretrain.data.cases import CaseError

QUICK = ["-epochs", "1", "-iters", "2", "-val_iters", "1", "-num_workers", "0", "-device", "cpu"]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    return write_dataset(tmp_path / "preprocessed", cases=6)


def run(*arguments: str) -> int:
    return main(["7", "3d_fullres", "0", *QUICK, *arguments])


def test_a_run_ends_with_the_command_that_fine_tunes(dataset, capsys):
    assert run("-m", "SparK") == 0
    out = capsys.readouterr().out
    command = out.strip().splitlines()[-1].split()
    assert command[:4] == ["nnUNetv2_train", "7", "3d_fullres", "0"]
    checkpoint = Path(command[command.index("-pretrained_weights") + 1])
    assert checkpoint.is_file()
    assert "SparK__plans__nnUNetPlans__3d_fullres" in str(checkpoint)


def test_an_stunet_run_writes_plans_and_names_them(dataset, capsys):
    assert run("-network", "STUNet_small", "-m", "SparK", "-batch_size", "1") == 0
    assert (dataset / "nnUNetPlans_STUNet_small.json").is_file()
    assert "-p nnUNetPlans_STUNet_small -pretrained_weights" in capsys.readouterr().out


def test_dry_run_shows_everything_and_writes_nothing(dataset, tmp_path, capsys):
    assert run("--dry_run", "-mask_cell", "4", "4", "4") == 0
    out = capsys.readouterr().out
    for part in ('"mask_cell"', "grid (4, 4, 4), 38 of 64 masked", "PlainConvUNet", "parameters: network", "GiB"):
        assert part in out
    assert "2        16  4 x 4 x 4  4 x 4 x 4" in out
    assert list((tmp_path / "results").iterdir()) == []


def test_flags_file_and_settings_meet_in_one_configuration(dataset, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"epochs": 7, "iters": 9, "crops": {"rotation": 10}}))
    arguments = ["7", "3d_fullres", "0", "-config", str(file), "-iters", "3", "-mask_ratio", "0.5"]
    arguments += [
        "-set",
        "lr=0.1",
        "teacher_masks=2",
        "-set",
        "oversample_foreground=0.33",
        "-mask_cell",
        "4",
        "4",
        "4",
    ]
    made = config_from(vars(build_parser().parse_args(arguments)))
    assert (made.epochs, made.iters, made.crops.rotation) == (7, 3, 10.0)
    assert (made.task.lr, made.task.mask_ratio, made.task.teacher_masks, made.task.mask_cell) == (
        0.1,
        0.5,
        2,
        (4, 4, 4),
    )
    assert made.crops.oversample_foreground == 0.33


def test_the_published_recipe_is_one_flag(dataset, tmp_path):
    def made(*more: str):
        return config_from(vars(build_parser().parse_args(["7", "3d_fullres", "0", "-recipe", "published", *more])))

    assert (made().task.decoder, made().task.stages, made().crops.oversample_foreground) == ("spark", 5, 0.33)
    assert made("-set", "stages=None", "-m", "SparK").task.stages is None
    file = tmp_path / "config.json"
    file.write_text(json.dumps(made().to_dict()))
    assert made("-config", str(file)) == made()
    file.write_text(json.dumps({**made().to_dict(), "recipe": "default"}))
    with pytest.raises(ValueError, match="holds the settings of recipe default, which would all win over -recipe publ"):
        made("-config", str(file))


def test_a_run_from_before_there_were_recipes_is_continued(dataset, tmp_path, capsys):
    settings = ["-set", "decoder=spark", "teacher=full"]
    assert run(*settings) == 0
    file = next(tmp_path.glob("results/*/*/fold_0/config.json"))
    content = json.loads(file.read_text())
    del content["recipe"], content["task"]["teacher"]
    file.write_text(json.dumps(content))
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu"]) == 0
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu", "-set", "teacher=coarse"]) == 1
    assert "with other settings: teacher was 'full', is 'coarse'" in capsys.readouterr().err
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu", "-recipe", "published"]) == 1
    assert "recipe was 'default', is 'published'" in capsys.readouterr().err


def test_continuing_takes_the_settings_of_the_run(dataset, capsys):
    assert run("-set", "mask_ratio=0.5") == 0
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu"]) == 0
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu", "-epochs", "3"]) == 1
    assert "with other settings: epochs was 1, is 3" in capsys.readouterr().err


def test_a_file_and_a_continued_run_name_their_method(dataset, tmp_path, capsys):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"method": "SparK"}))
    parse = build_parser().parse_args
    assert config_from(vars(parse(["7", "3d_fullres", "0", "-config", str(file)]))).method == "SparK"
    assert config_from(vars(parse(["7", "3d_fullres", "0"]))).method == "AnatoMask"
    assert config_from(vars(parse(["7", "3d_fullres", "0"])), "SparK").method == "SparK"
    out = ["-o", str(tmp_path / "spark")]
    assert run("-m", "SparK", *out) == 0
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu", *out]) == 0
    assert main(["7", "3d_fullres", "0", "--c", "-device", "cpu", "-m", "AnatoMask", *out]) == 1
    assert "holds a run of SparK, not of AnatoMask" in capsys.readouterr().err


def test_the_five_explicit_inputs_of_anatomask(dataset, tmp_path, capsys):
    explicit = [
        "--preprocessed_dataset_folder",
        str(dataset / IDENTIFIER),
        "--plans",
        str(dataset / "nnUNetPlans.json"),
    ]
    explicit += ["--dataset_json", str(dataset / "dataset.json"), "--splits_file", str(dataset / "splits_final.json")]
    out = tmp_path / "explicit"
    assert main([*QUICK, *explicit, "--output_folder", str(out)], explicit=True) == 0
    assert (out / "checkpoint_final.pth").is_file()
    assert "nnUNetv2_train 7 3d_fullres 0 -pretrained_weights" in capsys.readouterr().out
    assert main([*QUICK, *explicit], explicit=True) == 1
    assert "Explicit inputs are given all together; missing: --output_folder" in capsys.readouterr().err
    assert main(QUICK, explicit=True) == 1
    assert "Missing arguments: dataset, configuration, fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "MAE99"], "Unknown method 'MAE99'. Choose from AnatoMask, SparK, MAE, S3D"),
        (["-network", "UNETR"], "Unknown network 'UNETR'. Choose from plans, STUNet_small"),
        (["-network", "nowhere:Net"], "module 'nowhere' cannot be imported"),
        (["-set", "nothing=1"], "Unknown setting 'nothing' of AnatoMask. There: "),
        (["-set", "teacher_masks=many"], "Setting teacher_masks='many' is not a whole number"),
        (["-set", "alone"], "-set takes NAME=VALUE, got 'alone'"),
        (["-mask_ratio", "0"], "mask_ratio must lie strictly between 0 and 1, got 0.0"),
        (["-mask_ratio", "1"], "mask_ratio must lie strictly between 0 and 1, got 1.0"),
        (["-mask_ratio", "-0.5"], "mask_ratio must lie strictly between 0 and 1, got -0.5"),
        (["-mask_ratio", "0.999"], "leaves no cell visible"),
        (["-mask_ratio", "0.001"], "leaves no cell masked"),
        (["-patch_size", "16", "18", "16"], "Nearest patch sizes that work: (16, 16, 16) and (16, 20, 16)"),
        (["-mask_cell", "5", "8", "8"], "Cells that work: D: 1, 2, 4, 8, 16"),
        (["-p", "NoPlans"], "Plans 'NoPlans' do not exist"),
        (["-pretrained_weights", "gone.pth"], "gone.pth"),
        (["-config", "gone.json"], "Configuration file gone.json does not exist"),
        (["--c"], "there is no checkpoint_latest.ckpt"),
        (["-precision", "16"], "-precision 16 needs a GPU. Use -precision 32 or bf16 with -device cpu"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_status_1(dataset, capsys, arguments, message):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert f"{message}" in error
    assert "Traceback" not in error


def test_cuda_that_is_absent(dataset, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["7", "3d_fullres", "0", "-device", "cuda"]) == 1
    assert "-device cuda: PyTorch" in (error := capsys.readouterr().err)
    assert "finds no CUDA device here. Use -device" in error


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_case_is_named_whoever_reads_it(dataset, capsys, workers):
    image = volume(0)
    image[:] = float("nan")
    for i in range(6):
        write_case(dataset / IDENTIFIER, f"case_{i:02d}", image)
    assert run("-num_workers", workers) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: ")
    assert "holds NaN or Inf. Remove the case from the dataset or repair its image" in error


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")
def test_sigterm_to_the_whole_process_group_saves_and_ends_with_143(dataset, tmp_path):
    """Clusters signal every process of a job, the reading ones too."""
    out = tmp_path / "stopped"
    arguments = ["7", "3d_fullres", "0", "-epochs", "500", "-iters", "50", "-val_iters", "1", "-num_workers", "2"]
    command = [sys.executable, "-m", "ssl_pretrain.cli.pretrain", *arguments, "-device", "cpu", "-o", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while not (out / "checkpoint_latest.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 143, output[-2000:]
    assert "Asked to terminate: stopped after step" in output
    step = torch.load(out / "checkpoint_latest.ckpt", weights_only=True)["global_step"]
    assert f"stopped after step {step}" in output


def test_a_truncated_case_stops_before_training(dataset, capsys):
    file = dataset / IDENTIFIER / "case_03.b2nd"
    file.write_bytes(file.read_bytes()[:50])
    assert run() == 1
    assert "case_03.b2nd is truncated or corrupt" in capsys.readouterr().err


def test_a_case_with_other_channels_stops_before_training(dataset, capsys):
    write_case(dataset / IDENTIFIER, "case_02", volume(2, channels=2))
    assert run() == 1
    assert "case_02.b2nd has 2 channels, the plans say 1" in capsys.readouterr().err


def test_a_weights_file_that_is_no_checkpoint_is_refused(dataset, tmp_path, capsys):
    file = tmp_path / "weights.pth"
    file.write_text("no checkpoint")
    assert run("-pretrained_weights", str(file)) == 1
    assert str(file) in capsys.readouterr().err


def test_an_error_from_a_reading_process_is_its_own_words():
    wrapped = "Caught CaseError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\n"
    assert message_of(CaseError(wrapped + "ssl_pretrain.data.cases.CaseError: file.b2nd: bad")) == "file.b2nd: bad"
    assert message_of(ValueError("plain")) == "plain"


def test_settings_are_pairs():
    assert parse_settings(["a=1", "b=c=d"]) == {"a": "1", "b": "c=d"}


STRAY = ("psutil.py", "lz4.py", "wandb.py", "users_encoder.py")
"""Modules that the packages we use try to import, and one of the user's own."""


def test_stray_modules_of_the_current_folder_are_not_imported(dataset, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for name in STRAY:
        (here / name).write_text(f"from pathlib import Path\nPath({str(here)!r}, 'ran_{name}').touch()\n")
    command = ("nnUNetv2_pretrain", "7", "3d_fullres", "0", *QUICK, "-m", "SparK", "--dry_run")
    assert "PlainConvUNet" in run_command(command, cwd=here).stdout
    assert {file.name for file in here.iterdir()} == set(STRAY)


def test_the_current_folder_is_looked_into_for_a_network_of_ones_own_alone(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--dry_run", "-patch_size", "15", "15", "15") == 1
    assert str(tmp_path) not in sys.path
    assert run("--dry_run", "-network", "users_own_encoder:Net") == 1
    assert "module 'users_own_encoder' cannot be imported" in capsys.readouterr().err
    assert str(tmp_path) in sys.path


def stored_run(folder: Path, **entries) -> list[str]:
    """The command that continues a run whose ``config.json`` says so."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dataset": NAME, "fold": "0", **entries}))
    return ["7", "3d_fullres", "0", "-device", "cpu", "--c", "-o", str(folder)]


def test_a_results_folder_does_not_choose_the_code_that_is_run(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_net.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    command = stored_run(tmp_path / "found", network="strange_net:Net")
    for typed in ([], ["-network", "other_net:Net"], ["-network", "plans"]):
        made = [*command, *typed]
        assert main(made) == 1
        error = capsys.readouterr().err
        assert "config.json names the network strange_net:Net, whose code would be run" in error
        assert "-network strange_net:Net; else" in error
    assert not (tmp_path / "imported").exists()
    parse = build_parser().parse_args
    file = tmp_path / "by_hand.json"
    file.write_text(json.dumps({"network": "strange_net:Net"}))
    for typed in (["-network", "strange_net:Net"], ["-config", str(file)]):
        assert config_from(vars(parse([*command, *typed]))).network == "strange_net:Net"


def test_a_results_folder_does_not_choose_where_else_is_written_nor_whom_to_trust(dataset, tmp_path, capsys):
    parse = build_parser().parse_args
    elsewhere = stored_run(tmp_path / "found", output_folder=str(tmp_path / "elsewhere"))
    assert config_from(vars(parse(elsewhere))).output_folder == str(tmp_path / "found")
    assert main(stored_run(tmp_path / "trusting", trust_plans=True)) == 1
    assert "Unknown settings trust_plans" in capsys.readouterr().err


def test_plans_that_name_code_of_their_own_need_a_word_of_trust(dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "strange_layers.py").write_text("from torch import nn\nclass Act(nn.LeakyReLU):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((dataset / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "strange_layers.Act"
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    assert run("--dry_run") == 1
    error = capsys.readouterr().err
    assert "code that we do not know: nonlin 'strange_layers.Act'" in error
    assert len(error.strip().splitlines()) == 1
    assert run("--dry_run", "-trust_plans") == 0
