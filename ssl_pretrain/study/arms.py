"""What a study compares: files of pretrained weights, and for each kind of network the same from scratch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssl_pretrain.data.locate import locate
from ssl_pretrain.files import check_name
from ssl_pretrain.finetuning.names import parse_trainer_name
from ssl_pretrain.finetuning.schedules import course_of
from ssl_pretrain.networks.registry import rows_of, trainer_of
from ssl_pretrain.study.design import StudySettings
from ssl_pretrain.study.names import name_arms, unique

log = logging.getLogger("ssl_pretrain")

SCRATCH = "scratch"
PLANS = "nnUNetPlans"
STOCK_TRAINER = "nnUNetTrainer"

NOT_THE_RECIPE = frozenset({"seed", "output_folder", "num_workers", "picture_every"})
"""Settings in which two pretrainings of one arm may differ."""

LITTLE = 0.3
"""Share of a network's parameters; a file that gives less is worth a warning."""


@dataclass(frozen=True)
class Arm:
    """One way to begin a fine-tuning.

    Attributes:
        name: unique in the study.
        plans: name of the plans.
        trainer: name of the trainer.
        weights: file or ``hf://`` address; None from scratch.
        sha256: of the file.
        method: that made it, where the file says so.
        baseline: name of the arm from scratch that it is compared with; None for that arm itself.
        loaded: share of the network's parameters that the file gives.
        group: name that several pretrainings have together which differ in their seeds alone; None for a file that is
            an arm by itself.
        recipe: digest of all that the file says of its making but the seed; None where it does not say enough.
        pretraining_seed: of the run that made it.
    """

    name: str
    plans: str
    trainer: str
    weights: str | None = None
    sha256: str | None = None
    method: str | None = None
    baseline: str | None = None
    loaded: float | None = None
    group: str | None = None
    recipe: str | None = None
    pretraining_seed: int | None = None

    @property
    def shown(self) -> str:
        """What it is called in tables, together with the other pretrainings of its group."""
        return self.group or self.name

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def groups_of(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """What is compared, by its name in tables: arms from scratch, and for each way of pretraining all its files."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.shown, []).append(arm)
    return groups


def turns_of(arms: Iterable[Arm]) -> dict[str, tuple[int, int]]:
    """Place of each arm among the pretrainings of its group, and how many these are."""
    groups = groups_of(arms).values()
    return {arm.name: (place, len(group)) for group in groups for place, arm in enumerate(group)}


def local_file(source: str) -> Path:
    """The file behind what a user named; one on the Hugging Face Hub is downloaded unless it is in the cache.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an address that is none.
    """
    from ssl_pretrain.transfer.sources.hub import fetch

    file = fetch(source) if _is_on_hub(source) else Path(source)
    if not file.is_file():
        raise FileNotFoundError(f"The file of pretrained weights {file} does not exist (-w). Check the path.")
    return file


def is_gone(source: str) -> bool:
    """Whether a file that a study began with is no longer there; one on the Hub always is."""
    return not _is_on_hub(source) and not Path(source).is_file()


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def add_arms(
    settings: StudySettings, folder: Path, known: Sequence[Arm] = (), *, trust_plans: bool = False
) -> list[Arm]:
    """The arms of a study: those it has, then those of files that are new, each with what it is compared with.

    Args:
        settings: of the study.
        folder: of the preprocessed dataset.
        known: arms the study has already.
        trust_plans: whether plans may name code of any package.

    Raises:
        FileNotFoundError, ValueError: a file, plans or a trainer that is not there, weights that do not fit.
    """
    arms = list(known)
    files = {source: (digest(local_file(source)), pretraining_of(source)) for source in settings.weights}
    names = _names(files, known)
    for source, (sha256, about) in files.items():
        if same := [arm for arm in arms if arm.sha256 == sha256]:
            if same[0].weights != source:
                log.warning("%s has the content of %s: one arm, %s, for both.", source, same[0].weights, same[0].name)
            continue
        if changed := [arm for arm in arms if arm.weights == source]:
            raise ValueError(
                f"{source} is not the file that arm {changed[0].name} of this study began with: it has changed since. "
                "Bring the old file back, or choose another folder with -o."
            )
        plans, trainer = _plans_for(source, about, settings, folder), _trainer_for(about, settings)
        scratch = _scratch_arm(plans, settings.scratch_trainer or scratch_trainer(trainer), arms)
        for wanted in (trainer, scratch.trainer):
            check_schedule(wanted, settings.epochs)
        name, group = names[source]
        arm = Arm(
            name, plans, trainer, source, sha256, about.get("method"), scratch.name, None, group, *recipe_of(about)
        )
        arm = replace(arm, loaded=share_loaded(arm, folder, settings.configuration, trust_plans))
        if scratch not in arms:
            arms.append(scratch)
        arms.append(arm)
    return arms


def check_weights(arms: Iterable[Arm]) -> None:
    """Refuse to go on with files that are gone or have changed.

    Raises:
        FileNotFoundError, ValueError: names the file and the arm.
    """
    for arm in arms:
        if arm.weights is not None and digest(local_file(arm.weights)) != arm.sha256:
            raise ValueError(
                f"{arm.weights} is not the file that arm {arm.name} of this study began with: it has changed since. "
                "Bring the old file back, or choose another folder with -o."
            )


def scratch_trainer(trainer: str) -> str:
    """The trainer with the same schedule and the learning rate for training from scratch; any other name stays.

    Raises:
        ValueError: begins like a trainer of ours and is none; shows the grammar.
    """
    parsed = parse_trainer_name(trainer)
    return str(replace(parsed, pretrained=False)) if parsed is not None and parsed.pretrained else trainer


def check_schedule(trainer: str, epochs: int | None) -> None:
    """Refuse a schedule of ours that the study's epochs are too few for.

    Raises:
        ValueError: says what does not fit.
    """
    parsed = parse_trainer_name(trainer)
    if parsed is not None:
        course_of(parsed.schedule_or_default, epochs or parsed.epochs_or_default)


def share_loaded(arm: Arm, folder: Path, configuration: str, trust_plans: bool = False) -> float:
    """Load an arm's file into the network that nnU-Net will build; returns the share of parameters that it gives.

    Raises:
        FileNotFoundError: the configuration is not preprocessed.
        ValueError: no such configuration, an unknown trainer or one that cannot build the network of the plans, weights
            that do not fit.
    """
    from ssl_pretrain.transfer.adapt import FineTuningTarget, build_target
    from ssl_pretrain.transfer.images import images_of_plans
    from ssl_pretrain.transfer.load import load_pretrained

    assert arm.weights is not None
    _, plan = locate(folder.name, configuration, arm.plans)  # says what is not planned or preprocessed
    images = images_of_plans(plan.plans, configuration)
    if images.image_channels is not None:
        raise ValueError(
            f"-c {configuration} takes the segmentation of an earlier stage as input, which each run of a study would "
            "need from a network that was trained on the same cases. Choose the configuration of one stage, such as "
            "3d_fullres or 3d_lowres."
        )
    built = build_target(FineTuningTarget(plan.plans, plan.dataset, configuration, arm.trainer, trust_plans))
    with _without_tables():
        fraction = float(load_pretrained(built.network, arm.weights, images=images).fraction)
    if fraction < LITTLE:
        log.warning(
            "%s gives only %.0f %% of the parameters of the network of %s. Do the plans (-p) suit the weights?",
            arm.weights,
            100 * fraction,
            arm.plans,
        )
    return fraction


@contextmanager
def _without_tables() -> Iterator[None]:
    """What is loaded is shown in the log of each run; here only the share counts."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def pretraining_of(source: str) -> Mapping[str, Any]:
    """What a file of ours says about its making; nothing for files of others."""
    from ssl_pretrain.transfer.adapt import read_content

    found: Mapping[str, Any] = read_content(local_file(source)).get("pretraining", {})
    return found


def _plans_for(source: str, about: Mapping[str, Any], settings: StudySettings, folder: Path) -> str:
    network = str(about.get("network", "plans"))
    plans = check_name(settings.plans or _planned(about, network), "plans", None if settings.plans else Path(source))
    if ":" in network and settings.plans is None:
        raise ValueError(
            f"{source} is of {network}, a network that no plans can name. Give plans (-p) and a trainer (-tr) that "
            "build it, or a file adapted with nnUNetv2_adapt_weights."
        )
    if not (folder / f"{plans}.json").is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.json") if "plans" in p.stem.lower())) or "none"
        raise FileNotFoundError(
            f"Plans {plans}, which {'-p asks for' if settings.plans else f'{source} was made for'}, do not "
            f"exist in {folder}. There: {there}. Choose with -p, or bring the plans here with "
            "nnUNetv2_move_plans_between_datasets."
        )
    return plans


def _planned(about: Mapping[str, Any], network: str) -> str:
    """Name of the plans of the network in a file."""
    if "adaptation" in about:
        # What the run was configured with is what the weights were adapted from.
        return str((about.get("plans") or {}).get("plans_name") or PLANS)
    config = about.get("config") or {}
    sizes = "".join(f"_{name}{value}" for name, value in sorted((config.get("network_settings") or {}).items()))
    base = str(config.get("plans") or PLANS)
    return base if network == "plans" or ":" in network else f"{base}_{network}{sizes}"


def _trainer_for(about: Mapping[str, Any], settings: StudySettings) -> str:
    network = str(about.get("network", "plans"))
    if settings.trainer is not None:
        return settings.trainer
    if "adaptation" in about:
        return str(about["adaptation"].get("trainer") or STOCK_TRAINER)
    planned = ((about.get("plans") or {}).get("configurations") or {}).get(about.get("configuration")) or {}
    path = str((planned.get("architecture") or {}).get("network_class_name") or "")
    return trainer_of(network, path if rows_of(network, path) else "", planned=True) or STOCK_TRAINER


def _scratch_arm(plans: str, trainer: str, arms: Sequence[Arm]) -> Arm:
    """The arm from scratch with these plans and this trainer; a new one unless it is there."""
    for arm in arms:
        if arm.weights is None and (arm.plans, arm.trainer) == (plans, trainer):
            return arm
    first = not any(arm.weights is None for arm in arms)
    return Arm(SCRATCH if first else unique(f"{SCRATCH} {plans}", [arm.name for arm in arms]), plans, trainer)


def recipe_of(about: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Digest of what a file says of its making but for the seed, and the seed; None for files that do not say both."""
    config, seed = about.get("config"), about.get("seed")
    if not config or not isinstance(seed, int):
        return None, None
    settings = {name: value for name, value in config.items() if name not in NOT_THE_RECIPE}
    adaptation = {name: value for name, value in (about.get("adaptation") or {}).items() if name != "file"}
    made = [*(about.get(name) for name in ("method", "network", "configuration", "epoch")), settings, adaptation]
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:16], seed


def _names(
    files: Mapping[str, tuple[str, Mapping[str, Any]]], known: Sequence[Arm]
) -> dict[str, tuple[str, str | None]]:
    """Name, and group if it has one, of the arms of files whose content no arm has; equal files have one.

    Files of one recipe with different seeds are a group, which is called by its method unless there are others of that.
    """
    seen = {arm.sha256 for arm in known}
    taken = [SCRATCH, *(arm.name for arm in known), *(arm.shown for arm in known)]
    methods: dict[str, str | None] = {}
    teams: list[list[str]] = []
    joining: dict[str, str] = {}
    made = {source: recipe_of(about) for source, (_, about) in files.items()}
    for source, (sha256, about) in files.items():
        if sha256 in seen:
            continue
        seen.add(sha256)
        methods[source] = about.get("method")
        recipe, seed = made[source]
        old = [arm for arm in known if recipe and arm.recipe == recipe]
        team = next((team for team in teams if recipe and made[team[0]][0] == recipe), None)
        if old and seed not in [arm.pretraining_seed for arm in old]:
            joining[source] = old[0].shown
        elif team is not None and seed not in [made[other][1] for other in team]:
            team.append(source)
        else:
            teams.append([source])
    named = {arm.weights: arm.method for arm in known if arm.weights is not None}
    heads = name_arms({team[0]: methods[team[0]] for team in teams}, named, taken)
    found: dict[str, tuple[str, str | None]] = {}
    for head, *others in teams:
        method = methods[head]
        if not others:
            found[head] = heads[head], None
            continue
        alone = [methods[team[0]] for team in teams].count(method) == 1 and method not in named.values()
        group = unique(str(method) if alone else heads[head], taken)
        names = name_arms(dict.fromkeys((head, *others), group), {}, [*taken, group, *heads.values()])
        found.update({source: (name, group) for source, name in names.items()})
    for source, group in joining.items():
        members = {arm.weights: group for arm in known if arm.shown == group and arm.weights is not None}
        names = name_arms({source: group}, members, [*taken, *(name for name, _ in found.values())])
        found[source] = names[source], group
    return found


def _is_on_hub(source: str) -> bool:
    from ssl_pretrain.transfer.sources.hub import is_reference

    return is_reference(source)
