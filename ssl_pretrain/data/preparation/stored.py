"""A preprocessed case on disk: nnU-Net's own files, and ours for the masks. It exists when its image does."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import OURS, MaskKind
from ssl_pretrain.files import write_atomic
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.harmless import read_pickle

IMAGE_ENDING = ".b2nd"
KINDS: tuple[MaskKind, ...] = ("anonymization", "anatomy")
"""Masks that a case may have."""


def names_in(folder: Path) -> set[str]:
    """What is in a folder, in one listing: to ask for each of 100 000 files takes minutes on a network drive."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def image_file(folder: Path, identifier: str) -> Path:
    """The file whose presence says that a case is complete."""
    return folder / f"{identifier}{IMAGE_ENDING}"


def mask_file(folder: Path, kind: MaskKind, identifier: str) -> Path:
    """The mask of a case, of one kind."""
    return folder / kind / f"{identifier}{IMAGE_ENDING}"


def read_properties(folder: Path, identifier: str) -> dict[str, Any] | None:
    """What is kept with a case; None if that cannot be read."""
    try:
        properties = read_pickle(folder / f"{identifier}.pkl")
    except Exception:
        # A damaged pickle raises anything.
        return None
    return properties if isinstance(properties, dict) and OURS in properties else None


@dataclass(frozen=True, kw_only=True)
class PreprocessedCase:
    """The arrays of a case.

    Attributes:
        image: float32 ``(C, D, H, W)``.
        segmentation: int16 ``(1, D, H, W)``, nnU-Net's: -1 outside of what is not 0 in the image, else 0.
        properties: nnU-Net's and ours.
        masks: kind of mask to uint8 ``(1, D, H, W)``, 0 or 1.
    """

    image: npt.NDArray[np.float32]
    segmentation: npt.NDArray[np.int16]
    properties: Mapping[str, Any]
    masks: Mapping[MaskKind, npt.NDArray[np.uint8]] = field(default_factory=dict)


def store(case: PreprocessedCase, folder: Path, identifier: str, patch: Triple, staging: Path) -> None:
    """Write a case so that it is never seen half: elsewhere, read back, then renamed, the image last.

    Args:
        case: what to write.
        folder: where it will be.
        identifier: name of the files.
        patch: voxels per axis, which nnU-Net's chunks depend on.
        staging: a folder on the same disk for what is not complete.

    Raises:
        OSError: it cannot be written, or reads back as something else; nothing of it is left.
    """
    try:
        with tempfile.TemporaryDirectory(dir=staging) as beside:
            _write(case, Path(beside), identifier, patch)
            _compare(case, Path(beside), identifier)
            _move(Path(beside), folder, identifier)
    except (OSError, RuntimeError, ValueError) as error:
        # blosc2 reports a full disk as RuntimeError or ValueError.
        free = shutil.disk_usage(folder).free / 2**30
        raise OSError(
            f"{identifier} could not be written to {folder}: {' '.join(str(error).split())}. {free:.2f} GiB are free "
            "there: is there no space left, or a quota? Free some, then run the command again."
        ) from error


def renew_info(folder: Path, identifier: str, info: CaseInfo) -> None:
    """Replace what is known about a finished case; its voxels stay."""
    properties = read_properties(folder, identifier)
    if properties is not None:
        properties[OURS]["info"] = info.to_dict()
        write_atomic(folder / f"{identifier}.pkl", "wb", lambda handle: pickle.dump(properties, handle))


def discard(folder: Path, identifier: str) -> None:
    """From now on a case does not exist."""
    image_file(folder, identifier).unlink(missing_ok=True)


def _write(case: PreprocessedCase, beside: Path, identifier: str, patch: Triple) -> None:
    """As nnU-Net's preprocessor writes a case."""
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    blocks, chunks = comp_blosc2_params(case.image.shape, patch, case.image.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(case.segmentation.shape, patch, case.segmentation.itemsize)
    nnUNetDatasetBlosc2.save_case(
        case.image,
        case.segmentation,
        dict(case.properties),
        str(beside / identifier),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )
    for kind, mask in case.masks.items():
        file = mask_file(beside, kind, identifier)
        file.parent.mkdir()
        blocks, chunks = comp_blosc2_params(mask.shape, patch, mask.itemsize)
        options = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
        blosc2.asarray(np.ascontiguousarray(mask), urlpath=str(file), chunks=chunks, blocks=blocks, cparams=options)
    for file in beside.rglob("*.*"):
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def _compare(case: PreprocessedCase, beside: Path, identifier: str) -> None:
    """A disk that is full does not always say so."""
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{identifier}{IMAGE_ENDING}": case.image,
        f"{identifier}_seg{IMAGE_ENDING}": case.segmentation,
    }
    arrays |= {f"{kind}/{identifier}{IMAGE_ENDING}": mask for kind, mask in case.masks.items()}
    wrong = [name for name, array in arrays.items() if not np.array_equal(read_whole(beside / name), array)]
    if wrong or read_properties(beside, identifier) is None:
        raise OSError(f"{', '.join(wrong) or f'{identifier}.pkl'} reads back as something else than was written")


def _move(beside: Path, folder: Path, identifier: str) -> None:
    discard(folder, identifier)
    for kind in KINDS:
        source, target = mask_file(beside, kind, identifier), mask_file(folder, kind, identifier)
        if source.is_file():
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
        else:
            target.unlink(missing_ok=True)
    for name in (f"{identifier}_seg{IMAGE_ENDING}", f"{identifier}.pkl", f"{identifier}{IMAGE_ENDING}"):
        (beside / name).replace(folder / name)


def read_whole(file: Path) -> npt.NDArray[Any]:
    """A whole array; not mapped into memory, where a truncated file would end the process."""
    import blosc2

    return np.asarray(blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})[:])


def fault_of(folder: Path, identifier: str, channels: int, masks: tuple[MaskKind, ...] = ()) -> str | None:
    """What is wrong with a case that exists, found by reading all of it; None if nothing is.

    Args:
        folder: where it is.
        identifier: name of the files.
        channels: channels it must have.
        masks: kinds of mask it must have.
    """
    if read_properties(folder, identifier) is None:
        return f"{identifier}.pkl cannot be read"
    expected: dict[str, type] = {f"{identifier}{IMAGE_ENDING}": np.float32, f"{identifier}_seg{IMAGE_ENDING}": np.int16}
    expected |= {f"{kind}/{identifier}{IMAGE_ENDING}": np.uint8 for kind in masks}
    space: tuple[int, ...] | None = None
    for name, number in expected.items():
        try:
            array = read_whole(folder / name)
        except Exception as error:
            # blosc2 raises whatever the damage leads to.
            return f"{name} cannot be read ({type(error).__name__}: {error})"
        first = channels if space is None else 1
        space = space or array.shape[1:]
        if array.dtype != number or array.ndim != 4 or array.shape != (first, *space):
            return f"{name} has the shape {array.shape} and type {array.dtype}"
        if not np.isfinite(array).all() or (number is np.uint8 and array.max() > 1):
            return f"{name} has values that were never written"
    return None
