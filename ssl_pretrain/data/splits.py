"""Which cases are trained on and which are validated on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from ssl_pretrain.files import check_case_names, read_json, write_json, write_or_spare

log = logging.getLogger("ssl_pretrain")

HOLD_OUT = 0.05
SPLIT_SEED = 12345
"""nnU-Net's own, so that a split we write is the one it would have written."""


LAYOUT = (
    'It must be a list with one {"train": [CASES], "val": [CASES]} for each fold; without the file, nnU-Net makes its '
    "own split."
)


class Split(BaseModel):
    """A fold in ``splits_final.json``."""

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class Fold:
    """Cases of a run.

    Attributes:
        train: identifiers to pretrain on.
        validation: identifiers to validate on.
        note: where the split comes from, for the log.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    note: str


def load_fold(fold: str, identifiers: Sequence[str], splits_file: Path, spare: Path | None = None) -> Fold:
    """The cases of a fold.

    ``all`` takes every case but a hold-out of 5 % (at least one case). A number takes that fold of
    ``splits_final.json``, which is made exactly as nnU-Net would make it when it is missing; a number beyond the file's
    folds is nnU-Net's seeded 80:20 split. Validation cases that are among the training cases are left out of training:
    what is validated on is never seen.

    Args:
        fold: ``all`` or a number.
        identifiers: all cases there are, sorted.
        splits_file: ``splits_final.json``; written when missing and a fold is asked for.
        spare: folder where it is written, and read, if it cannot be written there; None to do without the file then.

    Raises:
        ValueError: not a fold, a fold without cases, or a file of another layout; names the file.
        FileNotFoundError: the split names cases that are not preprocessed.
    """
    if fold == "all":
        return _hold_out(identifiers, "all cases")
    if not fold.isdecimal():
        raise ValueError(f"FOLD must be 'all' or a number from 0 on, got {fold!r}.")
    splits, splits_file = _read_or_make(identifiers, splits_file, spare)
    listed, validation, note = _numbered(int(fold), identifiers, splits, splits_file)
    check_case_names((*listed, *validation), splits_file)
    train = [case for case in listed if case not in set(validation)]
    if left_out := sorted(set(listed) & set(validation)):
        log.warning(
            "Fold %s of %s trains on %d of its validation cases, e.g. %s: they are left out of training here. Correct "
            "the file, for nnU-Net trains on them.",
            fold,
            splits_file,
            len(left_out),
            left_out[0],
        )
    missing = sorted((set(train) | set(validation)) - set(identifiers))
    if missing:
        raise FileNotFoundError(
            f"{splits_file} lists {len(missing)} cases in fold {fold} that are not preprocessed, e.g. "
            f"{', '.join(missing[:3])}. Run nnUNetv2_preprocess again, or delete {splits_file.name} for a new split."
        )
    if not train:
        raise ValueError(
            f"Fold {fold} of {splits_file} has no training case that is not validated on. Choose another FOLD, or "
            "correct the file."
        )
    if not validation:
        return _hold_out(train, f"{note}, which has no validation case")
    return Fold(tuple(train), tuple(validation), note)


def held_out(subjects: Sequence[str]) -> set[str]:
    """5 % of the subjects, at least one, to validate on; none if there is a single one. Never some images of a subject.

    Args:
        subjects: one for each case; in an order that does not change.

    Raises:
        ValueError: there is no case.
    """
    known = list(dict.fromkeys(subjects))
    if not known:
        raise ValueError("There is no case to pretrain on.")
    if len(known) == 1:
        return set()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(known))
    return {known[i] for i in order[: max(1, round(HOLD_OUT * len(known)))]}


def _hold_out(identifiers: Sequence[str], origin: str) -> Fold:
    held = held_out(identifiers)
    if not held:
        return Fold(tuple(identifiers), tuple(identifiers), f"{origin}: a single case, validated on itself")
    train = tuple(i for i in identifiers if i not in held)
    note = f"{origin}: {len(held)} of {len(identifiers)} cases held out for validation"
    return Fold(train, tuple(sorted(held)), note)


def _numbered(
    fold: int, identifiers: Sequence[str], splits: Sequence[dict[str, list[str]]], splits_file: Path
) -> tuple[list[str], list[str], str]:
    if fold < len(splits):
        return splits[fold]["train"], splits[fold]["val"], f"fold {fold} of {splits_file}"
    chosen = np.random.RandomState(SPLIT_SEED + fold).choice(
        len(identifiers), int(len(identifiers) * 0.8), replace=False
    )
    train = [identifiers[i] for i in chosen]
    validation = [case for case in identifiers if case not in set(train)]
    return train, validation, f"fold {fold} is not in {splits_file}: nnU-Net's seeded 80:20 split"


def _read_or_make(
    identifiers: Sequence[str], splits_file: Path, spare: Path | None
) -> tuple[list[dict[str, list[str]]], Path]:
    """nnU-Net's splits, and the file that they are in."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    for file in (splits_file, *([spare / splits_file.name] if spare else [])):
        if file.is_file():
            return read_splits(file), file
    if len(identifiers) < 5:
        raise ValueError(
            f"{len(identifiers)} cases are too few for nnU-Net's 5 folds. Use FOLD all, or write {splits_file}."
        )
    made = generate_crossval_split(sorted(identifiers), seed=SPLIT_SEED, n_splits=5)
    splits = [{part: [str(case) for case in cases] for part, cases in split.items()} for split in made]
    advice = (
        "nnU-Net looks for it where it cannot be written, and would fail to make it: copy it there before fine-tuning."
    )
    try:
        return splits, write_or_spare(splits_file, spare, lambda file: write_json(splits, file), advice)
    except OSError as error:
        if spare is not None:
            raise
        log.debug("the splits were not kept: %s", error)
    return splits, splits_file


def read_splits(file: Path) -> list[dict[str, list[str]]]:
    """Content of ``splits_final.json``: for each fold ``train`` and ``val`` -> cases.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another layout; names the file, the place in it and what is expected.
    """
    return [split.model_dump() for split in read_json(file, list[Split], remedy=LAYOUT)]


def in_both(fold: int, splits_file: Path) -> list[str]:
    """Validation cases of a fold that are training cases in ``splits_final.json``, too: nnU-Net trains on them.

    None where the file, or the fold, is not there: nnU-Net makes splits without any.

    Raises:
        ValueError: see :func:`read_splits`.
    """
    splits = read_splits(splits_file) if splits_file.is_file() else []
    return sorted(set(splits[fold]["train"]) & set(splits[fold]["val"])) if fold < len(splits) else []
