"""Folders in the layout of BIDS (the Brain Imaging Data Structure) -> a collection.

``sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value…]_T1w.nii.gz``: folders of subjects, of sessions where there are any,
and of kinds of data; a name is pairs of key and value, and a suffix that says what was acquired.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_pretrain.data.collection.model import AssociatedMasks, Collection, Image
from ssl_pretrain.data.collection.participants import read_participants
from ssl_pretrain.data.collection.paths import written_path
from ssl_pretrain.data.collection.writing import NO_SESSION, add_image, new_collection

DATATYPES = ("anat", "ct", "pet")
"""Folders that are searched. func, dwi and perf hold time series, fmap and the rest no anatomy."""

ENDINGS = (".nii.gz", ".nii")
DEFACE_MASK = "defacemask"
NO_IMAGES = ("mask", "dseg", "probseg", DEFACE_MASK)
"""Suffixes of masks and segmentations."""

NO_MAGNITUDE = ("part-phase", "part-real", "part-imag")
"""Entities of images that are a part of complex numbers. They stand beside the magnitudes and have their suffix."""

OTHER_FORMATS = (".mgz", ".mgh", ".mnc", ".img", ".dcm", ".nrrd", ".mha", ".mhd", ".NII", ".NII.GZ")

NO_DATASETS = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")
"""Folders of a BIDS dataset that hold no data of its own, though there may be folders of subjects in them."""

OTHER_DATATYPES = ("func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "beh", "micr", "motion", "nirs", "mrs", "emg")

LAYOUT = "sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz"

MASKS_LOOKED_AT = 16

DefaceMarks = Literal["removed", "kept"]
"""What is not 0 in a ``_defacemask``, on which BIDS says nothing: what was removed, or what was kept."""

LeftOut = defaultdict[str, list[Path]]
"""What is left out: in words, and the files or folders."""

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
    deface_marks: DefaceMarks = "removed",
    absolute: bool = False,
) -> Collection:
    """A collection of the 3-D images in a BIDS dataset, or in a folder of several.

    The modality is the suffix. What ``participants.tsv`` says about a subject becomes its ``subject_info``. What is
    left out is counted and logged with an example: other datatypes, volumes with more than three axes, parts of complex
    images, masks and segmentations, links to files that were not downloaded, subjects without an image. Derivatives are
    not searched.

    Args:
        folder: holds ``sub-*`` folders, or folders that hold them.
        file: where the collection will be written. Files below its folder are named relative to it.
        index: number of the dataset that is to be made of it.
        name: of the dataset; default the name of the folder.
        datatypes: folders to search in every session.
        masks: take ``_defacemask`` files as anonymisation masks.
        deface_marks: what is not 0 in them.
        absolute: name all files by absolute paths.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not in the layout, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Correct the path (-i).")
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (removes "..", follows no links)
    collection = new_collection(index, name or re.sub(r"[^\w-]+", "_", folder.name), file)
    left_out: LeftOut = defaultdict(list)
    studies = _datasets(folder, left_out)
    found = [item for study in studies for item in _files(study, datatypes, left_out)]
    images = [item for item in found if _is_image(item, left_out)]
    deface = _deface_masks(found, images, deface_marks) if masks else {}
    used = set(deface.values())
    left_out["masks and segmentations"] += [i.path for i in found if i.suffix in NO_IMAGES and i.path not in used]
    if not images:
        raise ValueError(
            f"No image in {folder}: {_counted(left_out, folder) or 'its sub-* folders are empty'}. Searched: "
            f"{', '.join(datatypes)} (-datatypes), files such as {LAYOUT}."
        )
    with_images = {(item.dataset, item.subject) for item in images}
    left_out["subjects without an image"] += [
        person for study in studies for person in _subjects(study) if (study.name, person.name) not in with_images
    ]
    people = {study.name: read_participants(study / "participants.tsv") for study in studies}
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
    if deface and deface_marks == "kept":
        collection.inverted_masks = ["anonymization_mask"]
    if any(left_out.values()):
        logger.info("Left out: %s", _counted(left_out, folder))
    return collection


def _counted(left_out: LeftOut, folder: Path) -> str:
    return ", ".join(
        f"{len(paths)} {what} (e.g. {paths[0].relative_to(folder).as_posix()})"
        for what, paths in sorted(left_out.items())
        if paths
    )


def _datasets(folder: Path, left_out: LeftOut) -> list[Path]:
    """The folder itself, or those in it that hold subjects."""
    children = sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in NO_DATASETS and p.name[0] != ".")
    if people := _subjects(folder):
        left_out["other folders beside the subjects"] += [child for child in children if child not in people]
        return [folder]
    found = [child for child in children if _subjects(child)]
    if not found:
        raise ValueError(
            f"{folder} is not in BIDS layout: neither it nor a folder in it has folders sub-*, with files such as "
            f"{LAYOUT}. Images in any other folders need no collection: give them to nnUNetv2_preprocess_unlabeled -i."
        )
    left_out["folders without sub-* folders"] += [child for child in children if child not in found]
    return found


def _subjects(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("sub-*") if p.is_dir())


def _files(study: Path, datatypes: Sequence[str], left_out: LeftOut) -> Iterator[_File]:
    """The NIfTI files of a dataset that are there and called as BIDS calls them."""
    for subject in _subjects(study):
        sessions = sorted(p for p in subject.glob("ses-*") if p.is_dir())
        for visit in (subject, *sessions):
            session = NO_SESSION if visit == subject else visit.name
            inside = sorted(p for p in visit.iterdir() if p not in sessions)
            left_out["outside of folders such as anat"] += [p for p in inside if p.name.endswith(ENDINGS)]
            for folder in (p for p in inside if p.is_dir()):
                if folder.name in datatypes:
                    files = sorted(folder.iterdir())
                    left_out["in other formats than NIfTI"] += [p for p in files if p.name.endswith(OTHER_FORMATS)]
                    for path in files:
                        if path.name.endswith(ENDINGS):
                            yield from _named(path, study.name, subject.name, session, left_out)
                    continue
                known = folder.name in (*DATATYPES, *OTHER_DATATYPES)
                what = f"in {folder.name} folders" if known else "in folders that BIDS does not know"
                left_out[what] += [p for p in sorted(folder.rglob("*")) if p.name.endswith(ENDINGS)]


def _named(path: Path, dataset: str, subject: str, session: str, left_out: LeftOut) -> Iterator[_File]:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    first, *entities, suffix = stem.split("_") if "_" in stem else (stem, "")
    if first != subject or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        left_out["with names that are not those of BIDS"].append(path)
    elif not path.exists():
        left_out["links to files that are not there, which datalad get downloads"].append(path)
    elif path.suffix == ".gz" and path.with_suffix("").exists():
        # SimpleITK would take the header of the one and the voxels of the other.
        left_out[".nii.gz files beside a .nii of the same name, which is taken"].append(path)
    else:
        yield _File(path, dataset, subject, session, frozenset(entities), suffix)


def _is_image(item: _File, left_out: LeftOut) -> bool:
    """Whether a file holds one volume of what was measured, as far as its name and its header say."""
    import nibabel

    if item.suffix in NO_IMAGES:
        return False
    if item.entities.intersection(NO_MAGNITUDE):
        left_out["phase, real or imaginary parts"].append(item.path)
        return False
    try:
        shape: tuple[int, ...] = nibabel.load(item.path).shape  # type: ignore[attr-defined]
    except Exception:
        # Not this command's to judge: preprocessing says of every file what is wrong with it.
        return True
    if all(size == 1 for size in shape[3:]):
        return True
    left_out["with more than three axes"].append(item.path)
    return False


def _deface_masks(found: Sequence[_File], images: Sequence[_File], marks: DefaceMarks) -> dict[Path, Path]:
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
        _tell_of_masks(list(masks.values()), marks)
    if unused:
        logger.warning("%d _defacemask files belong to no image, or to several, and are not used", unused)
    return masks


def _tell_of_masks(masks: Sequence[Path], marks: DefaceMarks) -> None:
    """How the masks are understood, and whether they look like that: a face is the smaller part of a head."""
    import nibabel
    import numpy as np

    shares = []
    for file in masks[:: -(-len(masks) // MASKS_LOOKED_AT)]:
        with suppress(Exception):  # preprocessing says of every file what is wrong with it
            voxels = np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
            shares.append(np.count_nonzero(voxels) / voxels.size)
    share = float(np.median(shares)) if shares else None
    other = "kept" if marks == "removed" else "removed"
    looks = "" if share is None else f" It is {100 * share:.0f} % of the image (median of {len(shares)} masks)."
    doubtful = share is not None and (share > 0.5) == (marks == "removed")
    logger.log(
        logging.WARNING if doubtful else logging.INFO,
        "Took %d _defacemask files as anonymisation masks: what is not 0 in them counts as %s.%s%s BIDS leaves open "
        "which it is, and programs differ: look at one, and give -defacemask_marks %s if it is that, or --no_masks",
        len(masks),
        marks,
        looks,
        f" That looks like {other}." if doubtful else "",
        other,
    )
