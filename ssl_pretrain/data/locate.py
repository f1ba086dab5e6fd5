"""Where nnU-Net keeps a dataset: names and numbers on the command line -> files on disk, with clear errors."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_pretrain.data.cases import UNLABELLED
from ssl_pretrain.data.plans_file import AGAIN, check_plans, refuse_other_names
from ssl_pretrain.files import check_name, check_plan_names
from ssl_pretrain.functional.geometry import Triple, as_triple

log = logging.getLogger("ssl_pretrain")

DATASET_NAME = re.compile(r"Dataset0*(\d+)_")


@dataclass(frozen=True)
class DatasetFiles:
    """The files a run reads.

    Attributes:
        name: name of the dataset, ``DatasetXXX_Name``.
        data: folder of preprocessed cases with labels.
        splits: ``splits_final.json``; need not exist yet.
        dataset_json: labels and channels of the dataset.
        plans: the plans file.
        spare: folder for what cannot be written into the dataset's own; None for nowhere.
    """

    name: str
    data: Path
    splits: Path
    dataset_json: Path
    plans: Path
    spare: Path | None = None

    @property
    def unlabelled(self) -> Path:
        """Folder of the cases that were preprocessed without labels."""
        return self.data.with_name(f"{self.data.name}{UNLABELLED}")

    @property
    def has_labelled(self) -> bool:
        """Whether anything is in the folder of labelled cases."""
        return _holds_files(self.data)

    @property
    def has_unlabelled(self) -> bool:
        """Whether there is an unlabelled case."""
        if not self.unlabelled.is_dir():
            return False
        with os.scandir(self.unlabelled) as entries:
            return any(entry.name.endswith(".b2nd") for entry in entries)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@dataclass(frozen=True)
class Plan:
    """What the plans say about one configuration.

    Attributes:
        name: ``plans_name``.
        configuration: name of the configuration.
        architecture: ``network_class_name``, ``arch_kwargs``, ``_kw_requires_import``.
        patch: voxels per axis.
        spacing: mm per voxel along each axis.
        batch_size: samples.
        input_channels: channels of the images.
        num_classes: segmentation heads.
        data_identifier: name of the folder of preprocessed cases.
        plans: the whole plans file.
        dataset: the whole ``dataset.json``.
    """

    name: str
    configuration: str
    architecture: dict[str, Any]
    patch: Triple
    spacing: tuple[float, float, float]
    batch_size: int
    input_channels: int
    num_classes: int
    data_identifier: str
    plans: dict[str, Any]
    dataset: dict[str, Any]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What the channels of the images show, in their order."""
        # nnU-Net's first version called them modalities.
        names: dict[str, str] = self.dataset.get("channel_names") or self.dataset["modality"]
        return tuple(names.values())


def environment_folder(variable: str) -> Path:
    """The folder an environment variable of nnU-Net names.

    Raises:
        ValueError: the variable is not set.
        FileNotFoundError: it names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise ValueError(
            f"The environment variable {variable} is not set. Set it to your folder, as nnU-Net's documentation "
            f"(setting_up_paths.md) says; for example: export {variable}=/path/to/{variable}"
        )
    if not Path(value).is_dir():
        raise FileNotFoundError(f"{variable} is {value!r}, which is not a folder. Create it or correct the variable.")
    return Path(value)


def find_dataset(dataset: str) -> Path:
    """A number or a name -> the dataset's folder in ``nnUNet_preprocessed``.

    Raises:
        ValueError: neither a number nor a name, or a number that two datasets have.
        FileNotFoundError: no such dataset; lists those there are.
    """
    root = environment_folder("nnUNet_preprocessed")
    known = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.startswith("Dataset"))
    if dataset.startswith("Dataset"):
        found = [name for name in known if name == dataset]
    elif dataset.isdecimal():
        found = [name for name in known if name.startswith(f"Dataset{int(dataset):03d}_")]
    else:
        raise ValueError(
            f"DATASET must be a number such as 4 or a name such as Dataset004_Hippocampus, got {dataset!r}."
        )
    if len(found) > 1:
        raise ValueError(f"Dataset number {dataset} is ambiguous: {', '.join(found)}. Give the name.")
    if not found:
        number = int(dataset) if dataset.isdecimal() else dataset_number(dataset)
        raise FileNotFoundError(
            f"Dataset {dataset} is not in {root}. There: {', '.join(known) or 'none'}. If it is a raw dataset, run: "
            f"nnUNetv2_plan_and_preprocess -d {number} -c 3d_fullres"
        )
    return root / found[0]


def find_plans(dataset: str, plans_name: str) -> Path:
    """The plans file of a dataset.

    Raises:
        ValueError, FileNotFoundError: see :func:`find_dataset`; or it has no such plans, and lists those there are.
    """
    folder = find_dataset(dataset)
    file = folder / f"{check_name(plans_name, 'plans (-p)')}.json"
    if not file.is_file():
        there = [p.stem for p in folder.glob("*.json") if "plans" in p.stem.lower()]
        raise FileNotFoundError(
            f"Plans {plans_name!r} do not exist in {folder}. There: {', '.join(sorted(there)) or 'none'} (-p)."
        )
    return file


def look_first(dataset: str, configuration: str, plans_name: str, *, cascades: bool = True) -> None:
    """Check names, paths and JSON as :func:`locate` does, without nnU-Net, whose import takes seconds.

    Raises:
        ValueError, FileNotFoundError: as :func:`locate`.
    """
    file = find_plans(dataset, plans_name)
    plans, _ = check_plans(file, file.parent / "dataset.json", configuration, cascades=cascades)
    refuse_other_names(plans, file)


def locate(dataset: str, configuration: str, plans_name: str, *, cascades: bool = True) -> tuple[DatasetFiles, Plan]:
    """Find a dataset the way ``nnUNetv2_train`` does: by number or name, configuration and plans.

    Args:
        dataset: its number or name.
        configuration: name of the configuration.
        plans_name: of the plans.
        cascades: see :func:`read_plan`.

    Raises:
        ValueError, FileNotFoundError: something is missing or unknown; says what there is and what to do.
    """
    plans_file = find_plans(dataset, plans_name)
    folder = plans_file.parent
    plan = read_plan(plans_file, folder / "dataset.json", configuration, cascades=cascades)
    refuse_other_names(plan.plans, plans_file)
    data = folder / plan.data_identifier
    files = DatasetFiles(folder.name, data, folder / "splits_final.json", folder / "dataset.json", plans_file)
    check_preprocessed(files, plan)
    return files, plan


def locate_explicit(
    *, preprocessed: Path, splits: Path, dataset_json: Path, plans: Path, configuration: str, cascades: bool = True
) -> tuple[DatasetFiles, Plan]:
    """As :func:`locate`, from five explicit paths instead of a dataset's number (AnatoMask's inputs).

    Args:
        preprocessed: the folder of cases, or the dataset's folder that holds it.
        splits: ``splits_final.json``.
        dataset_json: ``dataset.json``.
        plans: the plans file.
        configuration: name of the configuration.
        cascades: see :func:`read_plan`.
    """
    plan = read_plan(plans, dataset_json, configuration, cascades=cascades)
    name = str(plan.plans["dataset_name"])
    placed = [part for part in preprocessed.absolute().parts if DATASET_NAME.match(part)]
    if placed and placed[-1] != name:
        # Files that are named one by one may come from anywhere: it is the user who says that they belong together.
        log.warning(
            "The cases lie in %s, and %s is of %s: results and fine-tuning go by the plans. Correct their entry "
            "dataset_name if that is not meant.",
            placed[-1],
            plans,
            name,
        )
    inner = preprocessed / plan.data_identifier
    files = DatasetFiles(name, inner if inner.is_dir() else preprocessed, splits, dataset_json, plans)
    check_preprocessed(files, plan)
    return files, plan


def read_plan(plans_file: Path, dataset_json: Path, configuration: str, *, cascades: bool = True) -> Plan:
    """What a plans file says about a configuration.

    Args:
        plans_file: nnU-Net's.
        dataset_json: of the dataset.
        configuration: name of the configuration.
        cascades: whether it may take the segmentation of an earlier stage as input; images without labels have none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see :func:`~ssl_pretrain.data.plans_file.check_plans`.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, dataset = check_plans(plans_file, dataset_json, configuration, cascades=cascades)
    check_plan_names(plans, plans_file)
    check_name(dataset["file_ending"], "file_ending", dataset_json)
    try:
        manager = PlansManager(plans)
        config = manager.get_configuration(configuration)
        input_channels = int(determine_num_input_channels(manager, config, dataset))
        num_classes = int(manager.get_label_manager(dataset).num_segmentation_heads)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"nnU-Net cannot use {plans_file} with {dataset_json} ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    return Plan(
        name=manager.plans_name,
        configuration=configuration,
        architecture=dict(config.configuration["architecture"]),
        patch=as_triple(list(config.patch_size), "patch_size in the plans"),
        spacing=(float(config.spacing[0]), float(config.spacing[1]), float(config.spacing[2])),
        batch_size=int(config.batch_size),
        input_channels=input_channels,
        num_classes=num_classes,
        data_identifier=config.data_identifier,
        plans=plans,
        dataset=dataset,
    )


def check_preprocessed(files: DatasetFiles, plan: Plan) -> None:
    """Refuse a configuration that was planned but not preprocessed, neither with labels nor without.

    Raises:
        FileNotFoundError: names the folder and the command that makes it.
    """
    if not files.has_labelled and not files.has_unlabelled:
        number = dataset_number(files.name)
        raise FileNotFoundError(
            f"{plan.configuration} of {files.name} is not preprocessed yet: {files.data}, which data_identifier in "
            f"{files.plans} names, is missing or empty. Run: nnUNetv2_preprocess -d {number} "
            f"-plans_name {plan.name} -c {plan.configuration}; or, for images without labels: "
            f"nnUNetv2_preprocess_unlabeled -i FOLDER -d {number} -p {plan.name} -c {plan.configuration}"
        )


def dataset_number(name: str) -> str:
    """``Dataset004_Hippocampus`` -> ``4``; what has no number stays as it is."""
    match = DATASET_NAME.match(name)
    return match[1] if match else name
