"""Plans and ``dataset.json``: what nnU-Net and we read of them, checked before anything is built by them.

nnU-Net raises whatever a dictionary raises, some of it after the last epoch. Here it is one line that names the file.
Neither torch nor nnU-Net is imported, so that a wrong file is found in a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from ssl_pretrain.files import read_json, validated

AGAIN = "Plan the dataset again with the nnU-Net that is installed (nnUNetv2_plan_experiment)."
OF_DATASET = "See dataset_format.md of nnU-Net's documentation."

OF_VERSION_1 = ("plans_per_stage", "num_stages", "base_num_features")

LARGEST = 100_000
"""Of voxels along an axis, samples, channels, millimetres: beyond, memory ends or a loop does not."""

Count = Annotated[int, Field(gt=0, le=LARGEST)]
Millimetres = Annotated[float, Field(gt=0, le=LARGEST)]


class JsonObject(BaseModel):
    """Entries of an object in JSON, of the very types; others may stand beside them."""

    model_config = ConfigDict(extra="allow", strict=True)


class Inheriting(JsonObject):
    """A configuration as it stands in the file."""

    inherits_from: str = ""


def _order_of_axes(order: list[int]) -> list[int]:
    if sorted(order) != [0, 1, 2]:
        raise ValueError("must be the axes 0, 1 and 2 in some order")
    return order


Axes = Annotated[list[int], AfterValidator(_order_of_axes)]


def _label_or_region(value: Any) -> int | list[int]:
    # nnU-Net converts numbers that are written as text.
    numbers = [
        int(number)
        for number in (value if isinstance(value, list) else [value])
        if isinstance(number, int) or (isinstance(number, str) and number.isdecimal())
    ]
    if len(numbers) != (len(value) if isinstance(value, list) else 1) or not numbers or min(numbers) < 0:
        raise ValueError("must be a whole number from 0 on, or the list of those that make up a region")
    return numbers if isinstance(value, list) else numbers[0]


class Plans(JsonObject):
    """What every use of a plans file reads."""

    dataset_name: str = Field(min_length=1)
    plans_name: str = Field(min_length=1)
    configurations: dict[str, Inheriting]
    transpose_forward: Axes
    transpose_backward: Axes
    label_manager: str = "LabelManager"
    image_reader_writer: str = ""
    foreground_intensity_properties_per_channel: dict[str, Any] = {}

    @field_validator("transpose_backward")
    @classmethod
    def _undoes(cls, backward: list[int], info: ValidationInfo) -> list[int]:
        forward = info.data.get("transpose_forward")
        if forward is not None and [forward[axis] for axis in backward] != [0, 1, 2]:
            raise ValueError(f"does not undo transpose_forward {forward}")
        return backward


def _no_huge_number(content: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [content]
    while level:
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [value for values in inner for value in values]
        if huge := [value for value in level if isinstance(value, int) and abs(value) > LARGEST]:
            raise ValueError(f"holds {huge[0]}; no network has so many stages, channels or voxels")
    return content


class Architecture(JsonObject):
    """How nnU-Net builds a network."""

    network_class_name: str
    arch_kwargs: Annotated[dict[str, Any], AfterValidator(_no_huge_number)]
    imported: list[str] = Field(alias="_kw_requires_import")


class OldConfiguration(Inheriting):
    """A configuration with what it inherits, of plans before nnU-Net 2.5, which describe a U-Net by loose entries."""

    data_identifier: str = Field(min_length=1)
    patch_size: list[Count] = Field(min_length=3, max_length=3)
    spacing: list[Millimetres] = Field(min_length=3, max_length=3)
    batch_size: Count
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool] = []
    preprocessor_name: str = ""
    previous_stage: str | None = None


class Configuration(OldConfiguration):
    """A configuration with what it inherits."""

    architecture: Architecture


class DatasetFile(JsonObject):
    """What is read of ``dataset.json``."""

    labels: dict[str, Annotated[int | list[int], BeforeValidator(_label_or_region)]]
    regions_class_order: list[int] | None = Field(default=None, validate_default=True)
    file_ending: str = Field(min_length=1)
    dataset: dict[str, Any] = {}

    @field_validator("labels")
    @classmethod
    def _as_nnunet_wants_them(cls, labels: dict[str, Any]) -> dict[str, Any]:
        if labels.get("background") != 0:
            raise ValueError("must be NAME: NUMBER, and 'background' must be there and be 0")
        numbers = sorted(set(_numbers(labels)))
        ignored = labels.get("ignore", numbers[-1] + 1)
        if ignored != numbers[-1] + 1:
            raise ValueError(f"'ignore' must be one more than the highest label, {numbers[-1] + 1}, and is {ignored}")
        if not _has_regions(labels) and numbers != list(range(len(numbers))):
            raise ValueError(f"must be 0, 1, 2, … without a gap, and are {', '.join(map(str, numbers[:12]))}")
        return labels

    @field_validator("regions_class_order")
    @classmethod
    def _of_each_region(cls, order: list[int] | None, info: ValidationInfo) -> list[int] | None:
        labels = info.data.get("labels", {})
        if _has_regions(labels):
            regions = [name for name, value in labels.items() if name != "ignore" and value not in (0, [0])]
            if order is None or len(order) != len(regions):
                raise ValueError(f"must have a number for each of the {len(regions)} regions ({', '.join(regions)})")
        return order


def _numbers(labels: Mapping[str, Any]) -> Iterable[int]:
    for name, value in labels.items():
        if name != "ignore":
            yield from value if isinstance(value, list) else [value]


def _has_regions(labels: Mapping[str, Any]) -> bool:
    return any(isinstance(value, list) and len(value) > 1 for value in labels.values())


class OfImages(DatasetFile):
    """``dataset.json`` with the names of its channels."""

    channel_names: dict[str, str] = Field(min_length=1)


class OfModalities(DatasetFile):
    """``dataset.json`` with the name that nnU-Net's first version had for channels."""

    modality: dict[str, str] = Field(min_length=1)


def check_plans(
    plans_file: Path, dataset_json: Path, configuration: str, *, cascades: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and ``dataset.json`` as they are in the files, after checking what is read of them.

    Args:
        plans_file: of nnU-Net 2.
        dataset_json: of the dataset.
        configuration: that is to be used; of the others only their names count.
        cascades: whether it may take the segmentation of an earlier stage as input; images without labels have none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not JSON, an entry that is missing or wrong, an unknown configuration, one in 2-D, or a later stage
            of a cascade where none may be; names the file and the entry.
    """
    plans = read_json(plans_file, remedy=AGAIN)
    if old := [name for name in OF_VERSION_1 if name in plans]:
        raise ValueError(f"{plans_file} is a plans file of nnU-Net version 1 (it has {', '.join(old)}). {AGAIN}")
    if not isinstance(plans.get("configurations"), dict):
        raise ValueError(f"{plans_file} is not a plans file of nnU-Net version 2: it has no 'configurations'. {AGAIN}")
    validated(plans, Plans, plans_file, remedy=AGAIN)
    known = plans["configurations"]
    if configuration not in known:
        raise ValueError(f"Configuration {configuration!r} is not in {plans_file}. There: {_usable(known, cascades)}.")
    resolved = resolve(known, configuration, plans_file)
    if isinstance(patch := resolved.get("patch_size"), list) and len(patch) == 2:
        raise ValueError(
            f"Configuration {configuration!r} of {plans_file} is 2-D; what is pretrained here is 3-D. Choose from: "
            f"{_usable(known, cascades)}."
        )
    if resolved.get("previous_stage") is not None and not cascades:
        raise ValueError(
            f"Configuration {configuration!r} of {plans_file} takes the segmentation of {resolved['previous_stage']!r} "
            f"as input, which unlabelled images do not have. Choose from: {_usable(known, cascades)}."
        )
    is_old = "architecture" not in resolved and "UNet_class_name" in resolved
    kind: Any = dict[str, dict[str, OldConfiguration]] if is_old else dict[str, dict[str, Configuration]]
    validated({"configurations": {configuration: resolved}}, kind, plans_file, remedy=AGAIN)
    dataset = read_json(dataset_json, remedy=OF_DATASET)
    validated(dataset, OfModalities if "modality" in dataset else OfImages, dataset_json, remedy=OF_DATASET)
    return plans, dataset


def resolve(configurations: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """A configuration with what it inherits; nnU-Net's own way of doing so needs complete plans.

    Raises:
        ValueError: its parents lead nowhere; names the file.
    """
    chain = [name]
    while (parent := configurations[chain[-1]].get("inherits_from", "")) != "":
        if parent in chain or parent not in configurations:
            raise ValueError(
                f"{file}: configuration {chain[-1]!r} inherits from {parent!r}, which leads nowhere. Correct the "
                "entry inherits_from, or plan the dataset again (nnUNetv2_plan_experiment)."
            )
        chain.append(parent)
    return {key: value for one in reversed(chain) for key, value in configurations[one].items()}


def refuse_other_names(plans: Mapping[str, Any], plans_file: Path) -> None:
    """Refuse plans whose own names are not those of their place, by which they were found.

    nnU-Net's commands find plans by the names of folder and file; then its trainer takes the names inside: it reads the
    folder of ``dataset_name`` and writes into that of ``plans_name``.

    Raises:
        ValueError: names both and what to do.
    """
    folder = plans_file.parent.name
    if plans["dataset_name"] != folder:
        raise ValueError(
            f"{plans_file} is of {plans['dataset_name']} by its entry dataset_name, but lies in the folder of "
            f"{folder}: nnU-Net would fine-tune on the one in its entry. Were the plans copied, bring them with "
            "nnUNetv2_move_plans_between_datasets instead; was the folder renamed, correct dataset_name."
        )
    if plans["plans_name"] != plans_file.stem:
        raise ValueError(
            f"{plans_file} calls itself {plans['plans_name']!r} in its entry plans_name: nnU-Net would mix its results "
            f"with those of other plans. Make plans_name {plans_file.stem!r}, or rename the file."
        )


def _usable(configurations: Mapping[str, Any], cascades: bool) -> str:
    """Configurations that are not refused."""
    found = []
    for name in configurations:
        with suppress(ValueError):  # of parents that lead nowhere
            entry = resolve(configurations, name, Path())
            is_stage = entry.get("previous_stage") is not None
            if isinstance(patch := entry.get("patch_size"), list) and len(patch) == 3 and (cascades or not is_stage):
                found.append(name)
    return ", ".join(found) or "none"
