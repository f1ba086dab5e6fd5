"""The study's own view of a preprocessed dataset: links to its data, copies of its JSON files, splits of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.locate import locate
from ssl_pretrain.data.splits import load_fold, read_splits
from ssl_pretrain.files import check_case_names, check_plan_names, read_json, write_json
from ssl_pretrain.study.design import StudyRun, subset

TRUTH = "gt_segmentations"
SPLITS = "splits_final.json"

ANEW = "Remove it, and splits_final.json beside it, and the study makes both anew."

Folds = Mapping[int, Mapping[str, list[str]]]
"""Fold -> ``train`` and ``validation`` -> cases."""


def read_folds(
    folder: Path, configuration: str, plans: str, folds: Iterable[int], splits: Path
) -> dict[int, dict[str, list[str]]]:
    """The cases of folds of a preprocessed dataset, by its ``splits_final.json`` or else nnU-Net's own rule.

    Args:
        folder: of the preprocessed dataset; only read.
        configuration: of the plans.
        plans: their name.
        folds: numbers.
        splits: where the study keeps its copy of the splits.

    Raises:
        ValueError: a fold that has too few cases, or a file of splits of another layout.
        FileNotFoundError: not preprocessed, or without the labels that predictions are compared with.
    """
    files, plan = locate(folder.name, configuration, plans)
    if not files.has_labelled:
        raise FileNotFoundError(
            f"{files.name} has no labelled cases to fine-tune on: {files.data} is missing or empty. Run: "
            f"nnUNetv2_preprocess -d {int(files.name[7:10])} -plans_name {plan.name} -c {configuration}"
        )
    if not splits.is_file() and files.splits.is_file():
        shutil.copyfile(files.splits, splits)
    identifiers = sorted(Cases(files.data, plan.input_channels).identifiers)
    found = {}
    for number in folds:
        fold = load_fold(str(number), identifiers, splits)
        if set(fold.train) & set(fold.validation):
            raise ValueError(
                f"Fold {number} of {files.splits} has a single case, which it would validate on: a study would measure "
                "memory. Choose another fold (-folds)."
            )
        found[number] = {"train": sorted(fold.train), "validation": sorted(fold.validation)}
        _check_truth(folder / TRUTH, found[number]["validation"], str(plan.dataset["file_ending"]))
    return found


def _check_truth(truth: Path, cases: Sequence[str], ending: str) -> None:
    missing = [case for case in cases if not (truth / f"{case}{ending}").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{truth} lacks the labels of {len(missing)} validation cases, e.g. {missing[0]}{ending}, with which "
            "nnU-Net compares. Run nnUNetv2_preprocess again; it puts them there."
        )


def make_mirror(source: Path, root: Path, configuration: str, plans: Sequence[str]) -> Path:
    """Show a preprocessed dataset to nnU-Net in another place, where it can have other splits.

    Data are linked file by file, so that nothing nnU-Net may write lands in the user's folders.

    Args:
        source: folder of the preprocessed dataset.
        root: folder that becomes ``nnUNet_preprocessed``.
        configuration: of the plans.
        plans: names.

    Returns:
        The dataset's folder below ``root``.

    Raises:
        OSError: links cannot be made here.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    target = root / source.name
    target.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "dataset_fingerprint.json", *(f"{name}.json" for name in plans)):
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)
    contents = {target / f"{name}.json": read_json(target / f"{name}.json") for name in plans}
    for file, content in contents.items():
        check_plan_names(content, file)
    folders = {PlansManager(content).get_configuration(configuration).data_identifier for content in contents.values()}
    for name in (*sorted(folders), TRUTH):
        _link_files(source / name, target / name)
    return target


def read_mirrored_plans(mirror: Path, plans: str) -> dict[str, Any]:
    """Plans as a run will see them, if no name in them or in the splits leads out of the folders of the study.

    Args:
        mirror: the dataset's folder.
        plans: their name.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or has such a name.
    """
    content = read_json(mirror / f"{plans}.json")
    check_plan_names(content, mirror / f"{plans}.json")
    for split in read_json(mirror / SPLITS, list[dict[str, list[Any]]]):
        check_case_names((case for part in split.values() for case in part), mirror / SPLITS)
    return content


def is_broken(root: Path) -> bool:
    """Whether a link of the mirror leads nowhere, because the preprocessed data have moved."""
    return any(file.is_symlink() and not file.exists() for file in root.rglob("*"))


def _link_files(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    present = set()
    for file in target.iterdir():
        if file.exists():
            present.add(file.name)
        else:  # the data have moved
            file.unlink()
    try:
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.name not in present and entry.is_file():
                    (target / entry.name).symlink_to(Path(entry.path).resolve())
    except OSError as error:
        raise OSError(
            f"{target} cannot hold links to the preprocessed data in {source} ({error}). Choose a folder (-o) on a "
            "file system with symbolic links; Windows makes them in developer mode."
        ) from error


def add_splits(mirror: Path, runs: Iterable[StudyRun], folds: Folds) -> dict[tuple[int, int, int], int]:
    """Give every subset a fold of the mirror's ``splits_final.json``; those that are there keep their number.

    Raises:
        ValueError: a file of the mirror is damaged; names it.

    Returns:
        Subset (fold, seed, cases) -> number of the fold that nnU-Net is asked for.
    """
    names, file = mirror / "subsets.json", mirror / SPLITS
    splits = read_splits(file) if file.is_file() else []
    known = read_json(names, list[tuple[int, int, int]], remedy=ANEW)[: len(splits)] if names.is_file() else []
    splits = splits[: len(known)]
    numbers = {key: number for number, key in enumerate(known)}
    for run in runs:
        if run.subset in numbers:
            continue
        numbers[run.subset] = len(splits)
        cases = folds[run.fold]
        train = subset(cases["train"], run.cases, run.seed, run.fold)
        splits.append({"train": train, "val": list(cases["validation"])})
        known.append(run.subset)
    # The names first: of two files that a killed process left unequally long, the longer one is cut.
    write_json(known, names)
    write_json(splits, file)
    return numbers
