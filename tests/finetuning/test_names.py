"""The grammar of the trainers' names."""

import itertools
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from ssl_pretrain.finetuning.names import (
    FAMILIES,
    OPTIMIZERS,
    PATTERN,
    SCHEDULES,
    SHORT,
    OptimizerName,
    TrainerName,
    grammar,
    parse_trainer_name,
)
from ssl_pretrain.finetuning.schedules import KINDS, Schedule, course_of
from ssl_pretrain.networks.registry import NETWORKS, PLANNED, trainer_of

WRITTEN = {
    None: None,
    "default": Schedule("default"),
    "warmup": Schedule("warmup"),
    "sawtooth": Schedule("sawtooth"),
    "frozen1": Schedule("frozen", 1),
    "frozen20": Schedule("frozen", 20),
    "llrd0.75": Schedule("llrd", 0.75),
    "llrd0.9": Schedule("llrd", 0.9),
    "llrd0.000001": Schedule("llrd", 0.000001),
}
OPTIMIZERS_WRITTEN = {
    None: None,
    "sgd0.01": OptimizerName("sgd", 0.01),
    "adamw0.003": OptimizerName("adamw", 0.003),
    "adamw0.00000001": OptimizerName("adamw", 1e-8),
}
PAGE = REPOSITORY / "documentation" / "how-to" / "schedules.md"


def every_name():
    for family, known in FAMILIES.items():
        sizes = known.sizes if known.sized else (None, *known.sizes)
        kinds = ("ft", "scratch")
        choices = itertools.product(sizes, kinds, (None, 20, 150), WRITTEN, OPTIMIZERS_WRITTEN)
        for size, kind, epochs, schedule, optimizer in choices:
            parts = (f"{family}Trainer", size, kind, f"{epochs}ep" if epochs else None, schedule, optimizer)
            name = "_".join(part for part in parts if part is not None)
            meant = (WRITTEN[schedule], OPTIMIZERS_WRITTEN[optimizer])
            yield name, TrainerName(family, kind == "ft", size, epochs, *meant)


def test_every_valid_combination_is_read_and_written():
    names = dict(every_name())
    assert len(names) == (1 + 4 + 5 + 1 + 1) * 2 * 3 * len(WRITTEN) * len(OPTIMIZERS_WRITTEN)
    for name, setting in names.items():
        assert parse_trainer_name(name) == setting
        assert str(setting) == name


@pytest.mark.parametrize("short", SHORT)
def test_the_names_of_older_checkpoints_mean_what_they_meant(short):
    setting = parse_trainer_name(short)
    assert str(setting) == SHORT[short]
    assert setting.epochs_or_default == 1000
    assert setting.pretrained == short.startswith("UNETR")
    assert setting.schedule_or_default.kind == ("warmup" if short.startswith("UNETR") else "default")


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        *(("ResEncTrainer_ft", "warmup"), ("PrimusTrainer_S_scratch", "warmup"), ("UNETRTrainer_ft", "warmup")),
        *(("STUNetTrainer_huge_ft", "default"), ("STUNetTrainer_huge_ft_50ep_warmup", "warmup")),
    ],
)
def test_a_name_without_schedule_or_epochs_means_the_published_ones(name, schedule):
    setting = parse_trainer_name(name)
    assert setting.schedule_or_default.kind == schedule
    assert setting.epochs_or_default == (50 if "50ep" in name else 1000)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainer_demo", "ResEnc", "ResEncTrainerX_ft", "MyResEncTrainer_ft", "__path__", ""]
)
def test_names_of_others_are_left_alone(name):
    assert parse_trainer_name(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ResEncTrainer", "it ends before ft or scratch"),
        ("ResEncTrainer_150ep", "'150ep' stands where ft or scratch belongs"),
        ("ResEncTrainer_L_ft", "'L' stands where ft or scratch belongs"),
        ("PrimusTrainer_X_ft", "'X' stands where ft or scratch belongs"),
        ("STUNetTrainer_ft", "'ft' stands where a size (small|base|large|huge) belongs"),
        ("STUNetTrainer_small_150ep", "'150ep' stands where ft or scratch belongs"),
        ("ResEncTrainer_ft_15", "'15' is unknown, or not in its place"),
        ("ResEncTrainer_ft_0ep", "'0ep' is unknown, or not in its place"),
        ("ResEncTrainer_ft_010ep", "'010ep' is unknown, or not in its place"),
        ("ResEncTrainer_ft_sawtoth", "'sawtoth' is unknown, or not in its place"),
        ("ResEncTrainer_ft_sawtooth_150ep", "'150ep' is unknown, or not in its place"),
        ("ResEncTrainer_ft_warmup_llrd0.75", "'llrd0.75' is unknown, or not in its place"),
        ("ResEncTrainer_ft_", "'' is unknown, or not in its place"),
        ("ResEncTrainer_ft_frozen", "'frozen' does not say for how many epochs, such as frozen20"),
        ("ResEncTrainer_ft_frozen0", "'frozen0' does not say for how many epochs"),
        (f"ResEncTrainer_ft_frozen{'9' * 400}", "does not say for how many epochs"),
        (f"ResEncTrainer_ft_{'9' * 5000}ep", "is unknown, or not in its place"),
        ("ResEncTrainer_ft_frozen020", "'frozen020' does not say for how many epochs"),
        ("ResEncTrainer_ft_llrd", "'llrd' does not say by which factor between 0 and 1, such as llrd0.75"),
        ("ResEncTrainer_ft_llrd1.5", "'llrd1.5' does not say by which factor"),
        ("ResEncTrainer_ft_llrd0.750", "'llrd0.750' does not say by which factor"),
        ("ResEncTrainer_ft_adamw", "'adamw' does not say with which learning rate between 0 and 1, such as adamw0.003"),
        ("ResEncTrainer_ft_sgd1e-3", "'sgd1e-3' does not say with which learning rate"),
        ("ResEncTrainer_ft_adamw0.0030", "'adamw0.0030' does not say with which learning rate"),
        ("ResEncTrainer_ft_adamw0.003_warmup", "'warmup' is unknown, or not in its place"),
        ("ResEncTrainer_ft_10ep_frozen20", "freezes the encoder for 20 epochs, and the run has 10"),
        ("ResEncTrainer_ft_3ep_sawtooth", "needs at least 4 epochs, but the run has 3"),
    ],
)
def test_an_unknown_part_is_refused_with_the_grammar(name, reason):
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        parse_trainer_name(name)
    message = str(caught.value)
    assert message.startswith(f"There is no trainer {name}: ")
    assert grammar() in message
    assert "\n" not in message
    assert ".." not in message


def test_the_grammar_names_everything():
    line = grammar()
    assert PATTERN in line
    assert all(part in line for part in (*FAMILIES, *SCHEDULES, *OPTIMIZERS))
    assert all("|".join(known.sizes) in line for known in FAMILIES.values())
    assert re.findall(r"^[a-z]+", " ".join(SCHEDULES)) == ["default"]
    assert [re.match(r"[a-z]+", schedule)[0] for schedule in SCHEDULES] == list(KINDS)


def test_the_page_has_the_grammar_and_a_row_for_every_network_and_schedule():
    text = PAGE.read_text(encoding="utf-8")
    assert PATTERN in text
    for family, known in FAMILIES.items():
        sizes = ", ".join(f"`{size}`" for size in known.sizes) or "none"
        assert re.search(
            rf"^\| `{family}` \| {re.escape(known.network)} \| {sizes}[^|]*\|.*\| `{known.schedule.kind}` \|$",
            text,
            re.M,
        )
    for schedule, meaning in SCHEDULES.items():
        assert f"| `{schedule}` | {meaning} |" in text
    assert all(f"`{optimizer}<rate>`" in text for optimizer in OPTIMIZERS)


def test_the_pages_lengths_are_those_that_are_run():
    rows = re.findall(r"^\| (\d+) \|((?: \d+ \|){4})$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for epochs, cells in rows:
        warmup, sawtooth = (course_of(Schedule(kind), int(epochs)).teeth for kind in ("warmup", "sawtooth"))
        lengths = [tooth.end - tooth.start for tooth in (warmup[0], *sawtooth[:3])]
        assert [int(cell) for cell in cells.replace("|", " ").split()] == lengths


@pytest.mark.parametrize("page", sorted((REPOSITORY / "documentation").rglob("*.md")), ids=lambda page: page.stem)
def test_the_pages_name_only_trainers_that_there_are(page: Path):
    # A name that ends in _ is the beginning of one; a class that a page defines is not ours.
    found = re.findall(rf"(?<![\w/])(?:{'|'.join(FAMILIES)})Trainer_[\w.]*\w\b(?!_)", page.read_text(encoding="utf-8"))
    for name in found:
        assert parse_trainer_name(name) is not None


@pytest.mark.parametrize("network", [name for name, row in NETWORKS.items() if row.trainer])
def test_the_trainer_of_a_network_is_one_that_there_is(network):
    row = NETWORKS[network]
    setting = parse_trainer_name(row.trainer)
    assert setting.pretrained
    assert str(setting) == row.trainer == trainer_of(network)
    # nnU-Net builds a U-Net that plans name; a transformer needs ours, also where its path alone is known.
    assert trainer_of(network, planned=True) == (row.trainer if row.kind == "transformer" else "")
    if row.kind == "transformer":
        assert {trainer_of(PLANNED, path) for path in row.paths} == {row.trainer}


def test_a_network_without_a_trainer_of_ours_is_trained_by_nnunets():
    without = [name for name, row in NETWORKS.items() if not row.trainer]
    assert PLANNED in without
    assert {trainer_of(name, path) for name in without for path in ("", *NETWORKS[name].paths)} == {""}


@pytest.mark.parametrize(("name", "path"), [("Unheard", ""), (PLANNED, "package.of.mine.Tokens"), ("a:B", "")])
def test_the_trainer_of_an_unknown_network_is_not_guessed(name, path):
    with pytest.raises(
        ValueError, match=rf"No trainer is known for the network {path or name}\. Known are plans, .*-tr"
    ):
        trainer_of(name, path)
