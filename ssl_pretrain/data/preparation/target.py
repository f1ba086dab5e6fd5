"""The dataset, plans and configuration that images are preprocessed for, checked before any image is read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_pretrain.data.locate import DatasetFiles, Plan, dataset_number, find_dataset, read_plan
from ssl_pretrain.data.plans_file import AGAIN, refuse_other_names, resolve
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError
from ssl_pretrain.data.preparation.sources import some
from ssl_pretrain.data.preparation.stored import names_in
from ssl_pretrain.data.preprocessing import digest, preprocessing_of
from ssl_pretrain.files import check_name

PLANS_ENTRIES = ("image_reader_writer", "label_manager")
CONFIGURATION_ENTRIES = (
    "preprocessor_name",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
"""What nnU-Net's preprocessing reads of the plans beyond what everything does."""

STATISTICS = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
"""Intensities of the dataset, by their present and their earlier name."""

RAW_VARIABLE = "nnUNet_raw"


@dataclass(frozen=True)
class Target:
    """What images are preprocessed for.

    Attributes:
        files: of the dataset in ``nnUNet_preprocessed``.
        plan: the configuration.
        raw: the dataset's folder in ``nnUNet_raw``; need not exist.
    """

    files: DatasetFiles
    plan: Plan
    raw: Path

    @property
    def folder(self) -> Path:
        """Where the preprocessed images go."""
        return self.files.unlabelled

    @property
    def file_ending(self) -> str:
        """Of the dataset's images."""
        return str(self.plan.dataset["file_ending"])

    @property
    def made_with(self) -> str:
        """Fingerprint of all that the preprocessed voxels depend on."""
        return digest(preprocessing_of(self.plan.plans, self.plan.configuration))


def find_target(dataset: str, plans_name: str, configuration: str) -> Target:
    """Find a dataset as ``nnUNetv2_pretrain`` does; its own images need not be preprocessed.

    Raises:
        ValueError, FileNotFoundError: something is missing, unknown or of another version of nnU-Net; says what to do.
    """
    folder = find_dataset(dataset)
    file = folder / f"{check_name(plans_name, 'plans (-p)')}.json"
    if not file.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.json") if "plans" in p.stem.lower()))
        raise FileNotFoundError(
            f"Plans {plans_name!r} do not exist in {folder}. There: {there or 'none'} (-p). To plan, run "
            f"nnUNetv2_plan_and_preprocess -d {dataset_number(folder.name)} --no_pp, or nnUNetv2_plan_unlabeled for a "
            "dataset without labels."
        )
    plan = read_plan(file, folder / "dataset.json", configuration, cascades=False)
    refuse_other_names(plan.plans, file)
    check_preprocessing(plan, file)
    files = DatasetFiles(
        folder.name, folder / plan.data_identifier, folder / "splits_final.json", folder / "dataset.json", file
    )
    return Target(files, plan, Path(os.environ.get(RAW_VARIABLE) or RAW_VARIABLE) / folder.name)


def check_preprocessing(plan: Plan, file: Path) -> None:
    """Refuse plans that the installed nnU-Net cannot preprocess by.

    Raises:
        ValueError: plans without something, with names that this nnU-Net does not know, or for other channels.
    """
    resolved = resolve(plan.plans["configurations"], plan.configuration, file)
    missing = [name for name in PLANS_ENTRIES if name not in plan.plans]
    missing += [f"configurations.{plan.configuration}.{name}" for name in CONFIGURATION_ENTRIES if name not in resolved]
    if not any(name in plan.plans for name in STATISTICS):
        missing.append(STATISTICS[0])
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}: it is of another version of nnU-Net, or was edited. {AGAIN}"
        )
    schemes = resolved["normalization_schemes"]
    if len(schemes) != plan.input_channels:
        raise ValueError(
            f"{file.with_name('dataset.json')} has {plan.input_channels} channels, the plans {file} are for "
            f"{len(schemes)}. {AGAIN}"
        )
    if len(resolved["use_mask_for_norm"]) != len(schemes):
        raise ValueError(
            f"{file}: use_mask_for_norm must have {len(schemes)} entries, as normalization_schemes. {AGAIN}"
        )
    _check_names(plan, f"{file} names something that this nnU-Net does not have")


def _check_names(plan: Plan, fault: str) -> None:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        manager = PlansManager(plan.plans)
        resolved = manager.get_configuration(plan.configuration)
        found = [manager.image_reader_writer_class, resolved.preprocessor_class]
        found += [resolved.resampling_fn_data, resolved.resampling_fn_seg]
        folder = str(Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization")
        lost = [
            scheme
            for scheme in resolved.normalization_schemes
            if recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization") is None
        ]
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{fault}: {error}. {AGAIN}") from error
    if lost:
        raise ValueError(f"{fault}: normalization_schemes {', '.join(map(repr, lost))}. {AGAIN}")
    if any(thing is None for thing in found):
        raise ValueError(f"{fault}: preprocessor_name {resolved.preprocessor_name!r}. {AGAIN}")
    # nnU-Net takes whatever its modules know by that name, what they import for themselves included.
    origins = [str(getattr(getattr(thing, "func", thing), "__module__", None)) for thing in found]
    if others := [origin for origin in origins if not origin.startswith("nnunetv2.")]:
        raise ValueError(f"{fault}: a reader, preprocessor or way of resampling that is of {others[0]}. {AGAIN}")


def refuse_labelled(cases: Sequence[ImageCase], target: Target) -> None:
    """Refuse images that are called like labelled cases of the dataset: they would be two images with one name.

    Raises:
        ImageError: names some of them.
    """
    labelled = labelled_identifiers(target)
    both = [case for case in cases if case.identifier in labelled]
    if both:
        shown = some(f"{case.identifier} ({case.images[0]})" for case in both)
        raise ImageError(
            f"Images that are called like labelled cases of {target.files.name}: {shown}. If they are those, leave "
            "them out: nnUNetv2_preprocess prepares them. If not, rename them."
        )


def labelled_identifiers(target: Target) -> set[str]:
    """Identifiers of the labelled cases, of the raw dataset and of what is preprocessed."""
    found = set(target.plan.dataset.get("dataset") or ())
    for folder, name in (
        (target.raw / "imagesTr", re.compile(r"(.+)_\d{4}" + re.escape(target.file_ending))),
        (target.files.data, re.compile(r"(.+)\.(?:pkl|b2nd|npz)")),
    ):
        if folder.is_dir():
            found |= {match[1] for file in names_in(folder) if (match := name.fullmatch(file))}
    return found
