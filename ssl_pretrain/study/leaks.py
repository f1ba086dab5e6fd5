"""What pretrained weights have seen of the validation cases that a study measures on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ssl_pretrain.data.locate import dataset_number
from ssl_pretrain.data.splits import in_both
from ssl_pretrain.files import read_json
from ssl_pretrain.study.arms import Arm, local_file, pretraining_of

NO_LIST = "Take the file that came with the weights, or delete this one: then the fold decides that is in the weights."


class CaseLists(BaseModel):
    """What is read of ``cases.json``."""

    train: list[str]


def refuse_supervised(arms: Iterable[Arm], dataset: str, folds: Iterable[int], splits: Path) -> None:
    """Refuse networks that nnU-Net trained with the labels of validation cases.

    Args:
        arms: of the study.
        dataset: its name.
        folds: of the study.
        splits: the dataset's ``splits_final.json``; need not exist.

    Raises:
        ValueError: names the file and the fold that it was trained on.
    """
    from ssl_pretrain.transfer.weights_file import read_weights

    for arm in arms:
        said = read_weights(local_file(arm.weights)).metadata if arm.weights else {}
        if said.get("dataset_name") != dataset or "fold" not in said:
            continue
        if wrong := [fold for fold in folds if said["fold"] != str(fold) or in_both(fold, splits)]:
            raise ValueError(
                f"{arm.weights} was trained by nnU-Net with the labels of {dataset}, fold {said['fold']}: validation "
                f"cases of fold {wrong[0]} are among its training cases, and a study would measure memory. Give "
                "weights of another dataset, or of that fold."
            )


def saw_cases(arm: Arm, dataset: str, number: str, fold: int, validation: Iterable[str]) -> list[str]:
    """Validation cases whose images the weights were pretrained on, as far as their run says so.

    ``cases.json`` beside the file lists the cases; without it, the fold in the file decides.
    """
    about = pretraining_of(arm.weights) if arm.weights else {}
    config: Mapping[str, Any] = about.get("config") or {}
    if arm.weights is None or not {dataset, number} & {
        str(d) for d in (config.get("dataset"), *config.get("datasets", ()))
    }:
        return []
    cases = local_file(arm.weights).parent / "cases.json"
    if cases.is_file():
        listed = read_json(cases, CaseLists, remedy=NO_LIST).train
        # Dataset, folder and identifier; without the dataset, cases of two would be mixed up.
        seen = {name.rpartition("/")[2] for name in listed if name.startswith(f"{dataset}/")}
        return sorted(seen & set(validation))
    return [] if str(config.get("fold")) == str(fold) else sorted(validation)


def seen_cases(arms: Sequence[Arm], dataset: str, folds: Mapping[int, Mapping[str, Sequence[str]]]) -> list[str]:
    """Which weights were pretrained on images of validation cases: allowed, but another question is answered."""
    found = []
    for arm in arms:
        for fold, cases in folds.items():
            validation = cases["validation"]
            if seen := saw_cases(arm, dataset, dataset_number(dataset), fold, validation):
                found.append(
                    f"{arm.name} was pretrained on images of {len(seen)} of the {len(validation)} validation cases of "
                    f"fold {fold} (e.g. {seen[0]}). No labels were seen, but the comparison is transductive: say so, "
                    f"or pretrain on fold {fold}."
                )
    return found
