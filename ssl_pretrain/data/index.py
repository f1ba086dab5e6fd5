"""Shapes of the preprocessed cases of a folder, kept in one file so that a run starts without opening every case."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, StrictInt

from ssl_pretrain.files import read_json, validated, write_atomic, write_or_spare

log = logging.getLogger("ssl_pretrain")

WORTH_A_WORD = 1000
"""Cases to open from which on the log says that it takes a while."""

VERSION = 1
"""Of the file's layout."""

Stamp = tuple[StrictInt, StrictInt, StrictInt]
"""Bytes and time of change (ns) of the image, and time of change of its ``.pkl``: what tells an old case from a new one
of the same name."""


class StoredInfo(BaseModel):
    """What is remembered of where an image comes from."""

    dataset: str | None = None
    subject: str | None = None
    session: str | None = None
    modality: str | None = None
    quality: float | None = None


class StoredAbout(BaseModel):
    """What else is remembered about a case."""

    info: StoredInfo = StoredInfo()
    made_with: str = ""


Size = Annotated[int, Field(strict=True, gt=0, lt=2**31)]


class StoredIndex(BaseModel):
    """An index file: for each case its stamp, its shape and what else is known."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)]
    cases: dict[str, tuple[Stamp, tuple[Size, Size, Size, Size], StoredAbout]]


@dataclass(frozen=True)
class Entry:
    """What is remembered about a case.

    Attributes:
        shape: (C, D, H, W).
        about: whatever else is known, in plain types.
    """

    shape: tuple[int, int, int, int]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class CaseIndex:
    """The cases of a folder, by row.

    Attributes:
        identifiers: names, sorted.
        shapes: (N, 4) channels and voxels.
        about: what else is known about each.
    """

    identifiers: list[str]
    shapes: npt.NDArray[np.int32]
    about: list[Mapping[str, Any]]


def index_file(folder: Path) -> Path:
    """Where the index of a folder is kept: beside it, since nnU-Net wants nothing but cases inside."""
    return folder.with_name(f"{folder.name}.index")


def read_index(
    folder: Path, identifiers: Sequence[str], suffix: str, read: Callable[[str], Entry], spare: Path | None = None
) -> CaseIndex:
    """The index of a folder; cases that are new or changed since it was written are opened, and it is written again.

    Args:
        folder: of the cases.
        identifiers: the cases there are.
        suffix: of the image files.
        read: opens a case; may raise.
        spare: where the index is kept if it cannot be written beside the folder; None for nowhere.

    Raises:
        CaseError: from ``read``: a case cannot be used.
    """
    stamps = _stamps(folder)
    kept = index_file(folder)
    known = _load(kept) or (_load(spare / kept.name) if spare else {})
    rows: dict[str, list[Any]] = {}
    stale = []
    for name in identifiers:
        # nnU-Net prefers an unpacked copy, too.
        unpacked = stamps.get(f"{name}.npy") if suffix == ".npz" else None
        image = unpacked or stamps.get(f"{name}{suffix}")
        stamp = None if image is None else (*image, stamps.get(f"{name}.pkl", (0, 0))[1])
        row = known.get(name)
        if row is not None and stamp is not None and tuple(row[0]) == stamp:
            rows[name] = row
        else:
            stale.append((name, stamp))
    if len(stale) >= WORTH_A_WORD:
        log.info("reading the sizes of %d cases of %s; done once", len(stale), folder.name)
    try:
        for name, stamp in stale:
            entry = read(name)
            rows[name] = [stamp, entry.shape, dict(entry.about)]
    finally:
        # Also where a case is bad: the others need not be opened again once it is gone.
        if stale or len(known) != len(rows):
            _save(kept, rows, spare)
    shapes = np.array([rows[name][1] for name in identifiers], dtype=np.int32).reshape(-1, 4)
    return CaseIndex(list(identifiers), shapes, [rows[name][2] for name in identifiers])


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Bytes and time of change of the files of a folder, segmentations left out."""
    stamps = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith("_seg.b2nd"):
                status = entry.stat()
                stamps[entry.name] = (status.st_size, status.st_mtime_ns)
    return stamps


def _load(file: Path) -> dict[str, list[Any]]:
    """Rows of an index file; none if it is missing, unreadable or of another version: it can always be made again."""
    try:
        content = read_json(file)
        validated(content, StoredIndex, file)
    except (OSError, ValueError) as error:
        log.debug("the index is made anew: %s", error)
        return {}
    rows: dict[str, list[Any]] = content["cases"]
    return rows


def _save(file: Path, rows: Mapping[str, Any], spare: Path | None) -> None:
    """Write the index; a folder that cannot be written to is no reason not to train."""
    text = json.dumps({"version": VERSION, "cases": rows}, separators=(",", ":"))
    advice = "Other runs open all cases again for their sizes."
    try:
        write_or_spare(file, spare, lambda path: write_atomic(path, "w", lambda handle: handle.write(text)), advice)
    except OSError as error:
        log.debug("no index was kept: %s", error)
