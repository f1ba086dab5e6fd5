"""Folders in the layout of BIDS (the Brain Imaging Data Structure) -> a collection.

``sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value…]_T1w.nii.gz``: folders of subjects, of sessions where there are any,
and of kinds of data; a name is pairs of key and value, and a suffix that says what was acquired.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_pretrain.data.collection.model import AssociatedMasks, Collection, Image
from ssl_pretrain.data.collection.paths import written_path
from ssl_pretrain.data.collection.writing import NO_SESSION, add_image, new_collection

DATATYPES = ("anat", "ct", "pet")
"""Folders that are searched. func, dwi and perf hold time series, fmap and the rest no anatomy."""

ENDINGS = (".nii.gz", ".nii")
DEFACE_MASK = "defacemask"
NO_IMAGES = ("mask", "dseg", "probseg", DEFACE_MASK)
"""Suffixes of masks and segmentations."""

NO_DATASETS = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")
"""Folders of a BIDS dataset that hold no data of its own, though there may be folders of subjects in them."""

LAYOUT = "sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """An image or a mask, taken apart by its name."""

    path: Path
    dataset: str
    subject: str
    session: str
    entities: frozenset[str]
    suffix: str

    def mask_key(self, suffix: str) -> tuple[Path, frozenset[str], str]:
        """Folder, entities without ``mod`` and suffix of the image."""
        return self.path.parent, frozenset(e for e in self.entities if not e.startswith("mod-")), suffix


def bids_collection(
    folder: Path,
    file: Path,
    *,
    index: int = 1,
    name: str | None = None,
    datatypes: Sequence[str] = DATATYPES,
    masks: bool = True,
    absolute: bool = False,
) -> Collection:
    """A collection of the 3-D images in a BIDS dataset, or in a folder of several.

    The modality is the suffix. What ``participants.tsv`` says about a subject becomes its ``subject_info``. What is
    left out is logged: other datatypes, volumes with more than three axes, masks and segmentations, links to files that
    were not downloaded. Derivatives are not searched.

    Args:
        folder: holds ``sub-*`` folders, or folders that hold them.
        file: where the collection will be written. Files below its folder are named relative to it.
        index: number of the dataset that is to be made of it.
        name: of the dataset; default the name of the folder.
        datatypes: folders to search in every session.
        masks: take ``_defacemask`` files as anonymisation masks.
        absolute: name all files by absolute paths.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not in the layout, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Correct the path (-i).")
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (removes "..", follows no links)
    collection = new_collection(index, name or re.sub(r"[^\w-]+", "_", folder.name), file)
    left_out: Counter[str] = Counter()
    studies = _datasets(folder)
    found = [item for study in studies for item in _files(study, datatypes, left_out)]
    images = [item for item in found if item.suffix not in NO_IMAGES and _is_volume(item.path, left_out)]
    deface = _deface_masks(found, images) if masks else {}
    left_out["masks and segmentations"] = sum(item.suffix in NO_IMAGES for item in found) - len(deface)
    report = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()) if count)
    if not images:
        raise ValueError(
            f"No image in {folder}: {report or 'its sub-* folders are empty'}. Searched: {', '.join(datatypes)} "
            f"(-datatypes), files such as {LAYOUT}."
        )
    people = {study.name: _participants(study / "participants.tsv") for study in studies}
    for item in images:
        mask = deface.get(item.path)
        path = None if mask is None else written_path(mask, file, absolute=absolute)
        image = Image(
            name=item.path.name,
            image_path=written_path(item.path, file, absolute=absolute),
            modality=item.suffix,
            image_info={},
            associated_masks=AssociatedMasks(anonymization_mask=path),
        )
        add_image(
            collection, item.dataset, item.subject, item.session, image, people[item.dataset].get(item.subject, {})
        )
    if report:
        logger.info("Left out: %s", report)
    return collection


def _datasets(folder: Path) -> list[Path]:
    """The folder itself, or those in it that hold subjects."""
    if _subjects(folder):
        return [folder]
    children = sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in NO_DATASETS)
    found = [child for child in children if _subjects(child)]
    if not found:
        raise ValueError(
            f"{folder} is not in BIDS layout: neither it nor a folder in it has folders sub-*, with files such as "
            f"{LAYOUT}. Images in any other folders need no collection: give them to nnUNetv2_preprocess_unlabeled -i."
        )
    return found


def _subjects(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("sub-*") if p.is_dir())


def _files(study: Path, datatypes: Sequence[str], left_out: Counter[str]) -> Iterator[_File]:
    """The NIfTI files of a dataset that are there and called as BIDS calls them."""
    for subject in _subjects(study):
        sessions = sorted(p for p in subject.glob("ses-*") if p.is_dir())
        for visit in (subject, *sessions):
            session = NO_SESSION if visit == subject else visit.name
            for datatype in sorted(p for p in visit.iterdir() if p.is_dir() and p not in sessions):
                files = [p for p in sorted(datatype.iterdir()) if p.name.endswith(ENDINGS)]
                if datatype.name not in datatypes:
                    left_out[f"in {datatype.name} folders"] += len(files)
                    continue
                for path in files:
                    yield from _named(path, study.name, subject.name, session, left_out)


def _named(path: Path, dataset: str, subject: str, session: str, left_out: Counter[str]) -> Iterator[_File]:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    first, *entities, suffix = stem.split("_") if "_" in stem else (stem, "")
    if first != subject or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        left_out["with names that are not those of BIDS"] += 1
    elif not path.exists():
        left_out["links to files that are not there (datalad get downloads them)"] += 1
    else:
        yield _File(path, dataset, subject, session, frozenset(entities), suffix)


def _is_volume(path: Path, left_out: Counter[str]) -> bool:
    """Whether a file holds one volume, as far as its header says."""
    import nibabel

    try:
        shape: tuple[int, ...] = nibabel.load(path).shape  # type: ignore[attr-defined]
    except Exception:
        # Not this command's to judge: preprocessing says of every file what is wrong with it.
        return True
    if all(size == 1 for size in shape[3:]):
        return True
    left_out["with more than three axes"] += 1
    return False


def _deface_masks(found: Sequence[_File], images: Sequence[_File]) -> dict[Path, Path]:
    """Image -> its mask. A mask names the image's suffix with ``mod-``, or else is that of the only image it can be."""
    by_key = {image.mask_key(image.suffix): image.path for image in images}
    alike: dict[tuple[Path, frozenset[str]], list[str]] = defaultdict(list)
    for parent, entities, suffix in by_key:
        alike[parent, entities].append(suffix)
    masks: dict[Path, Path] = {}
    unused = 0
    for mask in (item for item in found if item.suffix == DEFACE_MASK):
        suffixes = [e.removeprefix("mod-") for e in mask.entities if e.startswith("mod-")]
        suffixes = suffixes or alike[mask.mask_key("")[:2]]
        image = by_key.get(mask.mask_key(suffixes[0])) if len(suffixes) == 1 else None
        if image is None:
            unused += 1
        else:
            masks[image] = mask.path
    if masks:
        logger.info(
            "Took %d _defacemask files as anonymisation masks: what is not 0 in them counts as removed. BIDS leaves "
            "open whether that is so; look at one, and leave them out where 1 is what was kept (--no_masks)",
            len(masks),
        )
    if unused:
        logger.warning("%d _defacemask files belong to no image, or to several, and are not used", unused)
    return masks


def _participants(file: Path) -> dict[str, dict[str, Any]]:
    """What ``participants.tsv`` says: name of the subject's folder -> column -> value; nothing without the file."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t")
        if "participant_id" not in (reader.fieldnames or ()):
            raise ValueError(f"{file} has no column participant_id. Correct or remove it.")
        rows = [{key: cell for key, cell in row.items() if key and cell} for row in reader]
    people = {}
    for row in rows:
        name = "sub-" + row.pop("participant_id", "").strip().removeprefix("sub-")
        people[name] = {key: _value(cell.strip()) for key, cell in row.items() if cell.strip() not in ("", "n/a")}
    return people


def _value(cell: str) -> str | int | float:
    """Whole numbers and decimal numbers as such; a leading zero, as in a code, makes a text."""
    if re.fullmatch(r"-?(0|[1-9]\d*)", cell):
        return int(cell)
    return float(cell) if re.fullmatch(r"-?\d+\.\d+", cell) else cell
