"""The fingerprint of images without labels, in nnU-Net's format: what its planners need to know about a data set."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from ssl_pretrain.data.preparation.checks import read_checked
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.parallel import Failure, run_cases
from ssl_pretrain.files import read_json, validated

logger = logging.getLogger(__name__)

VOXELS = 10_000_000
"""Intensities sampled per channel over all cases, 40 MB. nnU-Net takes ten times as many; with ten million the mean is
known to 0.0003 standard deviations already."""

SEED = 1234
"""nnU-Net's own. Every case starts from it, so the fingerprint does not depend on which case is ready first."""

ORIGIN = "ssl_pretrain"
"""Key of the fingerprint under which we note which images it is of; nnU-Net does not read it."""

ANEW = "Give --overwrite to make it anew."

Watch = Callable[[Iterable[Any], int], Iterable[Any]]
"""Takes what arrives case by case and how many there are, hands it on; a progress bar, for example."""


@dataclass(frozen=True)
class Measured:
    """What the fingerprint needs to know of one case.

    Attributes:
        shape: voxels per axis after nnU-Net's cropping to what is not 0.
        spacing: mm per voxel along each axis of the array.
        relative_size: share of the voxels that cropping left.
        intensities: (C, n) sampled intensities.
        warnings: what is odd about the case, though it can be used.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    relative_size: float
    intensities: npt.NDArray[np.float32]
    warnings: tuple[str, ...]


def extract_fingerprint(
    cases: Sequence[ImageCase], reader: Any, channels: int, processes: int, watch: Watch | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read every case and gather the content of ``dataset_fingerprint.json``.

    No foreground is known, so ``foreground_intensity_properties_per_channel``, which CT normalisation uses, is of the
    cropped images but for the voxels that have the lowest value of their image: that is what padding and masked air are
    filled with. (Air that a scanner recorded, noise and all, counts.) Of every case the same number of voxels is drawn,
    with replacement and from a fixed seed, :data:`VOXELS` in all.

    Args:
        cases: what to read.
        reader: an instance of nnU-Net's reader class.
        channels: channels every case must have.
        processes: cases read at a time.
        watch: sees the cases as they are finished.

    Returns:
        The fingerprint, and the reasons of the cases that could not be used (by identifier), which are left out of it.

    Raises:
        ValueError: no case can be used; says why for the first.
    """
    samples = max(1, VOXELS // len(cases))
    measure = functools.partial(measure_case, reader=reader, channels=channels, samples=samples)
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    results: Iterable[tuple[ImageCase, Measured | Failure]] = run_cases(measure, cases, processes)
    for case, result in watch(results, len(cases)) if watch else results:
        if isinstance(result, Failure):
            failed[case.identifier] = result.reason
            logger.error("FAILED %s: %s", case.identifier, result.reason)
            continue
        measured[case.identifier] = result
        for warning in result.warnings:
            logger.warning("%s: %s", case.identifier, warning)
    if not measured:
        first = next(failed[case.identifier] for case in cases)
        raise ValueError(f"None of the {len(cases)} images can be used. The first: {first}")
    # In the order of the cases, not of completion: the same images make the same file.
    kept = [case for case in cases if case.identifier in measured]
    content = _summary([measured[case.identifier] for case in kept], channels)
    content[ORIGIN] = {"images": digest_of(cases), "failed": len(failed)}
    return content, failed


def measure_case(case: ImageCase, *, reader: Any, channels: int, samples: int) -> Measured:
    """Read a case, crop it as nnU-Net's preprocessor will, and sample its intensities.

    Raises:
        ImageError: the case cannot be used.
    """
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    image, properties, warnings = read_checked(case, reader, channels)
    cropped, _, _ = crop_to_nonzero(image)
    rng = np.random.default_rng(SEED)
    return Measured(
        shape=tuple(int(n) for n in cropped.shape[1:]),
        spacing=tuple(float(s) for s in properties["spacing"]),
        relative_size=float(np.prod(cropped.shape[1:]) / np.prod(image.shape[1:])),
        intensities=np.stack([_sample(channel, samples, rng) for channel in cropped]),
        warnings=tuple(warnings),
    )


# Bounds beyond which nnU-Net's planner computes for minutes, or with infinity.
_Spacing = Annotated[list[Annotated[float, Field(ge=1e-6, le=1e5)]], Field(min_length=3, max_length=3)]
_Shape = Annotated[list[Annotated[float, Field(ge=1, le=1e5)]], Field(min_length=3, max_length=3)]


class _Statistics(BaseModel, extra="allow", strict=True):
    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_99_5: float
    percentile_00_5: float


class _Origin(BaseModel, extra="allow", strict=True):
    images: str
    failed: int


class _Fingerprint(BaseModel, extra="allow", strict=True):
    """What nnU-Net's planners read of the file, and what we do."""

    spacings: list[_Spacing]
    shapes_after_crop: list[_Shape]
    foreground_intensity_properties_per_channel: dict[str, _Statistics]
    median_relative_size_after_cropping: float
    ssl_pretrain: _Origin = _Origin(images="", failed=0)


def read_fingerprint(file: Path, channels: int) -> dict[str, Any]:
    """Content of ``dataset_fingerprint.json``.

    Args:
        file: as :func:`extract_fingerprint` made it, or nnU-Net.
        channels: that it must be of.

    Raises:
        ValueError, OSError: damaged, or edited so that nnU-Net's planners cannot use it; names the file and the place.
    """
    content = read_json(file, remedy=ANEW)
    read = validated(content, _Fingerprint, file, remedy=ANEW)
    images, shapes = len(read.spacings), len(read.shapes_after_crop)
    if not images or images != shapes:
        raise ValueError(
            f"{file} is of {images} spacings and {shapes} shapes_after_crop: one of both per image. {ANEW}"
        )
    there = read.foreground_intensity_properties_per_channel
    if sorted(there) != sorted(map(str, range(channels))):
        raise ValueError(
            f"{file}: foreground_intensity_properties_per_channel is of channels {', '.join(there) or 'none'}, but the "
            f"images have {channels}. {ANEW}"
        )
    return content


def describes(fingerprint: Mapping[str, Any], cases: Sequence[ImageCase]) -> bool:
    """Whether a fingerprint was made of these very files, unchanged since."""
    return bool(fingerprint.get(ORIGIN, {}).get("images") == digest_of(cases))


def digest_of(cases: Sequence[ImageCase]) -> str:
    """A short fingerprint of which files the cases are: names, sizes and times of change, not contents."""
    text = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.identifier):
        for file in case.images:
            state = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else ()
            text.update(repr((case.identifier, str(file), state)).encode())
    return text.hexdigest()[:16]


def _sample(channel: npt.NDArray[np.float32], samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Voxels above the lowest value; of a channel that is the same everywhere, that value."""
    inside = channel[channel > channel.min()]
    values = inside if inside.size else channel.ravel()
    return values[rng.integers(0, values.size, samples)].astype(np.float32)


def _summary(measured: Sequence[Measured], channels: int) -> dict[str, Any]:
    statistics = {
        str(channel): _statistics(np.concatenate([case.intensities[channel] for case in measured]))
        for channel in range(channels)
    }
    return {
        "spacings": [list(case.spacing) for case in measured],
        "shapes_after_crop": [list(case.shape) for case in measured],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": float(np.median([case.relative_size for case in measured])),
    }


def _statistics(values: npt.NDArray[np.float32]) -> dict[str, float]:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    # In double precision: a sum of millions in float32 loses digits.
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "median": float(median),
        "std": float(values.std(dtype=np.float64)),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
