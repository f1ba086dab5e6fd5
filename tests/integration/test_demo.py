"""The demo as a user runs it."""

import re

import pytest
from conftest import run_command

pytestmark = pytest.mark.slow


def test_the_demo_ends_in_its_table_and_pictures(tmp_path):
    done = run_command(("nnUNetv2_pretrain_demo", "-o", tmp_path / "demo"))
    for row in ("Dice, ellipsoid", "Dice, tube", "Dice, lobes", "Dice, mean", "training loss, last epoch"):
        found = re.search(rf"{row} +(-?[\d.]+) +(-?[\d.]+)", done.stdout)
        assert found, done.stdout
        if row.startswith("Dice"):
            assert all(0 <= float(value) <= 1 for value in found.groups())
    losses = re.findall(r"^ +\d  +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    assert len(losses) == 4
    assert float(losses[-1][1]) < float(losses[0][1]), "the validation loss falls"
    assert "it cannot show that pretraining helps" in done.stdout
    for name in ("curves.png", "pretrained/AnatoMask/progress.png", "pretrained/AnatoMask/pictures/epoch_0004.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    again = run_command(("nnUNetv2_pretrain_demo", "-o", tmp_path / "demo"), check=False)
    assert again.returncode == 1
    assert "is not empty. Remove it or choose another folder with -o" in again.stderr
