"""Designs of studies: every flag is one that the commands take, and every name means something."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.evidence import pretrainings, read_design, study_command
from ssl_pretrain.cli.pretrain import build_parser as pretrain_parser
from ssl_pretrain.cli.pretrain import config_from
from ssl_pretrain.cli.pretrain_study import build_parser as study_parser
from ssl_pretrain.cli.pretrain_study import settings_from
from ssl_pretrain.finetuning.names import parse_trainer_name

DESIGNS = sorted((Path(__file__).parents[1] / "benchmarks").glob("evidence*.toml"))

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")


@pytest.mark.parametrize("file", DESIGNS, ids=lambda file: file.stem)
def test_a_design_is_of_commands_that_are_understood(file, tmp_path):
    design = read_design(file)
    for entry in design["pretraining"]:
        commands = list(pretrainings(entry, tmp_path))
        assert len(commands) == entry["seeds"]
        for number, (_, command) in enumerate(commands):
            config = config_from(vars(pretrain_parser().parse_args(command[1:])))
            assert (config.seed, config.fold) == (number, "0"), "validation cases are left out"
            assert config.plans in {made["name"] for made in design["plans"] if made["dataset"] == entry["dataset"]}
    for entry in design["study"]:
        command = study_command(entry, design, tmp_path, 1)
        settings = settings_from(vars(study_parser().parse_args(command[1:])))
        assert settings.spread and settings.seeds >= 3
        assert parse_trainer_name(settings.trainer) is not None
        methods = {
            shlex.split(made["flags"])[1] for made in design["pretraining"] if made["name"] in entry["pretrainings"]
        }
        assert {arm.split("@")[0] for arm in settings.primary} <= methods
        assert {int(arm.split("@")[1]) for arm in settings.primary} <= {min(settings.cases)}


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(tmp_path):
    entry = {"name": "a/MAE", "dataset": 4, "seeds": 3, "flags": "-m MAE"}
    folders = [tmp_path / "pretrained" / "a" / "MAE" / f"seed{seed}" for seed in range(3)]
    for folder, file in zip(folders, ("checkpoint_final.pth", "checkpoint_latest.ckpt"), strict=False):
        folder.mkdir(parents=True)
        (folder / file).touch()
    left = dict(pretrainings(entry, tmp_path))
    assert list(left) == folders[1:]
    assert [command[-1] == "--c" for command in left.values()] == [True, False]
    design = {"pretraining": [entry]}
    study = {"name": "a", "dataset": 4, "pretrainings": ["a/MAE"], "flags": "-cases 2"}
    begun = study_command(study, design, tmp_path, 2)
    assert "--c" not in begun and sum("checkpoint_final.pth" in part for part in begun) == 3
    (tmp_path / "studies" / "a").mkdir(parents=True)
    (tmp_path / "studies" / "a" / "study.json").touch()
    assert study_command(study, design, tmp_path, 2)[-1] == "--c"
