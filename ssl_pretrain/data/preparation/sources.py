"""Which images there are: folders and files by nnU-Net's naming, collections, or what a raw dataset has unlabelled."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError

RAW = "raw"
"""The input that stands for the unlabelled images of the raw dataset."""

RAW_FOLDERS = ("imagesTs", "imagesUn")
"""Folders of a raw dataset that have no labels beside them."""

COLLECTION_ENDING = ".json"

_CHANNEL = re.compile(r"(?P<identifier>.+)_(?P<channel>\d{4})")
_SHOWN = 3


def find_images(
    inputs: Sequence[str], *, channels: int, file_ending: str, raw_dataset: Path | None = None
) -> list[ImageCase]:
    """The cases that the inputs hold, sorted by identifier.

    Args:
        inputs: folders, image files, a ``pretrain_data.json``, or the word ``raw``, in any combination. In folders,
            which are not searched below, and among files a case is ``<identifier>_0000<ending>``, ``…_0001<ending>``.
        channels: channels that every case must have.
        file_ending: of the dataset, such as ``.nii.gz``; other endings of nnU-Net's readers for it are taken as well.
        raw_dataset: the dataset's folder in ``nnUNet_raw``: where ``raw`` looks, and its name makes subjects unique.

    Raises:
        FileNotFoundError: an input does not exist, or holds no image.
        ImageError: names that are no images' names, a missing or surplus channel, two images with one name.
    """
    endings = readable_endings(file_ending)
    cases: list[ImageCase] = []
    for source in inputs:
        if source == RAW:
            cases += _in_folders(_raw_folders(raw_dataset), channels, endings, raw_dataset)
        elif source.endswith(COLLECTION_ENDING):
            cases += _in_collection(Path(source), channels)
        elif Path(source).is_dir():
            cases += _in_folders([Path(source)], channels, endings, raw_dataset)
    files = [Path(s) for s in inputs if s != RAW and not s.endswith(COLLECTION_ENDING) and not Path(s).is_dir()]
    if files:
        _refuse_unreadable(files, endings)
        cases += _by_channel_names(files, channels, endings, raw_dataset)
    _refuse_unusable_names(cases)
    return sorted(cases, key=lambda case: case.identifier)


def readable_endings(file_ending: str) -> tuple[str, ...]:
    """The ending of the dataset and all others that nnU-Net's readers of that ending read, longest first."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    readers = [reader for reader in LIST_OF_IO_CLASSES if file_ending.lower() in reader.supported_file_endings]
    endings = {file_ending, *(ending for reader in readers for ending in reader.supported_file_endings)}
    return tuple(sorted(endings, key=lambda ending: (-len(ending), ending)))


def _raw_folders(raw_dataset: Path | None) -> list[Path]:
    if raw_dataset is None:
        raise ValueError("The input 'raw' needs a dataset whose raw images are meant.")
    found = [raw_dataset / name for name in RAW_FOLDERS if (raw_dataset / name).is_dir()]
    if not found:
        there = " and ".join(str(raw_dataset / name) for name in RAW_FOLDERS)
        raise FileNotFoundError(
            f"The input 'raw' stands for the unlabelled images of the dataset, but neither {there} exists. Put them "
            f"into {raw_dataset / RAW_FOLDERS[-1]}, or name their folder."
        )
    return found


def _in_folders(
    folders: Sequence[Path], channels: int, endings: Sequence[str], raw_dataset: Path | None
) -> list[ImageCase]:
    files = {folder: _files_in(folder) for folder in folders}
    images = [file for there in files.values() for file in there if _ending_of(file, endings)]
    if not images:
        where, all_files = " and ".join(map(str, folders)), [file for there in files.values() for file in there]
        raise FileNotFoundError(f"{where}: no image with the ending {' or '.join(endings)}. {_hint(all_files)}")
    return _by_channel_names(images, channels, endings, raw_dataset)


def _files_in(folder: Path) -> list[Path]:
    """Everything in a folder but what is hidden, such as the ``._name`` files of a Mac."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def _hint(files: Sequence[Path]) -> str:
    """What to do about a folder without images."""
    if not files:
        return "It is empty."
    collection = next((file for file in files if file.suffix == COLLECTION_ENDING), None)
    if collection is not None:
        return f"If {collection.name} describes a collection, name that file."
    if any(file.is_dir() for file in files):
        return (
            f"There are folders, such as {next(file.name for file in files if file.is_dir())}; they are not searched. "
            "Name the one with the images, or make a collection with nnUNetv2_make_collection."
        )
    return f"There: {some(file.name for file in files)}."


def _refuse_unreadable(files: Iterable[Path], endings: Sequence[str]) -> None:
    """Files that were named one by one are all meant."""
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist. Name folders, image files, a pretrain_data.json or 'raw'.")
        if _ending_of(file, endings) is None:
            raise ImageError(
                f"{file} does not end in {' or '.join(endings)}, which is what the dataset's reader reads."
            )


def _by_channel_names(
    files: Sequence[Path], channels: int, endings: Sequence[str], raw_dataset: Path | None
) -> list[ImageCase]:
    """Group files ``<identifier>_<channel><ending>``.

    Files of one folder and ending make a case together, so that a case in two places is seen as two.
    """
    cases: dict[tuple[Path, str, str], dict[int, Path]] = defaultdict(dict)
    nameless = []
    for file in files:
        ending = _ending_of(file, endings) or ""
        match = _CHANNEL.fullmatch(file.name[: len(file.name) - len(ending)])
        if match is None:
            nameless.append(file)
        else:
            cases[file.parent, ending, match["identifier"]][int(match["channel"])] = file
    _refuse_nameless(nameless, endings)
    _refuse_channels(cases, channels)
    prefix = f"{raw_dataset.name}__" if raw_dataset is not None else ""
    return [
        ImageCase(
            identifier=identifier,
            images=tuple(found[channel] for channel in range(channels)),
            info=CaseInfo(subject=prefix + identifier),
        )
        for (_, _, identifier), found in cases.items()
    ]


def _refuse_nameless(files: Sequence[Path], endings: Sequence[str]) -> None:
    if not files:
        return
    ending = _ending_of(files[0], endings) or ""
    stem = files[0].name[: len(files[0].name) - len(ending)]
    if files[0].parent.name.startswith("labels"):
        what = f"{files[0].parent} looks like a folder of labels: name the folder of the images"
    else:
        what = (
            f"Labels do not belong here; an image with a single channel is called {stem}_0000{ending}. Rename, move "
            "away, or make a collection with nnUNetv2_make_collection"
        )
    raise ImageError(f"Files without the number of a channel: {some(files)}. {what}.")


def _refuse_channels(cases: dict[tuple[Path, str, str], dict[int, Path]], channels: int) -> None:
    wanted = set(range(channels))
    missing = {key: wanted - set(found) for key, found in cases.items() if wanted - set(found)}
    surplus = [found[c] for found in cases.values() for c in sorted(set(found) - wanted)]
    if missing:
        names = some(key[0] / f"{key[2]}_{min(gone):04d}{key[1]}" for key, gone in missing.items())
        raise ImageError(
            f"The dataset has {channels} channel{'s' * (channels > 1)}, but these are missing: {names}. Add the files, "
            "or move the other channels of the case away."
        )
    if surplus:
        raise ImageError(
            f"The dataset has {channels} channel{'s' * (channels > 1)}, there are files of others: {some(surplus)}. "
            "Move them away, or take the dataset that these images belong to."
        )


def _in_collection(file: Path, channels: int) -> list[ImageCase]:
    from ssl_pretrain.data.collection.flatten import image_cases
    from ssl_pretrain.data.collection.model import read_collection

    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Name folders, image files, a pretrain_data.json or 'raw'.")
    cases = image_cases(read_collection(file))
    wrong = [case for case in cases if len(case.images) != channels]
    if wrong:
        raise ImageError(
            f"The dataset has {channels} channels, the images of {file} have {len(wrong[0].images)}: "
            f"{some(case.identifier for case in wrong)}. Take a dataset planned for such images "
            "(nnUNetv2_plan_unlabeled makes one)."
        )
    return cases


def _refuse_unusable_names(cases: Sequence[ImageCase]) -> None:
    """Names are those of the preprocessed files."""
    twice = {name for name, count in Counter(case.identifier for case in cases).items() if count > 1}
    if twice:
        first = min(twice)
        files = [str(case.images[0]) for case in cases if case.identifier == first]
        more = f"; there are {len(twice)} such names" if len(twice) > 1 else ""
        raise ImageError(
            f"Two images with one name, {first}: {some(files)}{more}. Rename one of them, or leave one of the folders "
            "or endings away."
        )
    # nnU-Net writes the segmentation of `x` as `x_seg.b2nd`.
    reserved = [case.images[0] for case in cases if case.identifier.endswith("_seg")]
    if reserved:
        raise ImageError(
            f"nnU-Net keeps names that end in _seg for segmentations: {some(reserved)}. Rename the images, or leave "
            "the segmentations away."
        )


def _ending_of(file: Path, endings: Sequence[str]) -> str | None:
    """Which of the endings a file has; the longest."""
    return next((ending for ending in endings if file.name.endswith(ending)), None)


def some(things: Iterable[object]) -> str:
    """The first few of a list, and how many more there are."""
    texts = [str(thing) for thing in things]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
