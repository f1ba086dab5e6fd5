"""Reading a case with nnU-Net's reader, and refusing what would spoil a pretraining without anybody noticing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.preparation.headers import (
    Header,
    check_content,
    check_file,
    check_header,
    check_same_grid,
    grid_difference,
    message_of_itk,
    quiet_itk,
    read_header,
    refuse_nonfinite,
)
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError

OUTLIER = 5.0
"""Ranges between the 0.1th and the 99.9th percentile by which a voxel may lie beyond them before it is warned of.

Over the 326 images of three public sets (CT, dose, MR) the largest is 2.5; a stray voxel of a CT at 31719 has 15.
"""

_SAMPLE = 1_000_000  # voxels from which percentiles are taken
_LABELS = 16  # different values up to which an image looks like labels


def read_checked(
    case: ImageCase, reader: Any, channels: int
) -> tuple[npt.NDArray[np.float32], dict[str, Any], list[str]]:
    """Read the images of a case.

    Args:
        case: what to read.
        reader: one of nnU-Net's, an instance.
        channels: channels that the case must have.

    Returns:
        The voxels ``(C, D, H, W)`` and the properties as the reader gives them, and warnings in words.

    Raises:
        ImageError: names the file, the fault and the remedy.
    """
    headers = []
    for file in case.images:
        header = _check_before_reading(file, reader)
        headers += [header] if header is not None else []
    if headers:
        check_same_grid(case.images, headers)
    (data, properties), printed = _read(reader.read_images, [str(file) for file in case.images])
    if data.ndim != 4 or len(data) != channels:
        raise ImageError(
            f"{_names(case)}: read as an array of {_times(data.shape)}, but the dataset has {channels} channels and "
            "each is a 3-D volume."
        )
    return data, properties, [*printed, *_check_voxels(case, data)]


def read_mask(
    file: Path, case: ImageCase, shape: tuple[int, ...], reader: Any
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Read a mask of a case; what is not 0 is marked.

    Args:
        file: the mask.
        case: whose mask it is.
        shape: of the image as read, ``(D, H, W)``.
        reader: the one that read the image.

    Returns:
        The mask ``(1, D, H, W)`` and warnings in words.

    Raises:
        ImageError: unreadable, of another shape than the image, or with NaN.
    """
    header = _check_before_reading(file, reader)
    (mask, _), _ = _read(reader.read_seg, str(file))
    if mask.shape != (1, *shape):
        raise ImageError(
            f"{file} is a mask of {_times(mask.shape[1:])} voxels, its image {case.images[0]} has {_times(shape)}. "
            "Resample the mask to the grid of the image."
        )
    refuse_nonfinite(str(file), int(np.count_nonzero(np.isnan(mask))), 0)
    image_header = read_header(case.images[0], reader)
    difference = grid_difference(image_header, header) if header is not None and image_header is not None else None
    warnings = [f"{file} is laid over its image voxel by voxel although {difference}"] if difference else []
    return mask != 0, warnings


def _check_before_reading(file: Path, reader: Any) -> Header | None:
    check_file(file)
    check_content(file)
    header = read_header(file, reader)
    if header is not None:
        check_header(file, header)
    return header


def _read(read: Callable[[Any], Any], files: Any) -> tuple[Any, list[str]]:
    """The reader's result, and what it printed, as warnings or in the error."""
    named = files if isinstance(files, str) else ", ".join(files)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), quiet_itk():
            result = read(files)
    except Exception as error:
        # Readers raise whatever their library raises, and nnU-Net's print first what is wrong.
        lines = " ".join(said.getvalue().split())
        reason = lines or f"{type(error).__name__}: {message_of_itk(error)}"
        raise ImageError(f"{named} cannot be read: {reason}. Copy or convert the file again.") from error
    printed = " ".join(said.getvalue().split())
    return result, [printed] if printed else []


def _check_voxels(case: ImageCase, data: npt.NDArray[np.float32]) -> list[str]:
    """Faults that only the voxels show; those that can be lived with are returned."""
    if not np.isfinite(data).all():
        refuse_nonfinite(_names(case), int(np.count_nonzero(np.isnan(data))), int(np.count_nonzero(np.isinf(data))))
    constant = [bool(channel.min() == channel.max()) for channel in data]
    if all(constant):
        raise ImageError(f"{_names(case)}: every voxel is {data.flat[0]:g}, there is nothing to learn. Leave it out.")
    warnings = []
    for file, channel, same in zip(case.images, data, constant, strict=True):
        said = (
            f"is {channel.flat[0]:g} everywhere" if same else looks_like_labels(channel) or intensity_outlier(channel)
        )
        warnings += [f"{file}: {said}"] if said else []
    return warnings


def looks_like_labels(volume: npt.NDArray[np.float32]) -> str | None:
    """That a volume has hardly any different values, in words; None if it has more."""
    voxels = volume.ravel()
    if len(np.unique(voxels[:: max(1, 10 * voxels.size // _SAMPLE)])) > _LABELS:
        return None
    values = len(np.unique(voxels))
    return f"only {values} different values, as in a map of labels" if values <= _LABELS else None


def intensity_outlier(volume: npt.NDArray[np.float32]) -> str | None:
    """A voxel far beyond all others, in words; None if there is none.

    It is far if it lies beyond the 0.1th or the 99.9th percentile by more than :data:`OUTLIER` times their distance.
    """
    voxels = volume.ravel()
    low, high = np.percentile(voxels[:: max(1, voxels.size // _SAMPLE)], [0.1, 99.9])
    spread = high - low
    if spread == 0:
        return None
    smallest, largest = float(volume.min()), float(volume.max())
    if largest - high > OUTLIER * spread or low - smallest > OUTLIER * spread:
        return (
            f"intensities reach from {smallest:g} to {largest:g}, but 99.8 % of the voxels lie within {low:g} to "
            f"{high:g}. A stray voxel? It is kept; normalisation by mean and deviation suffers from it"
        )
    return None


def _names(case: ImageCase) -> str:
    return ", ".join(map(str, case.images))


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
