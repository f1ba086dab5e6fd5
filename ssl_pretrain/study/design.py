"""What a study runs: its settings, its nested subsets of the training cases, and the list of its runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
DEVICES = ("cuda", "cpu", "mps")

MAY_GROW = frozenset({"weights", "folds", "fractions", "cases", "seeds"})
"""Settings of which a continued study may have more: what is done already stays as it is."""

MAY_CHANGE = frozenset({"collapsed_below", "keep_checkpoints"})
"""Settings that a continued study may change: they do not touch what runs compute."""

FLAGS = {
    **{"dataset": "-d", "configuration": "-c", "weights": "-w", "plans": "-p", "trainer": "-tr"},
    **{
        "scratch_trainer": "-scratch_tr",
        "mirroring": "mirroring (--no_mirroring)",
        "keep_checkpoints": "--keep_checkpoints",
        "spread": "--spread",
    },
}
"""What a setting is called on the command line, where that is not ``-<name>``."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings of a study.

    Attributes:
        dataset: number or name.
        configuration: of the plans.
        weights: files (or ``hf://`` addresses) of pretrained weights; each is an arm.
        plans: name of the plans of every arm; None for what each file of weights names.
        trainer: of the pretrained arms; None for what suits the network of each file.
        scratch_trainer: of the arms from scratch; None for the twin of the trainer that has the same schedule.
        folds: of ``splits_final.json``.
        fractions: shares of a fold's training cases, each in (0, 1].
        cases: numbers of training cases.
        seeds: how many; seeds are 0, 1, ...
        spread: whether the pretrainings of a group take turns, one for each seed, instead of all having every seed.
        epochs: of a run; None for the trainer's.
        iters: optimiser steps per epoch; None for the trainer's.
        val_iters: batches of nnU-Net's validation during training, which decides nothing; None for a fifth of
            ``iters``, or the trainer's.
        device: ``cuda``, ``cpu`` or ``mps``.
        mirroring: whether the final validation averages over mirrored images, as nnU-Net does.
        curve: shares of a run's optimiser steps, each in (0, 1], after which the network is validated as well; the
            end is always one of them. Empty for no curve.
        probe: optimiser steps of a linear head on the encoder as the run begins with it; 0 for no probe.
        primary: comparisons that are named before the runs, each ``ARM@CASES``; all others are exploratory.
        collapsed_below: share of the best run's Dice below which a run has collapsed.
        keep_checkpoints: whether nnU-Net's checkpoints of finished runs stay.

    Raises:
        ValueError: a value that is not allowed; names the flag, the value and what is allowed.
    """

    dataset: str
    configuration: str
    weights: tuple[str, ...]
    plans: str | None = None
    trainer: str | None = None
    scratch_trainer: str | None = None
    folds: tuple[int, ...] = (0,)
    fractions: tuple[float, ...] = FRACTIONS
    cases: tuple[int, ...] = ()
    seeds: int = 5
    spread: bool = False
    epochs: int | None = None
    iters: int | None = None
    val_iters: int | None = None
    device: str = "cuda"
    mirroring: bool = True
    curve: tuple[float, ...] = ()
    probe: int = 0
    primary: tuple[str, ...] = ()
    collapsed_below: float = 0.5
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "folds", "fractions", "cases", "primary"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if self.curve:
            object.__setattr__(self, "curve", tuple(sorted({*self.curve, 1.0})))
        if self.dataset.isascii() and self.dataset.isdecimal():
            object.__setattr__(self, "dataset", str(int(self.dataset)))  # 007 is 7
        if not self.weights:
            raise ValueError("A study needs at least one file of pretrained weights (-w FILE).")
        if not self.fractions and not self.cases:
            raise ValueError("A study needs amounts of training data: -fractions 0.1 1.0, or -cases 4 8 20.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("seeds", "epochs", "iters", "val_iters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"-{name} must be at least 1, got {value}.")
        for name, what in (("fractions", "training cases"), ("curve", "optimiser steps")):
            if wrong := [f for f in getattr(self, name) if not 0 < f <= 1]:
                raise ValueError(f"-{name} are shares of the {what} in (0, 1], got {wrong[0]:g}.")
        if self.probe < 0:
            raise ValueError(f"-probe is a number of optimiser steps, got {self.probe}.")
        if unnamed := [text for text in self.primary if not all(text.rpartition("@")[::2])]:
            raise ValueError(f"-primary is ARM@CASES, an arm and its training cases, got {unnamed[0]!r}.")
        if wrong_cases := [n for n in self.cases if n < 1]:
            raise ValueError(f"-cases must be at least 1, got {wrong_cases[0]}.")
        wrong_folds = [f for f in self.folds if f < 0]
        if wrong_folds or not self.folds:
            raise ValueError(f"-folds are numbers of splits_final.json from 0 on, got {_text(tuple(wrong_folds))}.")
        if self.device not in DEVICES:
            raise ValueError(f"-device must be one of {', '.join(DEVICES)}, got {self.device!r}.")
        if not 0 <= self.collapsed_below < 1:
            raise ValueError(f"-collapsed_below is a share in [0, 1), got {self.collapsed_below:g}.")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StudySettings:
        """From JSON, where tuples are lists."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def disagreements(stored: StudySettings, wanted: StudySettings) -> list[str]:
    """In which settings a study cannot be continued as asked for, one phrase each."""
    found = []
    for field in fields(StudySettings):
        before, now = getattr(stored, field.name), getattr(wanted, field.name)
        if before == now or field.name in MAY_CHANGE or _is_more(field.name, before, now):
            continue
        found.append(f"{FLAGS.get(field.name, f'-{field.name}')} was {_text(before)} and is {_text(now)}")
    return found


def _is_more(name: str, before: Any, now: Any) -> bool:
    if name not in MAY_GROW:
        return False
    return bool(now >= before) if name == "seeds" else set(before) <= set(now)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


@dataclass(frozen=True)
class Size:
    """An amount of training data.

    Attributes:
        label: for tables, such as ``10 %`` or ``4 cases``.
        counts: fold -> cases.
    """

    label: str
    counts: Mapping[int, int]

    def is_called(self, amount: str) -> bool:
        """Whether this is what is meant: a number of cases in every fold, or a share such as ``10%``."""
        return amount in {self.label, self.label.replace(" ", "")} or all(
            str(n) == amount for n in self.counts.values()
        )


def sizes_of(settings: StudySettings, available: Mapping[int, int]) -> list[Size]:
    """The amounts of training data, from small to large; of two that mean the same numbers of cases one is left.

    Args:
        settings: of the study.
        available: fold -> training cases it has.

    Raises:
        ValueError: an amount without a case, or with more cases than there are.
    """
    sizes: dict[tuple[int, ...], Size] = {}
    for fraction in settings.fractions:
        counts = {fold: math.floor(fraction * n + 0.5) for fold, n in available.items()}
        for fold, count in counts.items():
            if count < 1:
                raise ValueError(
                    f"-fractions {fraction:g} of the {available[fold]} training cases of fold {fold} is less than one "
                    f"case. Leave it out, or give numbers of cases (-cases 1 2 4)."
                )
        sizes.setdefault(tuple(counts.values()), Size(f"{100 * fraction:g} %", counts))
    for wanted in settings.cases:
        if short := [fold for fold, n in available.items() if n < wanted]:
            raise ValueError(
                f"-cases {wanted}: fold {short[0]} has {available[short[0]]} training cases only. Give fewer."
            )
        counts = dict.fromkeys(available, wanted)
        sizes.setdefault(tuple(counts.values()), Size(f"{wanted} case{'s' if wanted > 1 else ''}", counts))
    return [sizes[counts] for counts in sorted(sizes)]


def subset(train: Sequence[str], count: int, seed: int, fold: int) -> list[str]:
    """The training cases of a run: for a seed and a fold, each smaller subset lies within the larger ones."""
    order = np.random.default_rng([seed, fold]).permutation(len(train))
    cases = sorted(train)
    return sorted(cases[i] for i in order[:count])


@dataclass(frozen=True)
class StudyRun:
    """One fine-tuning.

    Attributes:
        arm: its name.
        fold: whose validation cases it is measured on.
        seed: of subset, initialisation and augmentation.
        cases: training cases.
    """

    arm: str
    fold: int
    seed: int
    cases: int

    @property
    def name(self) -> str:
        """Its folder within those of the runs."""
        return f"{slug(self.arm)}/{self.cases}cases_fold{self.fold}_seed{self.seed}"

    @property
    def subset(self) -> tuple[int, int, int]:
        """What the runs of all arms that are compared with this one share: fold, seed, cases."""
        return self.fold, self.seed, self.cases


def slug(name: str) -> str:
    """A name that a folder can have on every system."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "arm"


def runs_of(turns: Mapping[str, tuple[int, int]], settings: StudySettings, sizes: Sequence[Size]) -> list[StudyRun]:
    """All runs, in the order in which they are started: a study that is stopped has whole comparisons.

    Two amounts of data may be the same number of cases in one of several folds; that is one run, which counts for both.

    Args:
        turns: name of each arm -> its place among the pretrainings of its group, and how many these are.
        settings: of the study.
        sizes: amounts of training data.
    """
    every = (
        StudyRun(arm, fold, seed, size.counts[fold])
        for seed in range(settings.seeds)
        for fold in settings.folds
        for size in sizes
        for arm, (place, count) in turns.items()
        if not settings.spread or seed % count == place
    )
    return list(dict.fromkeys(every))
