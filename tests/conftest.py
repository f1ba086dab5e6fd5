"""What tests share: scratch homes of nnU-Net with real and made data, and the real commands."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssl_pretrain.data.phantoms import write_phantom_dataset

REPOSITORY = Path(__file__).resolve().parents[1]

SHARED_DATA = Path(os.environ.get("ANATOMASK_TEST_DATA") or REPOSITORY.parent / "shared" / "data")

HIPPOCAMPUS_CASES = 12

TINY = (
    *("-epochs", "1", "-iters", "2", "-val_iters", "1", "-batch_size", "2", "-patch_size", "16", "24", "16"),
    *("-num_workers", "0", "-device", "cpu"),
)
"""Flags of ``nnUNetv2_pretrain`` for a run of seconds on a network of total stride 8."""

THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
"""Per process. Where tests run side by side, more threads than cores would wait for each other."""

FEW_PROCESSES = {"OMP_NUM_THREADS": THREADS, "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "1"}
"""What keeps nnU-Net from starting a dozen processes for a few small cases."""


def pytest_configure(config: pytest.Config) -> None:
    """Before any test: the threads of this process, and files in the order in which they are collected."""
    import torch

    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which begins with the files of most tests
        config.option.loadscopereorder = False
    if THREADS == "1":
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = THREADS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a long one that begins last leaves all workers but one with nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@dataclass(frozen=True)
class Home:
    """Folders of nnU-Net with one planned and preprocessed dataset (``3d_fullres`` of ``nnUNetPlans``).

    Shared by the session: a test that changes what is in ``raw`` or ``preprocessed`` works on a :meth:`copy`.
    """

    root: Path
    dataset: str

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    @property
    def number(self) -> str:
        return str(int(self.dataset[7:10]))

    @property
    def folder(self) -> Path:
        """The dataset in ``nnUNet_preprocessed``."""
        return self.preprocessed / self.dataset

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command that works in these folders, whatever the caller's says."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
        return {
            **kept,
            **FEW_PROCESSES,
            **{path.name: str(path) for path in (self.raw, self.preprocessed, self.results)},
        }

    def copy(self, root: Path) -> Home:
        """The same data elsewhere, to be changed freely; without results."""
        copied = Home(root, self.dataset)
        for source, target in ((self.raw, copied.raw), (self.preprocessed, copied.preprocessed)):
            shutil.copytree(source, target)
        copied.results.mkdir()
        return copied


def run_command(
    args: Sequence[str | Path], env: Mapping[str, str] | None = None, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a console command of this environment (or ``python``) and capture its text.

    Args:
        args: name of the command, then its arguments.
        env: the whole environment; default the current one.
        check: fail the test, with the output, if the command fails.
        cwd: folder to run in.
    """
    scripts = Path(sys.executable).parent
    program = sys.executable if args[0] == "python" else shutil.which(str(args[0]), path=str(scripts))
    assert program is not None, f"{args[0]} is not installed in {scripts}"
    done = subprocess.run(
        [program, *map(str, args[1:])],
        env={**FEW_PROCESSES, "PYTHONUTF8": "1", **(os.environ if env is None else env)},
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if check and done.returncode != 0:
        line = " ".join(map(str, args))
        pytest.fail(
            f"{line}\nended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}", pytrace=False
        )
    return done


def plan_and_preprocess(home: Home) -> Home:
    """What a user types after putting a dataset into ``nnUNet_raw``."""
    home.results.mkdir()
    home.preprocessed.mkdir()
    run_command(
        ("nnUNetv2_plan_and_preprocess", "-d", home.number, "-c", "3d_fullres", "-np", "2", "-npfp", "2"),
        home.environment,
    )
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real datasets; tests that need them are skipped where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real datasets are not in {SHARED_DATA} (ANATOMASK_TEST_DATA can name their folder)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def hippocampus(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A dozen real MR crops of about 35 x 50 x 36 voxels; the network has 4 stages, total stride 8.

    The folder's name has a space in it, as folders of users have.
    """
    home = Home(tmp_path_factory.mktemp("nnU-Net home"), "Dataset004_Hippocampus")
    source, target = shared_data / home.dataset, home.raw / home.dataset
    if not source.is_dir():
        pytest.skip(f"{home.dataset} is not in {shared_data}")
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
        for file in sorted((source / name).iterdir())[:HIPPOCAMPUS_CASES]:
            shutil.copyfile(file, target / name / file.name)
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    description["numTraining"] = HIPPOCAMPUS_CASES
    (target / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return plan_and_preprocess(home)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Ten made cases of 24 x 32 x 32 voxels with three organs: runs where the real data are absent."""
    home = Home(tmp_path_factory.mktemp("nnU-Net phantoms"), "Dataset900_Phantoms")
    write_phantom_dataset(home.raw / home.dataset, cases=10, shape=(24, 32, 32), seed=0)
    return plan_and_preprocess(home)


@pytest.fixture(autouse=True)
def _console_is_given_back():
    """A command that runs inside the test process sets up logging and the path for a process of its own."""
    logger, path = logging.getLogger("ssl_pretrain"), list(sys.path)
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:], sys.path[:] = handlers, path
    logger.setLevel(level)
