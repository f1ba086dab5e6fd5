"""Our modules against numbers that the published implementations computed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).with_name("check.py")
FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"
FILES = sorted(FIXTURES.glob("*.json")) if FIXTURES.is_dir() else []


def run(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK), *map(str, files)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not FILES, reason=f"no reference numbers in {FIXTURES}")
def test_the_published_numbers_are_reproduced():
    result = run(*FILES)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" 0 differ") == len(FILES)


@pytest.mark.skipif(not FILES, reason=f"no reference numbers in {FIXTURES}")
@pytest.mark.parametrize(
    ("name", "path", "quantity"),
    [
        ("spark_reference_a.json", ("loss",), "loss:"),
        ("spark_reference_a.json", ("per_cell_loss", 3), "loss per cell:"),
        ("spark_reference_a.json", ("gradient_l2_norms", "mask_tokens.2"), "gradient of mask_tokens.2:"),
        ("stunet_reference_a.json", ("outputs_fine_to_coarse", 0, "abs_sum"), "output 0: sum of magnitudes:"),
    ],
)
def test_a_number_that_is_off_fails_by_name(tmp_path, name, path, quantity):
    content = json.loads((FIXTURES / name).read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] *= 1.001
    changed = tmp_path / name
    changed.write_text(json.dumps(content))
    result = run(changed)
    assert result.returncode == 1
    assert quantity in result.stdout


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    file = tmp_path / "other_a.json"
    file.write_text("{}")
    assert "must begin with one of spark, stunet" in run(file).stderr
