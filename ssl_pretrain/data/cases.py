"""Preprocessed cases on disk, in nnU-Net's formats. Only the voxels asked for are decompressed.

Which cases there are is asked of nnU-Net's dataset classes. The images are opened here: those classes open a case
together with its segmentation, and pretraining needs none.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.index import CaseIndex, Entry, read_index
from ssl_pretrain.files import validated
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.harmless import RefusalError, read_pickle

MaskKind = Literal["anonymization", "anatomy"]
"""Masks that a case may have; the names of their folders."""

UNLABELLED = "_unlabeled"
"""Ending of the folder of cases that were made without labels."""

OURS = "ssl_pretrain"
"""Key of our entry among the properties that nnU-Net keeps of a case."""

Box = tuple[Triple, Triple]
"""First voxel and the voxel after the last one, per axis. May reach outside the volume."""


class CaseError(ValueError):
    """A case cannot be used; the message names the file, the fault and the remedy."""


class Cases:
    """The images of a folder of preprocessed cases; labels are not needed.

    Args:
        folder: holds ``<case>.b2nd`` (or ``.npz``/``.npy``) and ``<case>.pkl``, as nnU-Net writes them.
        channels: channels every case must have.
        labelled: made by nnU-Net from labelled images; otherwise by ``nnUNetv2_preprocess_unlabeled``, which keeps with
            each case what is known about it.
        spare: folder for the index, where it cannot be written beside the folder.

    Raises:
        FileNotFoundError: the folder holds no case.
        ValueError: it mixes file formats.
    """

    def __init__(self, folder: Path, channels: int, *, labelled: bool = True, spare: Path | None = None) -> None:
        self.folder = folder
        self.channels = channels
        self.labelled = labelled
        self.spare = spare
        self.suffix = _suffix_of(folder)
        self.identifiers = _identifiers_of(folder, self.suffix)
        self._shapes: dict[str, Triple] = {}

    def file(self, identifier: str) -> Path:
        """The file that holds the image of a case."""
        unpacked = self.folder / f"{identifier}.npy"
        return unpacked if self.suffix == ".npz" and unpacked.is_file() else self.folder / f"{identifier}{self.suffix}"

    def index(self) -> CaseIndex:
        """Shapes of all cases and what is known about them; opens only those that no earlier run has seen.

        Raises:
            CaseError: a file does not open, or has another number of channels than the plans.
        """
        index = read_index(self.folder, self.identifiers, self.suffix, self._entry, self.spare)
        for name, (channels, *shape) in zip(index.identifiers, index.shapes.tolist(), strict=True):
            self._check_channels(name, channels)
            self._shapes[name] = (shape[0], shape[1], shape[2])
        return index

    def shape(self, identifier: str) -> Triple:
        """Voxels per axis.

        Raises:
            CaseError: the file does not open, or has another number of channels than the plans.
        """
        if identifier not in self._shapes:
            c, d, h, w = self._entry(identifier).shape
            self._check_channels(identifier, c)
            self._shapes[identifier] = (d, h, w)
        return self._shapes[identifier]

    def _entry(self, identifier: str) -> Entry:
        c, d, h, w = self._open(identifier, header_only=True).shape
        plain: Mapping[str, Any] = {}
        if not self.labelled:
            file, ours = self._properties_file(identifier), self._ours(identifier)
            about = validated({OURS: ours}, dict[str, _About], file, remedy=_again(file))[OURS]
            plain = {name: value for name, value in asdict(about).items() if name in ours}
        return Entry((int(c), int(d), int(h), int(w)), dict(plain))

    def _check_channels(self, identifier: str, channels: int) -> None:
        if channels != self.channels:
            raise CaseError(
                f"{self.file(identifier)} has {channels} channels, the plans say {self.channels}. Was the dataset "
                "changed after planning? Run nnUNetv2_plan_and_preprocess again."
            )

    def read(self, identifier: str, box: Box) -> npt.NDArray[np.float32]:
        """The voxels of a box (C, d, h, w); zeros where it reaches outside the volume, as nnU-Net pads.

        Raises:
            CaseError: the file is corrupt, or there is a NaN or an Inf in the box.
        """
        file = self.file(identifier)
        voxels = _read_box(file, self._open(identifier), (self.channels, *self.shape(identifier)), box)
        # A sum is several times as fast as asking each voxel; it is finite unless one is not, or all are huge.
        if not np.isfinite(voxels.sum()) and not np.isfinite(voxels).all():
            raise CaseError(
                f"{file} holds NaN or Inf. Remove the case from the dataset or repair its image, then "
                f"run {_command(file)} again."
            )
        return voxels

    def masked(self, kind: MaskKind) -> set[str]:
        """The cases that came with such a mask."""
        folder = self.folder / kind
        return {file.name.removesuffix(".b2nd") for file in folder.iterdir()} if folder.is_dir() else set()

    def read_mask(self, identifier: str, kind: MaskKind, box: Box) -> npt.NDArray[np.float32]:
        """A mask in a box (1, d, h, w), 1 inside the mask and 0 elsewhere; outside the image there is nothing: 0.

        Raises:
            CaseError: the file is corrupt, or not of the image's shape.
        """
        file = self._mask_file(identifier, kind)
        if not file.is_file():
            return np.zeros((1, *(hi - lo for lo, hi in zip(*box, strict=True))), dtype=np.float32)
        return _read_box(file, _opened(file, _open_blosc2), (1, *self.shape(identifier)), box)

    def _mask_file(self, identifier: str, kind: MaskKind) -> Path:
        return self.folder / kind / f"{identifier}.b2nd"

    def anatomy(self, identifier: str) -> npt.NDArray[np.int32]:
        """Sampled voxels (n, 3) of the anatomy mask; none without that mask."""
        file = self._properties_file(identifier)
        return _voxels(self._ours(identifier).get("anatomy_voxels", ()), (3,), file, "anatomy_voxels").astype(np.int32)

    def _ours(self, identifier: str) -> dict[str, Any]:
        return _mapping(self.properties(identifier).get(OURS, {}), self._properties_file(identifier), OURS)

    def _properties_file(self, identifier: str) -> Path:
        return self.folder / f"{identifier}.pkl"

    def properties(self, identifier: str) -> dict[str, Any]:
        """What preprocessing stored about a case; empty where it stored nothing.

        Raises:
            CaseError: it is damaged, of another type, or would run code.
        """
        file = self._properties_file(identifier)
        if not file.is_file():
            return {}
        try:
            return _mapping(read_pickle(file), file)
        except RefusalError as error:
            raise CaseError(
                f"{file} is refused: opening it would run {error}, and what is kept with a case runs nothing. "
                f"{_again(file)}"
            ) from error
        except (OSError, MemoryError, CaseError):
            raise
        except Exception as error:  # a damaged pickle raises anything
            raise _corrupt(file, error) from error

    def foreground(self, identifier: str) -> dict[Any, npt.NDArray[np.int64]]:
        """Sampled voxels of each class that the case has, as nnU-Net stored them; empty without labels."""
        file, name = self._properties_file(identifier), "class_locations"
        locations = _mapping(self.properties(identifier).get(name) or {}, file, name)
        # Of four numbers in nnU-Net's own files: the channel of the segmentation is the first.
        found = {label: _voxels(voxels, (3, 4), file, name) for label, voxels in locations.items()}
        return {label: voxels for label, voxels in found.items() if len(voxels)}

    def _open(self, identifier: str, *, header_only: bool = False) -> Any:
        """Something with a shape that can be sliced; a ``.npz`` is decompressed whole, or its header alone."""
        file = self.file(identifier)
        if not file.is_file():
            raise CaseError(f"Case {identifier!r} has no image: {file} does not exist. Run {_command(file)} again.")
        if file.suffix == ".b2nd":
            return _opened(file, _open_blosc2)
        if file.suffix == ".npy":
            return _opened(file, lambda path: np.load(path, mmap_mode="r"))
        return _opened(file, _read_npz_header if header_only else lambda path: np.load(path)["data"])


def _opened(file: Path, opener: Callable[[Path], Any]) -> Any:
    try:
        return opener(file)
    except Exception as error:
        raise _corrupt(file, error) from error


@dataclass(frozen=True)
class _AboutMask:
    """Whether a mask was turned when it was read, and what speaks for its being the other way round."""

    inverted: bool = False
    doubt: str | None = None


@dataclass(frozen=True)
class _About:
    """What is told of an unlabelled case besides its voxels."""

    info: dict[str, str | float | None] = field(default_factory=dict)
    made_with: str | None = None
    masks: dict[str, _AboutMask] = field(default_factory=dict)


def _mapping(value: Any, file: Path, name: str = "the whole file") -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CaseError(f"{file}: {name} must be a dictionary, got {type(value).__name__}. {_again(file)}")
    return value


def _voxels(value: Any, columns: tuple[int, ...], file: Path, name: str) -> npt.NDArray[np.int64]:
    """Voxels (n, columns); none may be an array of any shape."""
    try:
        found = np.asarray(value)
    except ValueError:  # rows of several lengths
        found = np.zeros((), dtype=object)
    if not found.size:
        return np.zeros((0, columns[-1]), dtype=np.int64)
    if found.ndim != 2 or found.shape[1] not in columns or found.dtype.kind not in "iu":
        raise CaseError(
            f"{file}: {name} must be rows of {' or '.join(map(str, columns))} whole numbers. {_again(file)}"
        )
    return found


def _read_box(file: Path, array: Any, expected: tuple[int, ...], box: Box) -> npt.NDArray[np.float32]:
    """Only what lies inside is decompressed, in one call; the rest is 0."""
    if tuple(array.shape) != expected:
        raise CaseError(
            f"{file} is {tuple(array.shape)} voxels, expected {expected}: it was changed while this run was reading "
            "it, or belongs to another image. Preprocess the case again."
        )
    inside = [slice(max(lo, 0), min(hi, n)) for lo, hi, n in zip(*box, expected[1:], strict=True)]
    shape = (expected[0], *(hi - lo for lo, hi in zip(*box, strict=True)))
    if any(part.start >= part.stop for part in inside):
        return np.zeros(shape, dtype=np.float32)
    try:
        voxels = np.asarray(array[(slice(None), *inside)], dtype=np.float32)
    except MemoryError:
        raise
    except Exception as error:
        raise _corrupt(file, error) from error
    if voxels.shape == shape:
        return voxels
    padded = np.zeros(shape, dtype=np.float32)
    target = tuple(slice(p.start - lo, p.stop - lo) for p, lo in zip(inside, box[0], strict=True))
    padded[(slice(None), *target)] = voxels
    return padded


def _open_blosc2(file: Path) -> Any:
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
    return CaseError(f"{file} is truncated or corrupt ({type(error).__name__}: {error}). {_again(file)}")


def _again(file: Path) -> str:
    return f"Delete it and run {_command(file)} for this configuration again."


def _command(file: Path) -> str:
    """The command that makes a preprocessed file."""
    # A mask lies one folder deeper.
    unlabelled = any(folder.name.endswith(UNLABELLED) for folder in (file.parent, file.parent.parent))
    return "nnUNetv2_preprocess_unlabeled" if unlabelled else "nnUNetv2_preprocess"


def _suffix_of(folder: Path) -> str:
    # Not iterdir: a hundred thousand paths take a second to make.
    with os.scandir(folder) as entries:
        suffixes = {entry.name[entry.name.rfind(".") :] for entry in entries} & {".b2nd", ".npz"}
    if len(suffixes) > 1:
        raise ValueError(
            f"{folder} mixes .b2nd and .npz cases, so it is unclear which belong to the current preprocessing. Delete "
            "the folder and run nnUNetv2_preprocess again."
        )
    if not suffixes:
        raise FileNotFoundError(
            f"{folder} holds no preprocessed case (.b2nd or .npz). Run {_command(folder / 'case')}."
        )
    return suffixes.pop()


def _identifiers_of(folder: Path, suffix: str) -> list[str]:
    from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping

    return sorted(cast("list[str]", file_ending_dataset_mapping[suffix[1:]].get_identifiers(str(folder))))
