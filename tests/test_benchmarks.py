"""The benchmark scripts run and report what they promise, on networks and patches that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_pretrain.methods import METHODS
from ssl_pretrain.networks import NETWORKS

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--network", "STUNet_small", "--patch", "32", "32", "32", "--cell", "16", "16", "16"]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [*command], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_encoder_benchmark_compares_backends(tmp_path):
    file = tmp_path / "result.json"
    script = "benchmarks/sparse_encoder.py"
    out = run(
        sys.executable, script, *TINY, "--stages", "4", "--mask_ratio", "0.5", "--repeat", "1", "--json", str(file)
    )
    assert "speedup" in out
    result = json.loads(file.read_text())
    masked, blocks = result["rows"]
    assert (masked["backend"], masked["packed_stages"], masked["speedup"], masked["max_error"]) == ("masked", 0, 1, 0)
    assert blocks["packed_stages"] == 4
    assert 0 < blocks["max_error"] < 1e-5
    assert 0 < blocks["memory_ratio"] < 1
    assert {"machine", "versions", "date", "settings"} <= set(result)


def test_the_step_benchmark_compares_two_sides(tmp_path):
    file = tmp_path / "result.json"
    against = ["--against", "masked", "--against_decoder", "spark", "--steps", "1", "--warmup", "0"]
    out = run(
        sys.executable,
        "benchmarks/step.py",
        *TINY,
        *["--stages", "4", "--sparse", "blocks", "--decoder", "slim"],
        *against,
        "--json",
        str(file),
    )
    assert "ratio" in out
    result = json.loads(file.read_text())
    theirs, ours = result["theirs"], result["ours"]
    assert result["ratio"] == pytest.approx(theirs["step_seconds"] / ours["step_seconds"])
    assert ours["peak_memory_gib"] < theirs["peak_memory_gib"]
    assert {"teacher forward", "encoder backward"} <= set(ours["part_seconds"])


@pytest.mark.slow
def test_the_gpu_table_is_made_by_one_command(tmp_path):
    file = tmp_path / "gpu.json"
    settings = {"DEVICE": "cpu", "NETWORKS": "STUNet_small", "PATCHES": "32,32,32", "BATCH": "1", "REPEAT": "1"}
    # bfloat16 takes minutes on a CPU that has no instructions for it.
    out = run("bash", "benchmarks/gpu.sh", PYTHON=sys.executable, OUT=str(file), PRECISIONS="32", **settings)
    assert "failed" not in out
    rows = json.loads(file.read_text())
    assert {name.split("-")[0] for name in rows} == {"encoder", "step"}
    assert all("ratio" in row or row["rows"] for row in rows.values())


def test_the_loader_benchmark_compares_both_loaders(tmp_path):
    file, small = tmp_path / "loader.json", ["--batches", "1", "--rounds", "1", "--volumes", "1"]
    size = ["--synthetic", "40", "48", "48", "--patch", "16", "16", "16"]
    out = run(sys.executable, "benchmarks/loader.py", *size, *small, "--json", str(file))
    result = json.loads(file.read_text())
    assert {"ratio", "ratio_device", "patches_per_second", "machine", "date", "settings"} <= set(result)
    assert set(result["patches_per_second"]) == {"nnU-Net", "loader", "device"}
    assert "over nnU-Net" in out


def test_the_loader_benchmark_compares_the_view_of_every_method_with_reading(tmp_path):
    file, small = tmp_path / "views.json", ["--batches", "2", "--rounds", "1", "--volumes", "1", "--method"]
    size = ["--synthetic", "40", "48", "48", "--patch", "32", "32", "32"]
    out = run(sys.executable, "benchmarks/loader.py", *size, *small, "--json", str(file))
    result = json.loads(file.read_text())
    assert set(result["views"]) == {"reading", "loader", *METHODS}
    assert all(row["milliseconds"] > 0 and row["over_reading"] > 0 for row in result["views"].values())
    assert result["views"]["reading"]["over_reading"] == result["views"]["loader"]["over_loader"] == 1
    assert "over reading" in out
    run(sys.executable, "benchmarks/loader.py", *size, *small, "ModelsGenesis", "--json", str(file))
    assert set(json.loads(file.read_text())["views"]) == {"reading", "loader", "ModelsGenesis"}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_the_loader_benchmark_measures_memory_and_start_up(tmp_path):
    file = tmp_path / "memory.json"
    size = ["--synthetic", "20", "24", "24", "--patch", "16", "16", "16", "--volumes", "1"]
    run(sys.executable, "benchmarks/loader.py", *size, "--memory", "200", "--workers", "1", "--json", str(file))
    assert len(json.loads(file.read_text())["memory_mib_every_100_batches"]) == 2
    run(sys.executable, "benchmarks/loader.py", "--index", "50", "--json", str(file))
    assert json.loads(file.read_text())["cases"] == 50


def test_the_method_benchmark_has_a_row_per_method_that_goes_with_the_network(tmp_path):
    file = tmp_path / "methods.json"
    size = ["--networks", "PrimusS", "--patch", "16", "16", "16", "--rounds", "1"]
    run(sys.executable, "benchmarks/methods.py", *size, "--json", str(file))
    result = json.loads(file.read_text())
    able = [name for name, method in METHODS.items() if method.goes_with(NETWORKS["PrimusS"].offers)]
    assert [row["method"] for row in result["rows"]] == able
    assert result["kept_over_all"]["PrimusS"] > 0
    assert all(row["seconds"] > 0 and row["multiply_adds_1e9"] > 0 for row in result["rows"])


def test_the_published_reliability_is_what_was_measured():
    result = json.loads((ROOT / "benchmarks" / "results" / "reliability.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(row["same"] for row in (*result["kills"], *result["disk"]))
    assert not any(row["tracebacks"] for row in result["disk"])
    for name in ("SIGKILL", "SIGTERM", "SIGINT"):
        runs = [row for row in result["kills"] if row["signal"] == name]
        late = sum(row["status"] == 0 for row in runs)
        assert f"| {name} | {len(runs)}, of which {late} came after the end |" in page
    assert set(result["damaged"]["latest"].values()) == {"the one before"}
    assert set(result["damaged"]["final"].values()) == {"one line"}
    hostile = result["hostile"]
    slowest, largest = (max(row[name] for row in hostile) for name in ("seconds", "mebibytes"))
    assert f"| {len(hostile)} | all refused in one line, within {slowest:.1f} s and {largest:.0f} MiB |" in page
    refused, accepted = (
        sum(kind.get(name, 0) for kind in result["mutations"].values()) for name in ("refused", "accepted")
    )
    assert {name for kind in result["mutations"].values() for name in kind} == {"refused", "accepted"}
    assert f"| {refused + accepted} | {refused} refused with the file's name, {accepted} harmless" in page
