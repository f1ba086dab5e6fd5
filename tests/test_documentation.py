"""What the documentation says, held against the code: commands, settings, examples, links."""

import importlib
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml

from ssl_pretrain.cli.pretrain import build_parser, parse_settings
from ssl_pretrain.config import PretrainConfig, convert
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.methods import METHODS, Method, MethodSetup, RunLength, build_method
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "documentation").rglob("*.md")])
HOW_TO = ROOT / "documentation" / "how-to"
OWN_ENCODER, PRETRAIN, FINE_TUNE = (
    HOW_TO / f"{name}.md" for name in ("bring-your-own-encoder", "pretrain", "fine-tune")
)
FORMAT = ROOT / "documentation" / "explanation" / "checkpoint-format.md"
PATCH = (16, 16, 16)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The command lines in a page's ``bash`` blocks, split as a shell does."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def settings_table(page: Path) -> dict[str, str]:
    """Setting -> default in the table that follows ``| setting | default |``."""
    table = re.search(r"^\| setting \| default \|.*?\n\n", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert table is not None, f"{name_of(page)} has no table of settings"
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", table[0], re.MULTILINE))


def slugs(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert linked.is_relative_to(ROOT), f"{name_of(page)} links out of the repository: {target}"
        assert not anchor or anchor in slugs(linked), f"{name_of(page)} links to {target}, a heading that is not there"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_pretrain_are_accepted(page, capsys):
    for command in commands(page):
        program, *arguments = command
        explicit = program == "python" and arguments[0].startswith("ssl_pretrain/")
        if not explicit and Path(program).name != "nnUNetv2_pretrain":
            continue
        if explicit:
            assert (ROOT / arguments[0]).is_file()
            arguments = arguments[1:]
        try:
            given = vars(build_parser(explicit=explicit).parse_args(arguments))
        except SystemExit:
            pytest.fail(f"{name_of(page)}: {shlex.join(command)}\n{capsys.readouterr().err}")
        config = PretrainConfig(dataset="4", method=given.get("method", "AnatoMask"))
        config.with_settings(parse_settings(given.get("settings", [])))


def test_every_flag_has_its_row():
    text = PRETRAIN.read_text(encoding="utf-8")
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    rows = set(re.findall(r"^\| `(--?\w+)", text, re.MULTILINE))
    assert rows == flags - {"-h", "--help"}


@pytest.mark.parametrize(
    ("config", "page"),
    [
        *(
            (method.Config(), ROOT / "documentation" / "methods" / f"{name.lower()}.md")
            for name, method in METHODS.items()
        ),
        (CropConfig(), PRETRAIN),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, Path) else value.stem,
)
def test_every_setting_is_documented_with_its_default(config, page):
    table = settings_table(page)
    assert set(table) == {field.name for field in fields(config)}
    for name, kind in config_types(config).items():
        assert convert(name, table[name], kind) == getattr(config, name), f"default of {name} in {name_of(page)}"


@pytest.mark.parametrize("name", METHODS)
def test_the_page_says_which_values_the_published_recipe_takes(name):
    text = (ROOT / "documentation" / "methods" / f"{name.lower()}.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^`-recipe published` (.*?)\.$", text, re.MULTILINE | re.DOTALL)
    pairs = parse_settings(re.findall(r"`(\w+=[^`]+)`", told))
    settings = {
        name: value for part in (METHODS[name].Config(), CropConfig()) for name, value in config_types(part).items()
    }
    assert {key: convert(key, value, settings[key]) for key, value in pairs.items()} == METHODS[name].Config.published


def config_types(config: object) -> dict[str, object]:
    return {name: kind for name, kind in get_type_hints(type(config)).items() if name in vars(config)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the two modules of the page on own encoders, importable and current."""
    example, backbone, _ = blocks(OWN_ENCODER, "python")
    (tmp_path / "my_encoder.py").write_text(example, encoding="utf-8")
    (tmp_path / "my_backbone.py").write_text(backbone, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in ("my_encoder", "my_backbone"):
        sys.modules.pop(module, None)


def method_with(network: str, method: str = "SparK", channels: int = 1) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone(network, architecture={}, input_channels=channels, num_classes=3, patch=PATCH)
    setup = MethodSetup(backbone=backbone, patch=PATCH, length=RunLength(4, 5, 2))
    return build_method(method, METHODS[method].Config(), setup)


@pytest.mark.parametrize("network", ["my_encoder:MyEncoder", "my_backbone:MyBackbone"])
@pytest.mark.parametrize("method", ["SparK", "AnatoMask"])
def test_the_example_encoders_train(own, method, network):
    made = method_with(network, method, channels=2)
    batch = {"image": torch.randn(2, 2, *PATCH), "case": ["a", "b"], "index": list(range(2))}
    loss = made(batch, torch.Generator().manual_seed(0)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in made.backbone.network.parameters())


def test_the_example_encoder_is_what_the_page_says(own):
    assert len(blocks(OWN_ENCODER, "python")[0].splitlines()) < 50
    maps = method_with("my_encoder:MyEncoder").backbone.feature_maps
    assert [m.stride for m in maps] == [(s, s, s) for s in (1, 2, 4, 8)]


@pytest.fixture
def exported(own):
    """``checkpoint_final.pth`` of the example encoder, in the current folder."""
    made = method_with("my_encoder:MyEncoder")
    provenance = Provenance(
        method="SparK",
        network="my_encoder:MyEncoder",
        config={},
        plans={"configurations": {"3d_fullres": {}}},
        configuration="3d_fullres",
        patch=PATCH,
        citations=made.citations,
        epoch=4,
        seed=0,
    )
    content = build_checkpoint(made.backbone, {id(p) for p in made.trained.parameters()}, provenance)
    torch.save(content, own / "checkpoint_final.pth")
    return content


def test_the_snippets_read_a_checkpoint(exported, capsys):
    exec(compile(blocks(OWN_ENCODER, "python")[2], "own encoder", "exec"), {"__name__": "snippet"})
    whole, inside = capsys.readouterr().out.splitlines()
    assert "100.0 % of the network" in whole
    assert "2 adapted, 2 fresh" in inside
    exec(compile(blocks(FORMAT, "python")[0], "format", "exec"), {})
    assert " 0 fresh" in capsys.readouterr().out
    exec(compile(blocks(FINE_TUNE, "python")[0], "fine-tune", "exec"), {})
    encoder = torch.load("encoder.pth", weights_only=True)["network_weights"]
    assert set(encoder) == set(exported["pretraining"]["encoder_keys"])


def test_every_key_of_a_checkpoint_is_documented(exported):
    text = FORMAT.read_text(encoding="utf-8")
    keys = {*exported, *exported["pretraining"], *exported["nnssl_adaptation_plan"]}
    keys |= set(exported["nnssl_adaptation_plan"]["architecture_plans"]) | set(exported["citations"][0])
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_ci_runs_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ('-m pip install -e ".[test]"', "-m pytest -n 2 --dist loadfile"):
        assert f".venv/bin/python {command}\n" in readme
        assert f'"$bin/python" {command}\n' in script.replace(" --quiet", "")
    assert script.rstrip().endswith('"$bin/python" -m pytest -n 2 --dist loadfile')


def test_the_citation_file_has_what_its_format_asks_for():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(content)
    assert content["license"] == "Apache-2.0"
    for reference in content["references"]:
        assert {"type", "title", "authors"} <= set(reference)


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_cites_what_the_method_does(name):
    page = (ROOT / "documentation" / "methods" / f"{name.lower()}.md").read_text(encoding="utf-8")
    for citation in METHODS[name].citations:
        number = re.search(r"arXiv:([0-9.]+[0-9])", citation)
        assert number, f"no arXiv number: {citation}"
        assert number[1] in page


def test_the_readme_says_of_methods_what_they_declare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    tables = importlib.import_module("documentation.tables")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.methods_table() in readme
    assert tables.with_tables(readme) == readme, "run python documentation/tables.py"
    assert all((ROOT / "documentation" / "methods" / f"{name.lower()}.md").is_file() for name in METHODS)
