"""Paths in a collection: absolute, relative to the file that they stand in, or ``$VARIABLE/…``."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def resolve_path(text: str, folder: Path, where: str) -> Path:
    """A path as it stands in the document -> a path on this machine; whether there is a file is not looked at.

    Args:
        text: a path whose first part may be ``$`` and the name of any environment variable.
        folder: what a relative path is relative to.
        where: place of the path in the document, for an error.

    Raises:
        ValueError: empty, or its variable is not set.
        FileNotFoundError: its variable names no folder.
    """
    if no_path(text):
        raise ValueError(f"{where} is {text!r}, which is no path. Correct it, or remove the image")
    first, _, rest = text.partition("/")
    if not first.startswith("$"):
        return folder / text
    name, value = first[1:], os.environ.get(first[1:])
    if not value:
        raise ValueError(
            f"{where} is {text!r}, but the environment variable {name} is not set. Set it to the folder that holds the "
            f"images (export {name}=/path/to/folder), or correct the path"
        )
    if not _is_folder(value):
        raise FileNotFoundError(
            f"{where} is {text!r}, but the environment variable {name} is {value!r}, which is not a folder. Correct "
            "the variable or the path"
        )
    return Path(value) / rest.lstrip("/")


def no_path(text: str) -> bool:
    """Whether an entry stands for "none": empty, or the ``nan`` of an empty cell, alone or joined to a folder."""
    return text.strip().rpartition("/")[2].casefold() in ("", "nan")


def written_path(file: Path, document: Path, *, absolute: bool = False) -> str:
    """How a file is written into a document: relative where it lies below the document's folder, else absolute.

    So folder and document can be moved together. Parts are separated by ``/`` on every system.

    Args:
        file: an image or a mask.
        document: the ``pretrain_data.json`` to be.
        absolute: always absolute.
    """
    folder = Path(os.path.abspath(document.parent))  # noqa: PTH100 (removes "..", follows no links)
    target = Path(os.path.abspath(file))  # noqa: PTH100
    if absolute or not target.is_relative_to(folder):
        return target.as_posix()
    return target.relative_to(folder).as_posix()


@lru_cache(maxsize=64)
def _is_folder(path: str) -> bool:
    # A collection names the same few folders a hundred thousand times.
    return Path(path).is_dir()
