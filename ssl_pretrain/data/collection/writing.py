"""Making a collection: its name, its images gathered by dataset, subject and session, the file."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import Collection, Dataset, Image, Session, Subject
from ssl_pretrain.files import write_json

FILE_NAME = "pretrain_data.json"
NO_SESSION = "ses-DEFAULT"
"""Name of the session where there is none, as nnssl calls it."""

logger = logging.getLogger(__name__)


def new_collection(index: int, name: str, file: Path) -> Collection:
    """A collection without images.

    Args:
        index: number of the dataset that is to be made of it.
        name: of the dataset, with or without ``DatasetXXX_`` in front.
        file: where it will be written.

    Raises:
        ValueError: name and number disagree, or cannot be those of a dataset of nnU-Net.
    """
    if not 0 < index < 1000:
        raise ValueError(f"The number of a dataset is from 1 to 999, got {index} (-d).")
    prefix = f"Dataset{index:03d}_"
    other = re.match(r"Dataset\d+_", name)
    if other and other[0] != prefix:
        raise ValueError(f"The name {name!r} belongs to another number than {index}. Make -name and -d agree.")
    short = name.removeprefix(prefix)
    if not re.fullmatch(r"[\w-]+", short):
        raise ValueError(f"A dataset's name has letters, digits, _ and - only, got {short!r}. Give another (-name).")
    return Collection(collection_index=index, collection_name=prefix + short, file=file.absolute())


def add_image(
    collection: Collection,
    dataset: str,
    subject: str,
    session: str,
    image: Image,
    subject_info: Mapping[str, Any] | None = None,
) -> None:
    """Put an image in its place, made where it is missing; what is known of the subject already is not replaced."""
    study = collection.datasets.setdefault(dataset, Dataset(dataset_index=dataset, dataset_info={}))
    person = study.subjects.setdefault(subject, Subject(subject_id=subject, subject_info={}))
    person.subject_info = {**(subject_info or {}), **(person.subject_info or {})}
    person.sessions.setdefault(session, Session(session_id=session)).images.append(image)


def write_collection(collection: Collection, *, overwrite: bool = False) -> Path:
    """Check that every image has its own identifier, then write the file of the collection.

    Raises:
        ValueError: two images with one identifier, or none at all.
        FileExistsError: the file exists.
        OSError: it cannot be written.
    """
    file = collection.file
    if file is None:
        raise ValueError("The collection has no file. Give it one, or write to_dict() yourself.")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists. Write another file (-o), or replace this one (--overwrite).")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"The folder {file.parent} does not exist. Make it, or write elsewhere (-o).")
    cases = image_cases(collection)
    write_json(collection.to_dict(), file)
    modalities = Counter(str(case.info.modality) for case in cases)
    logger.info(
        "Wrote %s: %d datasets, %d subjects, %d images (%s), %d with an anonymisation mask, %d with an anatomy mask",
        file,
        len(collection.datasets),
        len({case.info.subject for case in cases}),
        len(cases),
        ", ".join(f"{name} {count}" for name, count in modalities.most_common()),
        sum(case.anonymization_mask is not None for case in cases),
        sum(case.anatomy_mask is not None for case in cases),
    )
    return file
