"""The folders of a dataset without labels, in ``nnUNet_raw`` and ``nnUNet_preprocessed``; nobody else's is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_pretrain.data.locate import environment_folder
from ssl_pretrain.files import read_json

ONLY_BACKGROUND = {"background": 0}
LABELLED_FOLDERS = ("imagesTr", "labelsTr")
DECIDES_PREPROCESSING = ("channel_names", "file_ending")


@dataclass(frozen=True)
class DatasetFolder:
    """Where things of a dataset are.

    Attributes:
        raw: its folder in ``nnUNet_raw``.
        preprocessed: its folder in ``nnUNet_preprocessed``.
    """

    raw: Path
    preprocessed: Path

    @classmethod
    def of(cls, number: int, name: str) -> DatasetFolder:
        """The folders ``DatasetXXX_Name``, which need not exist.

        Raises:
            ValueError: a number or a name that nnU-Net cannot use, or an environment variable that is not set.
            FileNotFoundError: an environment variable names no folder.
        """
        if not 1 <= number <= 999:
            raise ValueError(f"A dataset has a number from 1 to 999, got {number} (-d).")
        if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII) or name.startswith("Dataset"):
            raise ValueError(
                f"{name!r} is no name for a dataset. Give only what comes after DatasetXXX_, in letters, digits, '_', "
                "'-' and '.' (-name)."
            )
        full = f"Dataset{number:03d}_{name}"
        return cls(environment_folder("nnUNet_raw") / full, environment_folder("nnUNet_preprocessed") / full)

    @property
    def name(self) -> str:
        """``DatasetXXX_Name``."""
        return self.raw.name

    @property
    def fingerprint(self) -> Path:
        """``dataset_fingerprint.json``."""
        return self.preprocessed / "dataset_fingerprint.json"

    def plans_file(self, plans: str) -> Path:
        """The file of the plans of that name."""
        return self.preprocessed / f"{plans}.json"

    def other_plans(self, plans: str) -> dict[Path, dict[str, Any]]:
        """The plans files but for the one of that name, and their contents."""
        files = [file for file in sorted(self.preprocessed.glob("*.json")) if file != self.plans_file(plans)]
        contents = {file: read_json(file, object) for file in files}
        return {file: content for file, content in contents.items() if isinstance(content, dict) and _is_plans(content)}

    def check_ours(self) -> None:
        """Refuse a number that another dataset has, and a dataset that is not one without labels.

        Raises:
            ValueError: names what is there and what to do.
        """
        others = {path for root in _roots() for path in root.glob(f"{self.name[:10]}_*") if path.name != self.name}
        if others:
            there = ", ".join(map(str, sorted(others)))
            raise ValueError(
                f"Dataset number {int(self.name[7:10])} is taken: {there}. Choose another number (-d), or take the "
                "name that it has (-name)."
            )
        advice = "Choose another number (-d); to prepare unlabelled images by its plans: nnUNetv2_preprocess_unlabeled"
        for folder in (self.raw / name for name in LABELLED_FOLDERS):
            if folder.is_dir() and any(folder.iterdir()):
                raise ValueError(
                    f"{folder} is for images with labels, and not empty: such a dataset is planned by "
                    f"nnUNetv2_plan_and_preprocess. {advice}. Images that have no labels belong in imagesUn."
                )
        for file in self._descriptions():
            if not is_unlabeled(read_json(file)):
                raise ValueError(f"{file} describes a dataset with labels, which is left as it is. {advice}.")

    def check_description(self, description: Mapping[str, Any], plans: str, overwrite: bool) -> None:
        """Refuse to change channels or format of a dataset without being asked, or under the feet of other plans.

        Raises:
            ValueError: names the entry that differs and what to do.
        """
        for file in self._descriptions():
            there = read_json(file)
            for entry in DECIDES_PREPROCESSING:
                if there.get(entry) == description[entry]:
                    continue
                change = f"{file} says {entry} {there.get(entry)}, now it would be {description[entry]}"
                if not overwrite:
                    raise ValueError(f"{change}. Give --overwrite to plan the dataset anew, or another number (-d).")
                others = self.other_plans(plans)
                if others:
                    names = ", ".join(other.name for other in others)
                    raise ValueError(
                        f"{change}, but other plans rely on it: {names}. Choose another number (-d), or delete those "
                        f"files in {self.preprocessed}."
                    )

    def _descriptions(self) -> list[Path]:
        files = (self.raw / "dataset.json", self.preprocessed / "dataset.json")
        return [file for file in files if file.exists()]


def describe(folder: DatasetFolder, channel_names: tuple[str, ...], file_ending: str, images: int) -> dict[str, Any]:
    """The content of ``dataset.json`` of a dataset without labels.

    Its empty ``dataset`` tells nnU-Net not to look for images in ``imagesTr``.
    """
    return {
        "name": folder.name[11:],
        "description": "Images without labels to pretrain on, by nnUNetv2_plan_unlabeled",
        "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
        "labels": ONLY_BACKGROUND,
        "numTraining": images,
        "file_ending": file_ending,
        "dataset": {},
    }


def is_unlabeled(description: Mapping[str, Any]) -> bool:
    """Whether a ``dataset.json`` is one as :func:`describe` makes it."""
    return description.get("labels") == ONLY_BACKGROUND and description.get("dataset") == {}


def _is_plans(content: Mapping[str, Any]) -> bool:
    configurations = content.get("configurations")
    if "plans_name" not in content or not isinstance(configurations, dict):
        return False
    return all(isinstance(configuration, dict) for configuration in configurations.values())


def _roots() -> list[Path]:
    """Where nnU-Net looks for the name that belongs to a number."""
    values = [os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    return [Path(value) for value in values if value and Path(value).is_dir()]
