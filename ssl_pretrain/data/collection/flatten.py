"""A collection -> the cases to preprocess: one per image, with identifier, masks and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.collection.entries import LIST, NUMBER, TEXT, Entries
from ssl_pretrain.data.collection.mask_senses import check_senses, inverted_in
from ssl_pretrain.data.collection.model import MASK_NAMES, Collection, Dataset, Image
from ssl_pretrain.data.collection.paths import no_path, resolve_path
from ssl_pretrain.data.preparation.image_case import ImageCase

SCORES = "image_quality_score"
"""In ``dataset_info``: a list of objects with ``modality``, ``derived_from`` and the score, as nnssl writes them."""

_UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^\.|[ .]$')

Scores = dict[tuple[str, str | None], float]


def image_cases(collection: Collection) -> list[ImageCase]:
    """The cases of a collection, in its order. Files are not opened, nor looked for.

    The identifier is nnssl's unique id, ``collection__dataset__subject__session__image`` without the file ending, with
    characters that a file name cannot have percent-encoded, see :func:`safe_name`. A subject is one within its dataset
    and collection.

    Raises:
        ValueError: no image, two with one identifier, a path that cannot be resolved, a malformed score, or OpenMind's
            masks without a word about their sense; names the file and the place in it.
        FileNotFoundError: the variable in a path names no folder.
    """
    source = collection.file or "The collection"
    folder = Path() if collection.file is None else collection.file.parent
    found: dict[str, tuple[str, ImageCase]] = {}
    try:
        for where, case in _cases(collection, folder):
            if case.identifier in found:
                raise ValueError(
                    f"{found[case.identifier][0]} and {where} are both called {case.identifier!r}. Give one of them "
                    "another name"
                )
            found[case.identifier] = (where, case)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{source}: {error}.") from error
    if not found:
        raise ValueError(f"{source} lists no image.")
    check_senses(collection)
    return [case for _, case in found.values()]


def safe_name(text: str) -> str:
    """A text as part of a file name on any system; different texts stay different.

    Separators, wildcards, control characters, a dot in front, a dot or a space at the end and ``%`` are
    percent-encoded: ``a/b`` becomes ``a%2Fb``. So is the underscore of ``_seg`` at the end, because nnU-Net takes
    ``…_seg.b2nd`` for a segmentation. Spaces within and letters of any language stay.
    """
    safe = _UNSAFE.sub(lambda match: quote(match[0], safe="").replace(".", "%2E"), text)
    return re.sub("_seg$", "%5Fseg", safe)


def without_ending(name: str) -> str:
    """A file's name without the ending of an image format that nnU-Net reads."""
    for ending in _image_endings():
        if name.casefold().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def _cases(collection: Collection, folder: Path) -> Iterator[tuple[str, ImageCase]]:
    scores = {key: _scores(dataset, f"datasets.{key}") for key, dataset in collection.datasets.items()}
    for key, subject, session, where, image in collection.images():
        dataset = collection.datasets[key].dataset_index
        person = f"{collection.collection_name}__{dataset}__{subject}"
        paths = {"image_path": image.image_path}
        paths |= {f"channel_paths[{i}]": path for i, path in enumerate(image.channel_paths or ())}
        channels = tuple(resolve_path(path, folder, f"{where}.{name}") for name, path in paths.items())
        masks = _masks(image, folder, where)
        yield (
            where,
            ImageCase(
                identifier=safe_name(f"{person}__{session}__{without_ending(image.name)}"),
                images=channels,
                anonymization_mask=masks["anonymization_mask"],
                anatomy_mask=masks["anatomy_mask"],
                inverted=inverted_in(collection, collection.datasets[key]),
                info=CaseInfo(
                    dataset=str(dataset),
                    subject=person,
                    session=session,
                    modality=image.modality,
                    quality=scores[key].get((image.modality, _derived_from(image))),
                ),
            ),
        )


def _masks(image: Image, folder: Path, where: str) -> dict[str, Path | None]:
    given = image.associated_masks
    texts = {name: getattr(given, name, None) for name in MASK_NAMES}
    return {
        name: None if text is None or no_path(text) else resolve_path(text, folder, f"{where}.associated_masks.{name}")
        for name, text in texts.items()
    }


def _derived_from(image: Image) -> str | None:
    value = (image.image_info or {}).get("derived_from")
    return value if isinstance(value, str) and value else None


def _scores(dataset: Dataset, where: str) -> Scores:
    """Scores of a dataset's images by modality and by what they were derived from; the first of several counts."""
    listed = Entries(dataset.dataset_info or {}, f"{where}.dataset_info").optional(SCORES, LIST)
    scores: Scores = {}
    for i, content in enumerate(listed or ()):
        entry = Entries(content, f"{where}.dataset_info.{SCORES}[{i}]")
        score = entry.nullable(SCORES, NUMBER)
        if score is not None:
            key = (entry.required("modality", TEXT), entry.optional("derived_from", TEXT) or None)
            scores.setdefault(key, float(score))
    return scores


@lru_cache(maxsize=1)
def _image_endings() -> tuple[str, ...]:
    """Longest first, so that ``.nii.gz`` is taken off whole."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    endings = {ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}
    return tuple(sorted(endings, key=lambda ending: (-len(ending), ending)))
