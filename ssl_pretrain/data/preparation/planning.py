"""Images without labels -> a dataset that nnU-Net knows, planned by its own planners."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ssl_pretrain.data.preparation.dataset_folder import DatasetFolder, describe
from ssl_pretrain.data.preparation.fingerprint import (
    ANEW,
    ORIGIN,
    Watch,
    describes,
    extract_fingerprint,
    read_fingerprint,
)
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.parallel import Failure
from ssl_pretrain.data.preparation.report import Failures
from ssl_pretrain.data.preprocessing import differences, preprocessing_of
from ssl_pretrain.files import read_json, write_json
from ssl_pretrain.functional.geometry import Triple

PLANNERS = {
    "PlainConvUNet": "ExperimentPlanner",
    "ResEncM": "nnUNetPlannerResEncM",
    "ResEncL": "nnUNetPlannerResEncL",
    "ResEncXL": "nnUNetPlannerResEncXL",
}
"""Network -> nnU-Net's planner for it."""

MEDIAN, NONE = "median", "none"
"""Words for the spacing: nnU-Net's rule, or every image as it is."""

Spacing = tuple[float, float, float]

PLANNED = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
"""Configurations that nnU-Net's planners make; others in a plans file are the user's own."""

TRIED_FOR_READER = 3
"""Images that are tried to find the reader; one of them may be broken."""

HOUNSFIELD_AIR = -500.0
"""If half a percent of the voxels is below, they are likely to be Hounsfield units."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
        number: of the dataset, 1 to 999.
        name: what comes after ``DatasetXXX_``.
        network: a key of :data:`PLANNERS`.
        spacing: mm along each axis of the image array, ``median`` or ``none``.
        patch_size: voxels of ``3d_fullres`` per axis of the preprocessed array; None for nnU-Net's rule.
        gpu_memory_target: GB; None for what nnU-Net's planner for the network aims at.
        channel_names: they decide on normalisation; None for ``CT`` where all images are said to be, else ``image``.
        plans: name of the plans; None for what nnU-Net calls them.
        processes: images read at a time; 0 reads them in this process.
        overwrite: renew plans and fingerprint that are there.

    Raises:
        ValueError: a value is not allowed; says what is.
    """

    number: int
    name: str
    network: str = "PlainConvUNet"
    spacing: Spacing | str = MEDIAN
    patch_size: Triple | None = None
    gpu_memory_target: float | None = None
    channel_names: tuple[str, ...] | None = None
    plans: str | None = None
    processes: int = 8
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.network not in PLANNERS:
            raise ValueError(f"Unknown network {self.network!r}. Choose from {', '.join(PLANNERS)} (-network).")
        words = self.spacing if isinstance(self.spacing, str) else None
        if words not in (None, MEDIAN, NONE) or (words is None and not _positive(self.spacing)):
            raise ValueError(
                f"The spacing is three numbers in mm above 0, median or none, got {self.spacing} (-spacing)."
            )
        if self.gpu_memory_target is not None and not self.gpu_memory_target > 0:
            raise ValueError(f"The GPU memory target is in GB and above 0, got {self.gpu_memory_target}.")
        if self.plans is not None and not re.fullmatch(r"\w[\w.-]*", self.plans, flags=re.ASCII):
            raise ValueError(f"Plans are named in letters, digits, '_', '-' and '.', got {self.plans!r} (-p).")


@dataclass(frozen=True)
class Planned:
    """What was made.

    Attributes:
        folder: of the dataset in ``nnUNet_preprocessed``.
        plans_file: in that folder.
        plans: its content.
        images: cases that the plans are of.
        failures: what could not be read and is left out.
    """

    folder: Path
    plans_file: Path
    plans: dict[str, Any]
    images: int
    failures: Failures


class _Plans(BaseModel, extra="allow"):
    configurations: dict[str, dict[str, Any]]


def plan_unlabeled(
    request: PlanRequest, cases: Sequence[ImageCase], file_ending: str, watch: Watch | None = None
) -> Planned:
    """Make the folders of a dataset without labels, its fingerprint and its plans.

    A fingerprint of these very images that is there already is taken as it is, so that planning for a second network
    does not read them again. Images that failed then are left out again, until they change or ``overwrite`` is asked.

    Args:
        request: what is to be planned.
        cases: the images.
        file_ending: of their files.
        watch: sees the cases as they are read.

    Raises:
        ValueError: something is in the way, or not allowed; says what to do.
        FileNotFoundError: a folder that an environment variable names is missing.
        OSError: a file cannot be written.
    """
    from ssl_pretrain.data.preparation.planners import default_plans_name, find_reader

    folder = DatasetFolder.of(request.number, request.name)
    folder.check_ours()
    name = request.plans or default_plans_name(PLANNERS[request.network], request.spacing != NONE)
    plans_file = folder.plans_file(name)
    if plans_file.exists() and not request.overwrite:
        raise ValueError(f"{plans_file} exists. Give --overwrite to renew these plans, or another name (-p).")
    channel_names = _channel_names(request, cases)
    folder.check_description(describe(folder, channel_names, file_ending, len(cases)), name, request.overwrite)
    reader = find_reader([case.images[0] for case in cases[:TRIED_FOR_READER]], file_ending)
    fingerprint, failures = _fingerprint(request, folder, cases, reader(), watch)
    for directory in (folder.raw, folder.preprocessed):
        directory.mkdir(exist_ok=True)
    failures.finish()
    images = len(fingerprint["spacings"])
    # In this order: nnU-Net's planner reads both, and copies the first.
    write_json(fingerprint, folder.fingerprint)
    write_json(describe(folder, channel_names, file_ending, images), folder.raw / "dataset.json")
    plans = _plan(request, folder, name, reader)
    _check_shared_data(folder, plans)
    write_json(_with_own_configurations(plans, plans_file), plans_file)
    _warn_of_hounsfield(plans)
    return Planned(folder.preprocessed, plans_file, plans, images, failures)


def _channel_names(request: PlanRequest, cases: Sequence[ImageCase]) -> tuple[str, ...]:
    channels = len(cases[0].images)
    if request.channel_names is not None:
        if len(request.channel_names) != channels:
            raise ValueError(
                f"There are {len(request.channel_names)} names for the {channels} channels of "
                f"{cases[0].identifier} (-channel_names)."
            )
        return request.channel_names
    if all((case.info.modality or "").casefold() == "ct" for case in cases):
        return ("CT",) * channels
    return ("image",) if channels == 1 else tuple(f"image_{channel}" for channel in range(channels))


def _fingerprint(
    request: PlanRequest, folder: DatasetFolder, cases: Sequence[ImageCase], reader: Any, watch: Watch | None
) -> tuple[dict[str, Any], Failures]:
    """The fingerprint that is there, or a new one."""
    failures = Failures(folder.preprocessed)
    if folder.fingerprint.exists():
        there = _fingerprint_before(folder, cases, failures, request.overwrite)
        if there is not None and not (failures.entries and request.overwrite):
            logger.info("The fingerprint of these images is there already: %s", folder.fingerprint)
            return there, failures
        if not request.overwrite:
            raise ValueError(
                f"{folder.fingerprint} is of other images, or these have changed. Give --overwrite to make it anew, or "
                "choose another number (-d)."
            )
        failures.entries.clear()
    content, failed = extract_fingerprint(cases, reader, len(cases[0].images), request.processes, watch)
    for case in cases:
        if case.identifier in failed:
            failures.add(case, Failure(failed[case.identifier]))
    return content, failures


def _fingerprint_before(
    folder: DatasetFolder, cases: Sequence[ImageCase], failures: Failures, overwrite: bool
) -> dict[str, Any] | None:
    """The fingerprint that is there, if it is of these images; what could not be read for it goes to ``failures``."""
    try:
        there = read_fingerprint(folder.fingerprint, len(cases[0].images))
        if there.get(ORIGIN, {}).get("failed") and failures.file.exists():
            failures.entries += read_json(failures.file, list[dict[str, Any]], remedy=ANEW)
    except ValueError:
        if not overwrite:
            raise
        return None
    complete = len(failures.entries) == there.get(ORIGIN, {}).get("failed")
    return there if complete and describes(there, cases) else None


def _plan(request: PlanRequest, folder: DatasetFolder, name: str, reader: Any) -> dict[str, Any]:
    from ssl_pretrain.data.preparation.planners import default_plans_name, make_planner, quiet

    planner_name = PLANNERS[request.network]
    planner = make_planner(
        planner_name,
        folder.name,
        reader=reader,
        spacing=None if isinstance(request.spacing, str) else request.spacing,
        resampled=request.spacing != NONE,
        patch=request.patch_size,
        memory=request.gpu_memory_target,
        plans=name,
        own_identifier=request.spacing != MEDIAN or name != default_plans_name(planner_name, True),
    )
    try:
        with quiet():
            plans: dict[str, Any] = planner.plan_experiment()
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(
            f"nnU-Net cannot plan by {folder.fingerprint} ({type(error).__name__}: {error}). Look there for spacings "
            "and shapes that no image has, and leave such images out."
        ) from error
    for note in planner.notes:
        logger.warning(note)
    return plans


def _check_shared_data(folder: DatasetFolder, plans: dict[str, Any]) -> None:
    """Refuse plans that would keep other voxels in a folder that existing plans use.

    Raises:
        ValueError: names the plans, the folder and what differs.
    """
    for file, content in folder.other_plans(plans["plans_name"]).items():
        theirs = {_data_of(content, name): name for name in content["configurations"]}
        for name in plans["configurations"]:
            identifier = _data_of(plans, name)
            if identifier not in theirs:
                continue
            try:
                other = preprocessing_of(content, theirs[identifier])
            except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{file} keeps its data in {identifier}, too, but is no plans file that nnU-Net can read "
                    f"({type(error).__name__}: {error}). Delete it, or give the new plans a name of their own (-p)."
                ) from error
            differing = differences(preprocessing_of(plans, name), other)
            if differing:
                raise ValueError(
                    f"{file} keeps its data in {identifier}, too, but preprocessed in another way "
                    f"({', '.join(differing)}). Give the new plans a name of their own (-p), or delete that file."
                )


def _data_of(plans: Mapping[str, Any], configuration: str) -> str:
    """Name of the folder of preprocessed cases; that of a configuration without an own one is nobody's else."""
    return str(plans["configurations"][configuration].get("data_identifier", f"inherited by {configuration}"))


def _with_own_configurations(plans: dict[str, Any], file: Path) -> dict[str, Any]:
    """The plans with the configurations that a user added to the old ones, which nnU-Net keeps, too."""
    if not file.exists():
        return plans
    there = read_json(file, _Plans, remedy="Delete it to plan anew.").configurations
    added = {n: c for n, c in there.items() if n not in PLANNED}
    return {**plans, "configurations": {**plans["configurations"], **added}}


def _warn_of_hounsfield(plans: Mapping[str, Any]) -> None:
    schemes = plans["configurations"]["3d_fullres"]["normalization_schemes"]
    for channel, statistics in plans["foreground_intensity_properties_per_channel"].items():
        if statistics["percentile_00_5"] < HOUNSFIELD_AIR and schemes[int(channel)] == "ZScoreNormalization":
            logger.warning(
                "Channel %s looks like CT in Hounsfield units (from %.0f on), but each image will be normalised by "
                "itself. For nnU-Net's CT normalisation give -channel_names CT.",
                channel,
                statistics["percentile_00_5"],
            )


def _positive(spacing: object) -> bool:
    return isinstance(spacing, tuple) and len(spacing) == 3 and all(0 < mm < float("inf") for mm in spacing)
