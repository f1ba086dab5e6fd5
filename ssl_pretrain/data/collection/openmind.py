"""OpenMind's table of metadata -> a collection.

What is downloaded is a table, ``openneuro_metadata.csv``, and beside it the folder ``OpenMind`` with images and masks:
``ds000001/sub-01/[ses-1/]anat/sub-01_T1w.nii.gz``. Maps computed from diffusion images are called ``FA.nii.gz`` and the
like, in a folder that has the name of the diffusion image.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_pretrain.data.collection.flatten import SCORES
from ssl_pretrain.data.collection.model import AssociatedMasks, Collection, Image
from ssl_pretrain.data.collection.paths import written_path
from ssl_pretrain.data.collection.tables import Row, read_rows
from ssl_pretrain.data.collection.writing import NO_SESSION, add_image, new_collection

TABLE = "openneuro_metadata.csv"
IMAGES = "OpenMind"
MASKS = ("anon_mask_path", "anat_mask_path")
NEEDED = ("image_path", "modality", "derived_from", *MASKS, SCORES)
INVERTED_MASKS = ("anatomy_mask",)
"""OpenMind's ``fb_mask`` files are 1 in the background; nnssl's loader centres crops where they are 0."""

ABOUT_SUBJECT = ("age", "sex", "handedness", "race", "weight", "bmi", "health_status")
ABOUT_IMAGE = (
    "derived_from",
    "is_brain_extract",
    "manufacturer",
    "model_name",
    "phase_encoding_direction",
    "magnetic_field_strength",
    "repetition_time",
    "echo_time",
)
NUMBERS = (
    *("age", "weight", "bmi", "is_brain_extract", "magnetic_field_strength", "repetition_time", "echo_time"),
    SCORES,
)
EMPTY = ("nan", "na", "n/a", "none", "null", "<na>")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Scan:
    """A row: where it belongs, and its parts of the path."""

    row: Row
    dataset: str
    subject: str
    session: str
    parts: tuple[str, ...]

    @property
    def place(self) -> tuple[str, str, str]:
        return self.dataset, self.subject, self.session

    @property
    def name(self) -> str:
        """As nnssl names it: a map after the image that it was derived from, ``sub-01_dwi_FA.nii.gz``."""
        # The folder is called sub-01_dwi__Data; the underscore in front of its last five letters stays.
        return self.parts[-2][:-5] + self.parts[-1] if "derived_from" in self.row else self.parts[-1]

    @property
    def long_name(self) -> str:
        """Unique within the session, for images whose short names are not."""
        return "_".join(part for part in self.parts[2:] if part != self.session)


def openmind_collection(
    folder: Path,
    file: Path,
    *,
    index: int = 745,
    name: str = "OpenMind",
    check_files: bool = True,
    absolute: bool = False,
) -> Collection:
    """A collection of the images in OpenMind's table.

    Args:
        folder: holds the table; the images are in its sub-folder ``OpenMind``, or directly in it.
        file: where the collection will be written. Files below its folder are named relative to it.
        index: number of the dataset that is to be made of it.
        name: of the dataset.
        check_files: leave out images that are not on disk, and masks, with a warning. Otherwise files are not looked
            for.
        absolute: name all files by absolute paths.

    Raises:
        FileNotFoundError: no table, or none of its images is on disk.
        ValueError: a column is missing, or a row has no usable path.
    """
    collection = new_collection(index, name, file)
    scans = _once([_scan(row, line) for line, row in read_table(folder / TABLE)])
    root = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    if check_files:
        scans = _on_disk(scans, root)
    rows: dict[str, list[Row]] = defaultdict(list)
    for scan, unique in zip(scans, _names(scans), strict=True):
        rows[scan.dataset].append(scan.row)
        about_subject = {key: _value(key, scan.row[key]) for key in ABOUT_SUBJECT if key in scan.row}
        paths = {
            column: written_path(root / scan.row[column], file, absolute=absolute)
            for column in ("image_path", *MASKS)
            if column in scan.row
        }
        image = Image(
            name=unique,
            image_path=paths["image_path"],
            modality=scan.row["modality"],
            image_info={key: _value(key, scan.row[key]) for key in ABOUT_IMAGE if key in scan.row},
            associated_masks=AssociatedMasks(
                anonymization_mask=paths.get("anon_mask_path"), anatomy_mask=paths.get("anat_mask_path")
            ),
        )
        add_image(collection, *scan.place, image, about_subject)
    for key, dataset in collection.datasets.items():
        dataset.dataset_info = {SCORES: _scores(rows[key])}
        dataset.inverted_masks = list(INVERTED_MASKS)
    return collection


def read_table(file: Path) -> list[tuple[int, Row]]:
    """Number of the line and cells of each row of the table; empty cells are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that is needed is missing, or the table is empty.
    """
    if not file.is_file():
        above = f" It is in {file.parent.parent}: give that folder." if (file.parent.parent / TABLE).is_file() else ""
        raise FileNotFoundError(
            f"{file} does not exist. The folder (-i) must hold OpenMind's table, {TABLE}, and beside it the folder "
            f"{IMAGES} with the images, as they are downloaded.{above}"
        )
    columns, rows = read_rows(file, ",", quoting=True)
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}. Download OpenMind's table again.")
    if not rows:
        raise ValueError(f"{file} has no rows. Download OpenMind's table again.")
    return [(line, {key: cell for key, cell in row.items() if cell.casefold() not in EMPTY}) for line, row in rows]


def _scan(row: Row, line: int) -> _Scan:
    parts = tuple(row.get("image_path", "").split("/"))
    if len(parts) < 3 or "modality" not in row:
        raise ValueError(
            f"{TABLE}, line {line}: image_path {row.get('image_path')!r} and modality {row.get('modality')!r} must be "
            "DATASET/SUBJECT/…/FILE and a name. Correct the line, or download the table again."
        )
    session = parts[2] if parts[2].startswith("ses-") else NO_SESSION
    return _Scan(row, parts[0], parts[1], session, parts)


def _once(scans: Sequence[_Scan]) -> list[_Scan]:
    """The scans without those whose image an earlier row has."""
    once = list({scan.row["image_path"]: scan for scan in reversed(scans)}.values())[::-1]
    if len(once) < len(scans):
        logger.warning("%d rows of the table repeat the image of an earlier row", len(scans) - len(once))
    return once


def _on_disk(scans: Sequence[_Scan], root: Path) -> list[_Scan]:
    """The scans whose images exist, with the masks that exist; says what does not."""
    found, without = [], []
    lost: dict[str, list[str]] = {column: [] for column in MASKS}
    for scan in scans:
        if not (root / scan.row["image_path"]).is_file():
            without.append(scan.row["image_path"])
            continue
        for column, paths in lost.items():
            if column in scan.row and not (root / scan.row[column]).is_file():
                paths.append(scan.row.pop(column))
        found.append(scan)
    if not found:
        raise FileNotFoundError(
            f"None of the {len(without)} images of the table is in {root}, e.g. {without[0]}. Download the images, or "
            "give the folder that holds both (-i)."
        )
    if without:
        logger.warning(
            "%d of %d images of the table are not in %s and are left out, e.g. %s",
            len(without),
            len(scans),
            root,
            without[0],
        )
    for column, paths in lost.items():
        if paths:
            logger.warning(
                "%d files of %s are not in %s: their images are used without, e.g. %s",
                len(paths),
                column,
                root,
                paths[0],
            )
    return found


def _names(scans: Sequence[_Scan]) -> list[str]:
    """A name for each image, unique within its session."""
    short = Counter((scan.place, scan.name) for scan in scans)
    return [scan.name if short[scan.place, scan.name] == 1 else scan.long_name for scan in scans]


def _scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One score for each modality and origin; the first of several, as they are scored by dataset."""
    scores: dict[tuple[str, str | None], Any] = {}
    for row in rows:
        if SCORES in row:
            scores.setdefault((row["modality"], row.get("derived_from")), _value(SCORES, row[SCORES]))
    return [{"modality": m, "derived_from": origin, SCORES: score} for (m, origin), score in scores.items()]


def _value(column: str, cell: str) -> Any:
    """A cell as pandas reads it, which nnssl uses: numbers in columns of numbers, true and false."""
    if cell in ("True", "False"):
        return cell == "True"
    if column in NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell
