"""Wrong arguments, paths and JSON are answered before the imports of training, which take ten seconds."""

import json
import os

import pytest
from conftest import run_command
from made_data import NAME, write_dataset

PROGRAM = """
import contextlib, importlib, io, json, sys
answers = []
for module, arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = importlib.import_module(f"ssl_pretrain.cli.{module}").main(arguments)
    imported = [name for name in ("torch", "lightning", "nnunetv2") if name in sys.modules]
    answers.append([status, said.getvalue().strip(), imported])
print(json.dumps(answers))
"""

PRETRAIN = ("pretrain", "7", "3d_fullres", "all")
CASES = {
    ("pretrain", "77", "3d_fullres", "all"): "Dataset 77 is not in",
    ("pretrain", "7", "3d_lowres", "all"): "Configuration '3d_lowres' is not in",
    (*PRETRAIN, "-p", "Others"): "Plans 'Others' do not exist in",
    (*PRETRAIN, "-set", "epochs"): "-set takes NAME=VALUE, got 'epochs'",
    (*PRETRAIN, "-network_settings", "depth"): "-network_settings takes NAME=VALUE, got 'depth'",
    (*PRETRAIN, "-config", "absent.json"): "Configuration file absent.json does not exist (-config)",
    (*PRETRAIN, "-p", "Damaged"): "Damaged.json: transpose_forward: must be the axes 0, 1 and 2 in some order",
    ("adapt_weights", "-w", "x.pth", "-d", "77", "-c", "3d_fullres", "-o", "y.pth"): "Dataset 77 is not in",
    ("adapt_weights", "-w", "x.pth", "-d", "7", "-o", "y.pth"): "-d and -c go together",
    ("pretrain_study", "-w", "x.pth", "-d", "77", "-c", "3d_fullres", "-o", "study"): "Dataset 77 is not in",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What every command line of CASES answers, one after the other in one process."""
    root = tmp_path_factory.mktemp("home")
    folder = write_dataset(root / "preprocessed", cases=1)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    (folder / "Damaged.json").write_text(json.dumps({**plans, "plans_name": "Damaged", "transpose_forward": [0, 1, 1]}))
    env = {**os.environ, "nnUNet_preprocessed": str(root / "preprocessed"), "nnUNet_results": str(root)}
    lines = json.dumps([(module, arguments) for module, *arguments in CASES])
    done = run_command(("python", "-c", PROGRAM, lines), env, cwd=root)
    return dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("line", CASES, ids=" ".join)
def test_a_wrong_command_line_is_answered_before_torch_and_nnunet_are_imported(answers, line):
    status, said, imported = answers[line]
    assert status == 1
    assert said.startswith("Error: ")
    assert CASES[line] in said
    assert "\n" not in said
    assert imported == []


def test_the_dataset_is_there(answers):
    """Otherwise every line would be refused for its dataset."""
    assert sum("Dataset 77" in said for _, said, _ in answers.values()) == sum("77" in line for line in CASES)
    assert NAME.startswith("Dataset007_")
