"""Preprocessed cases on disk, in nnU-Net's formats. Only the voxels asked for are decompressed.

Which cases there are is asked of nnU-Net's dataset classes. The images are opened here: those classes open a case
together with its segmentation, and pretraining needs none.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ssl_pretrain.functional.geometry import Triple

Box = tuple[Triple, Triple]
"""First voxel and the voxel after the last one, per axis. May reach outside the volume."""


class CaseError(ValueError):
    """A case cannot be used; the message names the file, the fault and the remedy."""


class Cases:
    """The images of a folder of preprocessed cases; labels are not needed.

    Args:
        folder: holds ``<case>.b2nd`` (or ``.npz``/``.npy``) and ``<case>.pkl``, as nnU-Net writes them.
        channels: channels every case must have.

    Raises:
        FileNotFoundError: the folder holds no case.
        ValueError: it mixes file formats.
    """

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder = folder
        self.channels = channels
        self.suffix = _suffix_of(folder)
        self.identifiers = _identifiers_of(folder, self.suffix)
        self._shapes: dict[str, Triple] = {}

    def file(self, identifier: str) -> Path:
        """The file that holds the image of a case."""
        unpacked = self.folder / f"{identifier}.npy"
        return unpacked if unpacked.is_file() else self.folder / f"{identifier}{self.suffix}"

    def shape(self, identifier: str) -> Triple:
        """Voxels per axis.

        Raises:
            CaseError: the file does not open, or has another number of channels than the plans.
        """
        if identifier not in self._shapes:
            self._shapes[identifier] = self._read_shape(identifier)
        return self._shapes[identifier]

    def _read_shape(self, identifier: str) -> Triple:
        c, d, h, w = self._open(identifier, header_only=True).shape
        if c != self.channels:
            raise CaseError(
                f"{self.file(identifier)} has {c} channels, the plans say {self.channels}. Was the dataset changed "
                "after planning? Run nnUNetv2_plan_and_preprocess again."
            )
        return int(d), int(h), int(w)

    def read(self, identifier: str, box: Box) -> npt.NDArray[np.float32]:
        """The voxels of a box (C, d, h, w); zeros where it reaches outside the volume, as nnU-Net pads.

        Raises:
            CaseError: the file is corrupt, or there is a NaN or an Inf in the box.
        """
        shape = self.shape(identifier)
        inside = [slice(max(lo, 0), min(hi, n)) for lo, hi, n in zip(*box, shape, strict=True)]
        result = np.zeros((self.channels, *(hi - lo for lo, hi in zip(*box, strict=True))), dtype=np.float32)
        if any(part.start >= part.stop for part in inside):
            return result
        target = tuple(slice(p.start - lo, p.stop - lo) for p, lo in zip(inside, box[0], strict=True))
        result[(slice(None), *target)] = self._decompress(identifier, inside)
        if not np.isfinite(result).all():
            raise CaseError(
                f"{self.file(identifier)} holds NaN or Inf. Remove the case from the dataset or repair its image, then "
                "run nnUNetv2_preprocess again."
            )
        return result

    def foreground(self, identifier: str) -> dict[Any, npt.NDArray[np.int64]]:
        """Sampled voxels of each class that the case has, as nnU-Net stored them; empty without labels."""
        file = self.folder / f"{identifier}.pkl"
        if not file.is_file():
            return {}
        with file.open("rb") as handle:
            # Written by nnU-Net's preprocessing on this machine and read the same way by its own trainer.
            properties = pickle.load(handle)
        locations = properties.get("class_locations") or {}
        return {label: voxels for label, voxels in locations.items() if len(voxels)}

    def _decompress(self, identifier: str, part: Sequence[slice]) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(self._open(identifier)[(slice(None), *part)], dtype=np.float32)
        except (CaseError, MemoryError):
            raise
        except Exception as error:
            raise _corrupt(self.file(identifier), error) from error

    def _open(self, identifier: str, *, header_only: bool = False) -> Any:
        """Something with a shape that can be sliced; a ``.npz`` is decompressed whole, or its header alone."""
        file = self.file(identifier)
        if not file.is_file():
            raise CaseError(f"Case {identifier!r} has no image: {file} does not exist. Run nnUNetv2_preprocess again.")
        try:
            if file.suffix == ".b2nd":
                return _open_blosc2(file)
            if file.suffix == ".npy":
                return np.load(file, mmap_mode="r")
            return _read_npz_header(file) if header_only else np.load(file)["data"]
        except Exception as error:
            raise _corrupt(file, error) from error


def _open_blosc2(file: Path) -> Any:
    import os

    import blosc2

    # Memory mapping does not work on Windows (nnU-Net issue 2723).
    mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapped)


def _read_npz_header(file: Path) -> Any:
    """An array without data that has the shape of the image in a ``.npz``."""
    with zipfile.ZipFile(file) as archive, archive.open("data.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(member)
    return np.broadcast_to(np.float32(0), shape)


def _corrupt(file: Path, error: Exception) -> CaseError:
    return CaseError(
        f"{file} is truncated or corrupt ({type(error).__name__}: {error}). Delete it and run nnUNetv2_preprocess for "
        "this configuration again."
    )


def _suffix_of(folder: Path) -> str:
    suffixes = {p.suffix for p in folder.iterdir() if p.suffix in (".b2nd", ".npz")}
    if len(suffixes) > 1:
        raise ValueError(
            f"{folder} mixes .b2nd and .npz cases, so it is unclear which belong to the current preprocessing. Delete "
            "the folder and run nnUNetv2_preprocess again."
        )
    if not suffixes:
        raise FileNotFoundError(f"{folder} holds no preprocessed case (.b2nd or .npz). Run nnUNetv2_preprocess.")
    return suffixes.pop()


def _identifiers_of(folder: Path, suffix: str) -> list[str]:
    from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping

    return sorted(cast("list[str]", file_ending_dataset_mapping[suffix[1:]].get_identifiers(str(folder))))
