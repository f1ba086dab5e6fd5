"""A study on disk: begun, continued, refused; what its runs need to know and where they leave their results."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ssl_pretrain.data.locate import find_dataset
from ssl_pretrain.files import check_case_names, check_name, read_json, validated, write_json
from ssl_pretrain.study.arms import Arm, add_arms, check_weights, digest, groups_of, is_gone, local_file, turns_of
from ssl_pretrain.study.design import MAY_CHANGE, Size, StudyRun, StudySettings, disagreements, runs_of, sizes_of
from ssl_pretrain.study.leaks import refuse_supervised, seen_cases
from ssl_pretrain.study.machine import PREPROCESSED, machine
from ssl_pretrain.study.mirror import add_splits, is_broken, make_mirror, read_folds
from ssl_pretrain.study.stored import FailedRun, RunResult, StoredStudy

log = logging.getLogger("ssl_pretrain")

NOT_OURS = "It is not what this command writes. Choose another folder with -o."
AGAIN = "Remove this file, and --c runs this run again."
FILE, RUNS, RESULT, FAILURE, LOG = "study.json", "runs", "result.json", "failure.json", "log.txt"
SOURCE_SPLITS = "splits_of_the_dataset.json"


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        folder: everything of the study is below it.
        settings: of the study.
        dataset: name.
        labels: key in nnU-Net's ``summary.json`` -> name.
        arms: what is compared.
        sizes: amounts of training data.
        folds: fold -> ``train`` and ``validation`` -> cases.
        runs: all of them, in order.
        numbers: subset of a run -> fold of the study's own ``splits_final.json``.
        begun: versions, machine and time of the beginning.
        warnings: sentences that belong to every table of the study.
        trust_plans: whether plans may name code of any package; said anew on every command line, and not kept.
    """

    folder: Path
    settings: StudySettings
    dataset: str
    labels: dict[str, str]
    arms: list[Arm]
    sizes: list[Size]
    folds: dict[int, dict[str, list[str]]]
    runs: list[StudyRun]
    numbers: dict[tuple[int, int, int], int]
    begun: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    trust_plans: bool = False

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def run(self, name: str) -> StudyRun:
        """A run by its name.

        Raises:
            ValueError: no such run.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise ValueError(f"{self.folder} has no run {name!r}. There are {len(self.runs)}, such as {self.runs[0].name}.")

    def run_folder(self, run: StudyRun) -> Path:
        """Where a run leaves everything."""
        return self.folder / RUNS / run.name

    def is_done(self, run: StudyRun) -> bool:
        """Whether a run has its result."""
        return (self.run_folder(run) / RESULT).is_file()

    @property
    def primary(self) -> set[tuple[str, str]]:
        """Names in tables of arms, with labels of amounts of data, of the comparisons that were named before the runs.

        Raises:
            ValueError: one names no arm or no amount; says what there is.
        """
        compared = [name for name, arms in groups_of(self.arms).items() if arms[0].baseline is not None]
        found = set()
        for text in self.settings.primary:
            arm, _, amount = text.rpartition("@")
            labels = [size.label for size in self.sizes if size.is_called(amount)]
            if arm not in compared or not labels:
                raise ValueError(
                    f"-primary {text} is none of the comparisons of this study. Arms: {', '.join(compared)}; training "
                    f"cases: {', '.join(size.label.split()[0] for size in self.sizes)}."
                )
            found.add((arm, labels[0]))
        return found

    @property
    def pending(self) -> list[StudyRun]:
        """Runs without a result."""
        return [run for run in self.runs if not self.is_done(run)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what :meth:`from_dict` needs."""
        return {
            "format": 1,
            **self.begun,
            "settings": self.settings.to_dict(),
            "dataset": {
                "name": self.dataset,
                "labels": self.labels,
                "folds": {str(fold): cases for fold, cases in self.folds.items()},
            },
            "arms": [arm.to_dict() for arm in self.arms],
            "sizes": [
                {"label": size.label, "cases": {str(f): n for f, n in size.counts.items()}} for size in self.sizes
            ],
            "subsets": [[*subset, number] for subset, number in self.numbers.items()],
            "warnings": self.warnings,
        }

    @classmethod
    def read(cls, folder: Path) -> Study:
        """The study in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no study: there is no {FILE}. Begin one with -d, -c and -w.")
        stored = read_json(file, StoredStudy, remedy=NOT_OURS)
        # nnU-Net makes paths of them.
        check_name(stored.dataset.name, "dataset", file)
        check_name(stored.settings.configuration, "configuration", file)
        for arm in stored.arms:
            check_name(arm.plans, f"plans of arm {arm.name}", file)
        for fold in stored.dataset.folds.values():
            check_case_names((*fold.train, *fold.validation), file)
        return cls(
            folder=folder,
            settings=stored.settings,
            dataset=stored.dataset.name,
            labels=stored.dataset.labels,
            arms=stored.arms,
            sizes=stored.amounts,
            folds={number: fold.model_dump() for number, fold in stored.dataset.folds.items()},
            runs=runs_of(turns_of(stored.arms), stored.settings, stored.amounts),
            numbers={(f, s, n): number for f, s, n, number in stored.subsets},
            begun=stored.model_dump(include={"begun", "versions", "machine"}),
            warnings=stored.warnings,
        )


def begin(settings: StudySettings, folder: Path, *, trust_plans: bool = False) -> Study:
    """Prepare a new study: arms, subsets, and the dataset as its runs will see it.

    Args:
        settings: of the study.
        folder: everything of the study is below it.
        trust_plans: whether plans may name code of any package.

    Raises:
        FileExistsError: the folder holds a study, or something else.
        FileNotFoundError, ValueError: see :class:`StudySettings`, :func:`~.arms.add_arms` and
            :func:`~.mirror.read_folds`.
    """
    if (folder / FILE).is_file():
        differing = disagreements(Study.read(folder).settings, settings)
        other = f" with other settings ({'; '.join(differing)})" if differing else ""
        remedy = "Choose" if differing else "Continue it with --c, or choose"
        raise FileExistsError(f"{folder} holds a study already{other}. {remedy} another folder with -o.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose a folder with -o.")
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if not present <= {PREPROCESSED, SOURCE_SPLITS}:
        raise FileExistsError(f"{folder} is not empty. Choose another folder with -o, or remove it.")
    source = find_dataset(settings.dataset)
    # A beginning that was stopped has nothing but links and copies.
    shutil.rmtree(folder / PREPROCESSED, ignore_errors=True)
    (folder / SOURCE_SPLITS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    begun = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(settings.device),
    }
    return _prepare(settings, folder, source, begun, trust_plans=trust_plans)


def resume(settings: StudySettings, folder: Path, *, trust_plans: bool = False) -> Study:
    """Go on with a study, with more arms, amounts, folds or seeds if they are asked for.

    Args:
        settings: of the study, with what is asked for.
        folder: of the study.
        trust_plans: whether plans may name code of any package.

    Raises:
        FileNotFoundError: there is no study in the folder, or a file of weights is gone.
        ValueError: other settings, with the list of what differs; or a file of weights that has changed.
    """
    stored = replace(Study.read(folder), trust_plans=trust_plans)
    study = follow_weights(stored, settings.weights)
    if differing := disagreements(study.settings, settings):
        raise ValueError(
            f"{folder} holds a study with other settings: {'; '.join(differing)}. Leave these flags out to go on with "
            "it (it may get more weights, seeds, folds, fractions and cases, beside those it has), or choose another "
            "folder with -o."
        )
    if settings == replace(study.settings, **{name: getattr(settings, name) for name in MAY_CHANGE}):
        needed = {run.arm for run in study.pending}
        check_weights(arm for arm in study.arms if arm.name in needed)
        if needed and is_broken(folder / PREPROCESSED):
            _mirror(find_dataset(study.dataset), folder, settings.configuration, study.arms)
        if settings != stored.settings:
            study = replace(study, settings=settings)
            write_json(study.to_dict(), folder / FILE)
        return study
    source = find_dataset(study.dataset)
    return _prepare(settings, folder, source, study.begun, study.arms, study.folds, trust_plans=trust_plans)


def follow_weights(study: Study, wanted: Iterable[str]) -> Study:
    """The study with the new places of files of weights that have moved; their content tells which they are.

    Args:
        study: as it is on disk.
        wanted: files that are named now.

    Raises:
        FileNotFoundError: one of these is not there.
    """
    gone = {arm.sha256: arm.weights for arm in study.arms if arm.weights and is_gone(arm.weights)}
    news = [source for source in wanted if source not in study.settings.weights] if gone else []
    digests = {source: digest(local_file(source)) for source in news}
    places = {gone[sha256]: source for source, sha256 in digests.items() if sha256 in gone}
    moved = tuple(places.get(source, source) for source in study.settings.weights)
    arms = [replace(a, weights=a.weights and places.get(a.weights, a.weights)) for a in study.arms]
    return replace(study, settings=replace(study.settings, weights=moved), arms=arms)


def _prepare(
    settings: StudySettings,
    folder: Path,
    source: Path,
    begun: Mapping[str, Any],
    known: Sequence[Arm] = (),
    known_folds: Mapping[int, dict[str, list[str]]] | None = None,
    *,
    trust_plans: bool,
) -> Study:
    """Everything on disk that runs need; arms and folds that a study has already stay as they are."""
    arms = add_arms(settings, source, known, trust_plans=trust_plans)
    folds = dict(known_folds or {})
    new = [fold for fold in settings.folds if fold not in folds]
    folds |= read_folds(source, settings.configuration, arms[0].plans, new, folder / SOURCE_SPLITS)
    folds = {fold: folds[fold] for fold in settings.folds}
    sizes = sizes_of(settings, {fold: len(cases["train"]) for fold, cases in folds.items()})
    refuse_supervised(arms, source.name, folds, folder / SOURCE_SPLITS)
    runs = runs_of(turns_of(arms), settings, sizes)
    if moved := [run.name for run in runs_of(turns_of(known), settings, sizes) if run not in runs]:
        raise ValueError(
            "With --spread each seed has one pretraining of an arm. One more would take seeds from the others, such "
            f"as {moved[0]}. Begin another study (-o) with all of them."
        )
    mirror = _mirror(source, folder, settings.configuration, arms)
    study = Study(
        folder=folder,
        settings=settings,
        dataset=source.name,
        labels=label_names(read_json(source / "dataset.json")["labels"]),
        arms=arms,
        sizes=sizes,
        folds=folds,
        runs=runs,
        numbers=add_splits(mirror, runs, folds),
        begun=dict(begun),
        warnings=seen_cases(arms, source.name, folds),
        trust_plans=trust_plans,
    )
    _ = study.primary  # refuses what is none
    write_json(study.to_dict(), folder / FILE)
    for warning in study.warnings:
        log.warning(warning)
    return study


def _mirror(source: Path, folder: Path, configuration: str, arms: Sequence[Arm]) -> Path:
    return make_mirror(source, folder / PREPROCESSED, configuration, sorted({arm.plans for arm in arms}))


def label_names(labels: Mapping[str, Any]) -> dict[str, str]:
    """Key of a label, or of a region, in nnU-Net's ``summary.json`` -> its name; without background and ``ignore``."""
    found = {}
    for name, value in labels.items():
        if name == "ignore" or value in (0, "0"):
            continue
        found[str(value) if isinstance(value, int) else str(tuple(value))] = name
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run."""
    from ssl_pretrain.transfer.checkpoint import installed_versions

    return installed_versions()


def read_result(file: Path) -> dict[str, Any] | None:
    """A run's result or failure; None where there is none.

    Raises:
        ValueError: the file is damaged; names it.
    """
    if not file.is_file():
        return None
    content = read_json(file, remedy=AGAIN)
    validated(content, RunResult if file.name == RESULT else FailedRun, file, remedy=AGAIN)
    return content
