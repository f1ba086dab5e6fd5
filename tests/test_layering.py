"""Imports point one way.

functional ◄ sparse ◄ networks ◄ methods ◄ training ◄ cli
functional ◄ data ◄ training          networks ◄ transfer ◄ training, cli          report ◄ transfer, training, study
transfer ◄ finetuning ◄ nnunetv2/, study ◄ cli

``files.py`` is below all that writes, ``harmless.py`` below all that opens pickles,
``allocator.py`` below what trains, ``config.py`` stands between methods, data
and training. Imports within functions and for type checkers count, too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_command

from ssl_pretrain.methods import METHODS
from ssl_pretrain.networks.registry import NETWORKS, PLANNED

PACKAGE = "ssl_pretrain"
PLUGINS = "nnunetv2/"

BELOW = {
    "files": (),
    "harmless": (),
    "allocator": (),
    "functional": (),
    "sparse": ("functional",),
    "networks": ("sparse",),
    "methods": ("networks",),
    "data": ("functional", "files", "harmless"),
    "config": ("methods", "data"),
    "transfer": ("networks", "files", "harmless", "report"),
    "finetuning": ("transfer",),
    "report": ("files",),
    "training": ("config", "transfer", "report", "allocator"),
    "study": ("finetuning", "data", "report", "allocator"),
    "cli": ("training", "study"),
    PLUGINS: ("finetuning",),
}
"""Room -> the rooms directly below it; what is below those may be used as well."""

DOORS = {"__init__": "looks names up when they are asked for", "pretrain": "a script", "pretrain_AnatoMask": "a script"}
"""Modules at the top of the package that are in no room, and why they may import from any."""

TORCH_ONLY = ("functional", "sparse", "networks", "methods")
TORCH_ONLY_EXCEPT = ("networks/plans.py",)
THIRD_PARTY = {"torch", "numpy", "lightning", "monai", "dynamic_network_architectures", "spconv"}
"""What the torch-only rooms may import: the step benchmark runs where nothing else is installed."""

ABSENT = ("nnunetv2", "SimpleITK", "blosc2")


def imported_names(tree: ast.AST, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, wherever in it the import stands.

    Args:
        tree: of the module.
        module: its dotted name, to resolve relative imports.
        is_package: whether it is an ``__init__``.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module; of a class, its name merely comes on top.
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            literals = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found += [(node.lineno, name) for name in literals]
    return found


def allowed_rooms(room: str) -> set[str]:
    return {room}.union(*(allowed_rooms(below) for below in BELOW[room]))


def room_of(file: str) -> str | None:
    """The room that a file of the repository belongs to; None for the doors."""
    if file.startswith(PLUGINS):
        return PLUGINS
    first = file.removeprefix(f"{PACKAGE}/").split("/")[0].removesuffix(".py")
    return None if first in DOORS else first


def dotted(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def wrong_directions(file: str, source: str) -> list[str]:
    """Imports from rooms that are not below the file's own."""
    room = room_of(file)
    if room is None:
        return []
    wrong = []
    for line, name in imported_names(ast.parse(source), dotted(file), file.endswith("__init__.py")):
        parts = name.split(".")
        if parts[0] != PACKAGE:
            continue
        # Names that the package's own __init__ hands out lead into rooms that cannot be seen from here.
        target = parts[1] if len(parts) > 1 else "__init__"
        if target not in allowed_rooms(room):
            wrong.append(f"{file}:{line}: {room} imports {name}")
    return wrong


def not_torch_only(file: str, source: str) -> list[str]:
    """Imports that the torch-only rooms must not have."""
    inner = file.removeprefix(f"{PACKAGE}/")
    if room_of(file) not in TORCH_ONLY or inner in TORCH_ONLY_EXCEPT:
        return []
    names = imported_names(ast.parse(source), dotted(file), file.endswith("__init__.py"))
    allowed = {PACKAGE, *THIRD_PARTY, *sys.stdlib_module_names}
    return [f"{file}:{line}: imports {name}" for line, name in names if name.split(".")[0] not in allowed]


def prints(file: str, source: str) -> list[str]:
    """Calls of ``print`` in the library; only ``cli`` speaks to the console."""
    if room_of(file) in ("cli", PLUGINS):
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [f"{file}:{c.lineno}: print" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


CHECKS = (wrong_directions, not_torch_only, prints)


def files() -> dict[str, str]:
    found = [*(REPOSITORY / PACKAGE).rglob("*.py"), *(REPOSITORY / PLUGINS).rglob("*.py")]
    return {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8") for file in sorted(found)}


NAMING_NETWORKS = {
    "data/preparation/planning.py": "nnU-Net's planners; data stands beside networks and cannot see the rows",
    "benchmarks/common.py": "a flag's default",
    "benchmarks/methods.py": "a flag's default",
}
NAMING_METHODS = {
    "config.py": "the default method",
    "cli/pretrain.py": "the default method",
    "cli/demo.py": "shows one method",
    "cli/adapt_weights.py": "trainers of nnssl, not methods of ours",
    "pretrain.py": "a script for one method",
    "pretrain_AnatoMask.py": "a script for one method",
    "networks/custom.py": "a convention of encoders that has the name of a method",
    "transfer/sources/anatomask.py": "a format of files, not a method",
    "transfer/sources/nnssl_axes.py": "trainers of nnssl, not methods of ours",
    "benchmarks/step.py": "the default method",
    "benchmarks/reliability.py": "breaks runs of one method",
}
"""Files that name networks or methods in their strings, and why; all others read the registries."""


def strings(source: str) -> list[str]:
    """Text of all strings but docstrings."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [node.value for node in texts if isinstance(node.value, str)]


@pytest.mark.parametrize(
    # "plans" is a word of nnU-Net's as well.
    ("names", "room", "exceptions"),
    [
        ([name for name in NETWORKS if name != PLANNED], "networks/", NAMING_NETWORKS),
        (METHODS, "methods/", NAMING_METHODS),
    ],
    ids=["networks", "methods"],
)
def test_names_stand_in_their_registry_alone(names, room, exceptions):
    """A list of names in a second place would have to be found by whoever adds one."""
    named = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(names)})(?![A-Za-z0-9])")
    sources = {file.removeprefix(f"{PACKAGE}/"): source for file, source in files().items()}
    sources |= {f"benchmarks/{file.name}": file.read_text("utf-8") for file in (REPOSITORY / "benchmarks").glob("*.py")}
    sources = {file: source for file, source in sources.items() if not file.startswith((room, PLUGINS))}
    assert {file for file, source in sources.items() if any(map(named.search, strings(source)))} == set(exceptions)


def test_no_two_classes_have_one_name():
    classes = Counter(
        node.name
        for file, source in files().items()
        if file.startswith(f"{PACKAGE}/")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_repository_keeps_to(check):
    found = files()
    assert len(found) > 40
    assert [fault for file, source in found.items() for fault in check(file, source)] == []


def test_every_module_is_in_a_room_or_a_door():
    rooms = {room_of(file) for file in files()} - {None}
    assert rooms == set(BELOW)


def declared() -> set[str]:
    """Names of what setup.py requires, and of its extras and what they require, in lower case."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "setup")
    parts = [k.value for k in call.keywords if k.arg in ("install_requires", "extras_require")]
    texts = [n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)]
    return {re.split(r"[^\w-]", text)[0].lower().replace("_", "-") for text in texts}


def test_setup_declares_what_is_imported_and_nothing_else():
    ours = {PACKAGE, *sys.stdlib_module_names}
    imported = {
        name.split(".")[0]
        for file, source in files().items()
        for _, name in imported_names(ast.parse(source), dotted(file), file.endswith("__init__.py"))
    } - ours
    distributions = packages_distributions()
    needed = {(distributions.get(name) or [name])[0].lower().replace("_", "-") for name in imported}
    asked = declared() - {"test", "dev", "hub", "spconv"}  # the last ones are names of extras
    assert needed <= asked
    tools = {"pytest", "pytest-xdist", "hypothesis", "setuptools", "ruff", "mypy", "codespell", "pre-commit"}
    for_lightning, for_tests, by_name = {"tensorboard"}, {"batchgeneratorsv2"}, {"spconv-cu126", "huggingface-hub"}
    assert asked - needed == tools | for_lightning | for_tests | by_name


def test_the_rooms_are_as_the_design_says():
    assert allowed_rooms("methods") == {"functional", "sparse", "networks", "methods"}
    assert allowed_rooms("data") == {"files", "harmless", "functional", "data"}
    assert allowed_rooms(PLUGINS) == {
        *(PLUGINS, "finetuning", "transfer", "report", "files", "harmless", "networks", "sparse", "functional")
    }
    assert allowed_rooms("training") == set(BELOW) - {"cli", "study", "finetuning", PLUGINS}


@pytest.mark.parametrize(
    ("check", "file", "source"),
    [
        (wrong_directions, "ssl_pretrain/functional/a.py", "from ssl_pretrain.sparse import mask"),
        (wrong_directions, "ssl_pretrain/functional/a.py", "import ssl_pretrain.data.cases"),
        (wrong_directions, "ssl_pretrain/functional/a.py", "from ..methods import spark"),
        (wrong_directions, "ssl_pretrain/functional/__init__.py", "from ..methods import spark"),
        (wrong_directions, "ssl_pretrain/networks/a.py", "from .. import transfer"),
        (wrong_directions, "ssl_pretrain/networks/a.py", "from ssl_pretrain import PretrainConfig"),
        (wrong_directions, "ssl_pretrain/data/a.py", "def f():\n    from ssl_pretrain.networks import base"),
        (
            wrong_directions,
            "ssl_pretrain/data/a.py",
            "importlib.import_module('ssl_pretrain.config')",
        ),
        (wrong_directions, "ssl_pretrain/methods/a.py", "if TYPE_CHECKING:\n    from ssl_pretrain.config import X"),
        (wrong_directions, "ssl_pretrain/report/a.py", "from ssl_pretrain.transfer.plans import write_stunet_plans"),
        (wrong_directions, "ssl_pretrain/training/a.py", "from ssl_pretrain.cli.pretrain import main"),
        (wrong_directions, "ssl_pretrain/config.py", "from ssl_pretrain.training.run import pretrain"),
        (wrong_directions, "nnunetv2/run/a.py", "from ssl_pretrain.training.run import pretrain"),
        (wrong_directions, "ssl_pretrain/transfer/a.py", "from ssl_pretrain.finetuning import grammar"),
        (wrong_directions, "ssl_pretrain/study/a.py", "from ssl_pretrain.training.run import pretrain"),
        (not_torch_only, "ssl_pretrain/methods/a.py", "def f():\n    import nnunetv2.paths"),
        (not_torch_only, "ssl_pretrain/networks/a.py", "from SimpleITK import ReadImage"),
        (not_torch_only, "ssl_pretrain/sparse/a.py", "import blosc2"),
        (not_torch_only, "ssl_pretrain/functional/a.py", "import matplotlib.pyplot as plt"),
        (prints, "ssl_pretrain/training/a.py", "def f():\n    print('x')"),
    ],
)
def test_it_can_fail(check, file, source):
    assert len(check(file, source)) == 1


@pytest.mark.parametrize(
    ("check", "file", "source"),
    [
        (wrong_directions, "ssl_pretrain/methods/a.py", "from ssl_pretrain.functional.losses import x"),
        (wrong_directions, "ssl_pretrain/methods/__init__.py", "from .spark import SparK"),
        (wrong_directions, "ssl_pretrain/training/a.py", "from ..report import progress"),
        (wrong_directions, "ssl_pretrain/pretrain.py", "from ssl_pretrain.cli.pretrain import main"),
        (wrong_directions, "nnunetv2/run/a.py", "from ssl_pretrain.transfer.load import load_pretrained"),
        (not_torch_only, "ssl_pretrain/networks/plans.py", "import nnunetv2"),
        (not_torch_only, "ssl_pretrain/data/a.py", "import blosc2"),
        (not_torch_only, "ssl_pretrain/methods/a.py", "import math\nfrom torch import nn"),
        (prints, "ssl_pretrain/cli/a.py", "print('x')"),
        (prints, "ssl_pretrain/training/a.py", "self.print('x')  # print('x')"),
    ],
)
def test_it_can_pass(check, file, source):
    assert check(file, source) == []


def test_a_method_trains_where_nnunet_and_its_readers_are_not_installed(tmp_path: Path):
    """None in ``sys.modules`` is how Python remembers that a module is not there: importing it fails."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
import torch
from ssl_pretrain.methods import METHODS, MethodSetup, build_method
from ssl_pretrain.networks import build_backbone
strides = [[1, 1, 1], *[[2, 2, 2]] * 3]
for name in METHODS:
    size = dict(input_channels=1, num_classes=3, patch=(16, 16, 16))
    networks = ("STUNet_small", {{}}), ("PrimusS", dict(width=36, depth=1, heads=2))
    network, settings = networks["tokens" in METHODS[name].needs[0]]
    architecture = {{"arch_kwargs": {{"strides": strides}}}}
    backbone = build_backbone(network, architecture=architecture, settings=settings, **size)
    method = build_method(name, METHODS[name].Config(), MethodSetup(backbone=backbone, patch=(16, 16, 16)))
    crops = 2 * method.sample_views.count
    batch = {{"image": torch.randn(crops, 1, 16, 16, 16), "index": list(range(crops))}}
    batch |= {{"row": [2 * number // crops for number in range(crops)], "affine": torch.eye(3, 4).repeat(crops, 1, 1)}}
    method(batch, method.generator_for(1)).loss.backward()
print([name for name in {ABSENT!r} if sys.modules[name] is not None])
"""
    assert run_command(("python", "-c", program), cwd=tmp_path).stdout.splitlines()[-1] == "[]"
