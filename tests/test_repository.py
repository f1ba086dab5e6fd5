"""What is installed and what is not: the two ways to install, the commands, the scripts, and the name ``nnunetv2``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_command

SCRIPTS = ("pretrain.py", "pretrain_AnatoMask.py")
COMMANDS = (
    *("nnUNetv2_pretrain", "nnUNetv2_pretrain_demo", "nnUNetv2_preprocess_unlabeled", "nnUNetv2_plan_unlabeled"),
    *("nnUNetv2_make_collection", "nnUNetv2_convert_openmind", "nnUNetv2_adapt_weights", "nnUNetv2_pretrain_study"),
)
EXPLICIT = ("--output_folder", "--preprocessed_dataset_folder", "--splits_file", "--dataset_json", "--plans")

HEAVY = ("torch", "lightning", "nnunetv2", "numpy", "matplotlib", "SimpleITK", "blosc2")

EDITABLE_NNUNET = """
import importlib.util, runpy, sys

class Finder:  # as setuptools installs it for an editable package: behind the search along sys.path
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "nnunetv2":
            return importlib.util.spec_from_file_location(name, sys.argv[2], submodule_search_locations=[])

sys.meta_path.append(Finder)
sys.path.append(sys.argv[3])  # multiprocessing hands a started process the path of the one that started it
runpy.run_path(sys.argv[1], run_name="imported by a reading process")
import nnunetv2
print(nnunetv2.__file__)
"""

PRINT_ON_EXIT = """
import atexit

@atexit.register
def show():
    import json, sys
    import config, data
    print("MODULES " + json.dumps({"config": config.__file__, "data": data.__file__}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a build needs: building in the checkout would leave its traces there."""
    target = tmp_path_factory.mktemp("source") / "anatomask"
    target.mkdir()
    for file in REPOSITORY.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    for folder in ("ssl_pretrain", "nnunetv2"):
        shutil.copytree(REPOSITORY / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run_command(("python", "-m", "pip", "wheel", source, *offline, "-w", folder))
    return zipfile.ZipFile(next(folder.glob("anatomask-*.whl")))


def names_in(wheel):
    return [name for name in wheel.namelist() if not name.endswith("/")]


def test_nnunetv2_is_the_installed_one_even_in_the_repository():
    program = "import nnunetv2, nnunetv2.run.run_training as r; print(nnunetv2.__file__); print(r.__file__)"
    done = run_command(("python", "-c", program), cwd=REPOSITORY)
    package, module = (Path(line) for line in done.stdout.splitlines()[-2:])
    assert package.name == "__init__.py"
    assert REPOSITORY not in package.parents or "site-packages" in package.parts
    assert module.is_relative_to(package.parent)


def test_our_folder_of_that_name_is_not_a_package():
    for folder in ("", "run", "training", "training/nnUNetTrainer"):
        assert (REPOSITORY / "nnunetv2" / folder).is_dir()
        assert not (REPOSITORY / "nnunetv2" / folder / "__init__.py").exists()


def test_a_wheel_puts_nothing_but_our_own_package_into_site_packages(wheel):
    top = {name.split("/")[0] for name in names_in(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ssl_pretrain"}


def test_a_wheel_has_every_module_and_every_plugin(wheel, source):
    packed = {name for name in names_in(wheel) if name.endswith(".py")}
    modules = {file.relative_to(source).as_posix() for file in (source / "ssl_pretrain").rglob("*.py")}
    plugins = {file.relative_to(source / "nnunetv2").as_posix() for file in (source / "nnunetv2").rglob("*.py")}
    assert packed == modules | {f"ssl_pretrain/nnunetv2_plugins/{plugin}" for plugin in plugins}
    assert "ssl_pretrain/py.typed" in names_in(wheel)
    assert {Path(plugin).name for plugin in plugins} >= {"load_pretrained_weights.py", "STUNetTrainer.py"}


def test_a_wheel_declares_the_commands(wheel):
    entries = wheel.read(next(name for name in names_in(wheel) if name.endswith("entry_points.txt"))).decode()
    assert {line.partition("=")[0].strip() for line in entries.splitlines() if "=" in line} == set(COMMANDS)


def test_nnunet_finds_the_trainers_of_an_installed_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    program = """
from pathlib import Path
import os, ssl_pretrain
from ssl_pretrain.transfer.extension import hook_file, trainer_environment
os.environ.update(trainer_environment())
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
trainer = recursive_find_trainer_class_by_name("STUNetTrainer_small_ft")
print(Path(ssl_pretrain.__file__).parents[1])
print(hook_file().relative_to(Path(ssl_pretrain.__file__).parent).as_posix(), trainer.__name__)
"""
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    done = run_command(("python", "-c", program), {**environment, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    *_, root, found = done.stdout.splitlines()
    assert Path(root) == tmp_path
    assert found == "nnunetv2_plugins/run/load_pretrained_weights.py STUNetTrainer_small_ft"


def test_an_editable_install_adds_no_folder_that_holds_an_nnunetv2(source, tmp_path):
    """The repository on ``sys.path`` would hide an nnU-Net that is itself installed editable."""
    program = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    run_command(("python", "-c", program, tmp_path), cwd=source)
    editable = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    assert not [name for name in names_in(editable) if name.startswith("nnunetv2")]
    for name in names_in(editable):
        if name.endswith(".pth"):
            lines = editable.read(name).decode().splitlines()
            assert [line for line in lines if not line.startswith("import ")] == []
    top_level = next(name for name in names_in(editable) if name.endswith("top_level.txt"))
    assert editable.read(top_level).decode().split() == ["ssl_pretrain"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, tmp_path):
    assert run_command((command, "--help"), cwd=tmp_path).stdout.startswith(f"usage: {command}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_run_from_any_folder_with_the_explicit_inputs(script, tmp_path):
    done = run_command(("python", REPOSITORY / "ssl_pretrain" / script, "--help"), cwd=tmp_path)
    assert done.stdout.startswith(f"usage: {script}")
    assert [flag for flag in EXPLICIT if flag not in done.stdout] == []
    assert ("default: AnatoMask" in done.stdout) == (script == "pretrain_AnatoMask.py")
    assert ("default: SparK" in done.stdout) == (script == "pretrain.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_do_not_shadow_modules_of_the_user(script, tmp_path):
    """Their folder has a ``config`` and a ``data``; within the script's process those names are still the user's."""
    (tmp_path / "data").mkdir()
    for file in ("config.py", "data/__init__.py"):
        (tmp_path / file).touch()
    (tmp_path / "sitecustomize.py").write_text(PRINT_ON_EXIT, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_command(("python", REPOSITORY / "ssl_pretrain" / script, "--help"), env, cwd=tmp_path)
    found = json.loads(done.stdout.partition("MODULES ")[2])
    assert {name: Path(file) for name, file in found.items()} == {
        "config": tmp_path / "config.py",
        "data": tmp_path / "data" / "__init__.py",
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_do_not_hide_an_editable_nnunet(script, tmp_path):
    """They put the repository on ``sys.path``, and with it a folder that is called ``nnunetv2``."""
    elsewhere = tmp_path / "nnUNet" / "nnunetv2" / "__init__.py"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    # -S: no site-packages, so that the only nnU-Net is the editable one.
    arguments = map(str, (REPOSITORY / "ssl_pretrain" / script, elsewhere, REPOSITORY))
    done = subprocess.run(
        [sys.executable, "-S", "-c", EDITABLE_NNUNET, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(elsewhere)


def test_importing_the_package_is_silent_and_imports_nothing_heavy():
    program = (
        "import sys; before = set(sys.modules); import ssl_pretrain; new = set(sys.modules) - before; "
        f"sys.exit(' '.join(sorted(new.intersection({HEAVY!r}))) or 0)"
    )
    done = run_command(("python", "-c", program), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there():
    program = "import ssl_pretrain as s; print([n for n in s.__all__ if getattr(s, n, None) is None], s.__version__)"
    done = run_command(("python", "-c", program))
    assert done.stdout.splitlines()[-1] == "[] 0.1.0"
