"""A study on disk: begun, continued, refused; what its runs need to know and where they leave their results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ssl_pretrain.data.locate import dataset_number, find_dataset, read_json
from ssl_pretrain.files import write_json
from ssl_pretrain.study.arms import Arm, add_arms, check_weights, saw_cases
from ssl_pretrain.study.design import Run, Size, StudySettings, disagreements, runs_of, sizes_of
from ssl_pretrain.study.machine import PREPROCESSED, machine
from ssl_pretrain.study.mirror import add_splits, make_mirror, read_folds

log = logging.getLogger("ssl_pretrain")

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
    """

    folder: Path
    settings: StudySettings
    dataset: str
    labels: dict[str, str]
    arms: list[Arm]
    sizes: list[Size]
    folds: dict[int, dict[str, list[str]]]
    runs: list[Run]
    numbers: dict[tuple[int, int, int], int]
    begun: dict[str, Any]

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def run(self, name: str) -> Run:
        """A run by its name.

        Raises:
            ValueError: no such run.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise ValueError(f"{self.folder} has no run {name!r}. There are {len(self.runs)}, such as {self.runs[0].name}.")

    def run_folder(self, run: Run) -> Path:
        """Where a run leaves everything."""
        return self.folder / RUNS / run.name

    def is_done(self, run: Run) -> bool:
        """Whether a run has its result."""
        return (self.run_folder(run) / RESULT).is_file()

    @property
    def pending(self) -> list[Run]:
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
        content = read_json(file)
        settings = StudySettings.from_dict(content["settings"])
        arms = [Arm(**entry) for entry in content["arms"]]
        sizes = [Size(s["label"], {int(f): n for f, n in s["cases"].items()}) for s in content["sizes"]]
        return cls(
            folder=folder,
            settings=settings,
            dataset=content["dataset"]["name"],
            labels=content["dataset"]["labels"],
            arms=arms,
            sizes=sizes,
            folds={int(fold): cases for fold, cases in content["dataset"]["folds"].items()},
            runs=runs_of([arm.name for arm in arms], settings, sizes),
            numbers={(f, s, n): number for f, s, n, number in content["subsets"]},
            begun={name: content[name] for name in ("begun", "versions", "machine")},
        )


def begin(settings: StudySettings, folder: Path) -> Study:
    """Prepare a new study: arms, subsets, and the dataset as its runs will see it.

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
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Choose another folder with -o, or remove it.")
    source = find_dataset(settings.dataset)
    folder.mkdir(parents=True, exist_ok=True)
    begun = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(settings.device),
    }
    return _prepare(settings, folder, source, [], begun)


def resume(settings: StudySettings, folder: Path) -> Study:
    """Go on with a study, with more arms, amounts, folds or seeds if they are asked for.

    Raises:
        FileNotFoundError: there is no study in the folder, or a file of weights is gone.
        ValueError: other settings, with the list of what differs; or a file of weights that has changed.
    """
    study = Study.read(folder)
    if differing := disagreements(study.settings, settings):
        raise ValueError(
            f"{folder} holds a study with other settings: {'; '.join(differing)}. Leave these flags out to go on with "
            "it (it may get more weights, seeds, folds, fractions and cases, beside those it has), or choose another "
            "folder with -o."
        )
    if settings == study.settings:
        needed = {run.arm for run in study.pending}
        check_weights(arm for arm in study.arms if arm.name in needed)
        return study
    return _prepare(settings, folder, find_dataset(study.dataset), study.arms, study.begun)


def _prepare(settings: StudySettings, folder: Path, source: Path, known: list[Arm], begun: Mapping[str, Any]) -> Study:
    arms = add_arms(settings, source, known)
    splits = folder / SOURCE_SPLITS
    try:
        folds = read_folds(source, settings.configuration, arms[0].plans, settings.folds, splits)
        sizes = sizes_of(settings, {fold: len(cases["train"]) for fold, cases in folds.items()})
    except (ValueError, OSError):
        if not known:  # nothing has begun: the folder is free for the corrected command
            splits.unlink(missing_ok=True)
        raise
    runs = runs_of([arm.name for arm in arms], settings, sizes)
    plans = sorted({arm.plans for arm in arms})
    mirror = make_mirror(source, folder / PREPROCESSED, settings.configuration, plans)
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
    )
    write_json(study.to_dict(), folder / FILE)
    warn_of_seen_cases(study)
    return study


def warn_of_seen_cases(study: Study) -> None:
    """Say which weights were pretrained on images of validation cases: allowed, but another question is answered."""
    for arm in study.arms:
        for fold, cases in study.folds.items():
            seen = saw_cases(arm, study.dataset, dataset_number(study.dataset), fold, cases["validation"])
            if seen:
                log.warning(
                    "%s was pretrained on images of %d of the %d validation cases of fold %d (e.g. %s). No labels were "
                    "seen, but the comparison is transductive: say so, or pretrain on fold %d.",
                    arm.name,
                    len(seen),
                    len(cases["validation"]),
                    fold,
                    seen[0],
                    fold,
                )


def label_names(labels: Mapping[str, Any]) -> dict[str, str]:
    """Key of a label, or of a region, in nnU-Net's ``summary.json`` -> its name; without background and ``ignore``."""
    found = {}
    for name, value in labels.items():
        if name == "ignore" or value == 0:
            continue
        found[str(value) if isinstance(value, int) else str(tuple(value))] = name
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run."""
    from ssl_pretrain.transfer.checkpoint import installed_versions

    return installed_versions()


def read_result(file: Path) -> dict[str, Any] | None:
    """A run's result or failure; None where there is none."""
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
