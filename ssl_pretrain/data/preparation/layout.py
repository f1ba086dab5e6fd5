"""How many channels images have and how their files end, from their names, before there is a dataset that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_pretrain.data.preparation.sources import COLLECTION_ENDING, RAW, RAW_FOLDERS


@dataclass(frozen=True)
class Layout:
    """What :func:`~ssl_pretrain.data.preparation.sources.find_images` wants to know.

    Attributes:
        channels: per case.
        file_ending: such as ``.nii.gz``.
    """

    channels: int
    file_ending: str


def layout_of(inputs: Sequence[str], raw_dataset: Path | None = None) -> Layout:
    """The layout of the first case of the inputs; ``_0000.nii.gz`` where there is none.

    Args:
        inputs: as of ``find_images``.
        raw_dataset: where ``raw`` looks.

    Raises:
        ValueError: all images are of formats for 2-D images, or a collection cannot be read.
        FileNotFoundError: a collection does not exist.
    """
    collection = next((source for source in inputs if source.endswith(COLLECTION_ENDING)), None)
    if collection is not None:
        return _of_collection(Path(collection))
    files = [file for source in inputs for file in _files_of(source, raw_dataset)]
    volumes, flat = _endings()
    images = [file for file in files if file.name.endswith(volumes)]
    if not images:
        pictures = [file for file in files if file.name.endswith(flat)]
        if pictures:
            raise ValueError(
                f"{pictures[0]} is a 2-D image; pretraining is for 3-D networks. Stack the slices of a volume into one "
                "file, such as .nii.gz."
            )
        # What is wrong with the inputs is said by who looks for images there.
        return Layout(1, ".nii.gz")
    return _of_first(images, volumes)


def ending_of(file: Path) -> str:
    """The ending by which nnU-Net knows an image format, such as ``.nii.gz``; else what stands after the last dot."""
    volumes, flat = _endings()
    return next((ending for ending in (*volumes, *flat) if file.name.endswith(ending)), file.suffix)


def _files_of(source: str, raw_dataset: Path | None) -> list[Path]:
    if source != RAW and not Path(source).is_dir():
        return [Path(source)]
    folders = [raw_dataset / name for name in RAW_FOLDERS] if source == RAW and raw_dataset else [Path(source)]
    there = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    return [file for file in there if not file.name.startswith(".")]


def _of_collection(file: Path) -> Layout:
    from ssl_pretrain.data.collection.flatten import image_cases
    from ssl_pretrain.data.collection.model import read_collection

    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Name folders, image files, a pretrain_data.json or 'raw'.")
    first = image_cases(read_collection(file))[0]
    return Layout(len(first.images), ending_of(first.images[0]))


def _of_first(images: Sequence[Path], endings: Sequence[str]) -> Layout:
    """Files ``<case>_0000``, ``<case>_0001``, … are channels of one case."""
    first = images[0]
    ending = next(ending for ending in endings if first.name.endswith(ending))
    match = re.fullmatch(r"(.+)_\d{4}", first.name.removesuffix(ending))
    if match is None:
        return Layout(1, ending)
    pattern = re.compile(rf"{re.escape(match[1])}_\d{{4}}{re.escape(ending)}")
    same = [file for file in images if file.parent == first.parent and pattern.fullmatch(file.name)]
    return Layout(len(same), ending)


def _endings() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Endings of nnU-Net's readers of volumes and of those of 2-D images alone; longest first."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    readers = [reader for reader in LIST_OF_IO_CLASSES if reader is not NaturalImage2DIO]
    volumes = {ending for reader in readers for ending in reader.supported_file_endings}
    flat = set(NaturalImage2DIO.supported_file_endings) - volumes
    by_length = [tuple(sorted(endings, key=lambda ending: (-len(ending), ending))) for endings in (volumes, flat)]
    return by_length[0], by_length[1]
