"""``pretrain_data.json`` as dataclasses: the format of nnssl, field for field, read strictly and written as it was.

``Collection`` → datasets → subjects → sessions → images, with optional masks. The keys of the objects are the names of
datasets, subjects and sessions. ``channel_paths`` of an image and ``inverted_masks`` of a dataset or of the collection
are ours; everything else is what nnssl reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_pretrain.data.collection.entries import LABEL, LIST, OBJECT, TEXT, Entries, shown
from ssl_pretrain.files import read_json

MASK_NAMES = ("anonymization_mask", "anatomy_mask")
"""Entries of ``associated_masks``."""


@dataclass(kw_only=True)
class Part:
    """What every object of the document has.

    Attributes:
        extra: entries that the format does not know; they are written back.
        absent: optional entries that the document did not have. They are not written while they are None, so that a
            document is written as it was read.
    """

    extra: dict[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def _written(self, **entries: Any) -> dict[str, Any]:
        kept = {name: value for name, value in entries.items() if value is not None or name not in self.absent}
        return {**kept, **self.extra}


def _common(found: Entries) -> dict[str, Any]:
    """The fields of :class:`Part`; to be asked for last."""
    return {"extra": found.rest(), "absent": frozenset(found.absent)}


@dataclass(kw_only=True)
class AssociatedMasks(Part):
    """Masks of an image, as paths.

    Attributes:
        anonymization_mask: not 0 where the image was made unrecognisable.
        anatomy_mask: not 0 where there is anatomy.

    Either is 0 there and not 0 elsewhere if ``inverted_masks`` of the dataset names it.
    """

    anonymization_mask: str | None = None
    anatomy_mask: str | None = None

    @classmethod
    def from_dict(cls, content: object, where: str) -> AssociatedMasks:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        # Both must be named, as in nnssl: a misspelt one would otherwise be a mask that nobody uses.
        masks = {name: found.nullable(name, TEXT) for name in MASK_NAMES}
        return cls(**masks, **_common(found))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        return self._written(anonymization_mask=self.anonymization_mask, anatomy_mask=self.anatomy_mask)


@dataclass(kw_only=True)
class Image(Part):
    """One image.

    Attributes:
        name: unique within its session; usually the name of the file.
        image_path: of the first channel.
        modality: such as ``T1w`` or ``CT``.
        image_info: anything, such as ``derived_from`` or the scanner.
        associated_masks: where there are any.
        channel_paths: of further channels, in their order; None for an image of one channel. Not known to nnssl.
    """

    name: str
    image_path: str
    modality: str
    image_info: dict[str, Any] | None = None
    associated_masks: AssociatedMasks | None = None
    channel_paths: list[str] | None = None

    @classmethod
    def from_dict(cls, content: object, where: str) -> Image:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        entries = {name: found.required(name, TEXT) for name in ("name", "image_path", "modality")}
        masks = found.optional("associated_masks", OBJECT)
        return cls(
            **entries,
            image_info=found.optional("image_info", OBJECT),
            associated_masks=None
            if masks is None
            else AssociatedMasks.from_dict(masks, found.place("associated_masks")),
            channel_paths=_texts(found.optional("channel_paths", LIST), found.place("channel_paths")),
            **_common(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        channels = {} if self.channel_paths is None else {"channel_paths": self.channel_paths}
        return self._written(
            name=self.name,
            image_path=self.image_path,
            modality=self.modality,
            image_info=self.image_info,
            associated_masks=None if self.associated_masks is None else self.associated_masks.to_dict(),
            **channels,
        )


@dataclass(kw_only=True)
class Session(Part):
    """The images of one visit."""

    images: list[Image] = field(default_factory=list)
    session_id: int | str | None = None
    session_info: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: object, where: str) -> Session:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        images = found.required("images", LIST)
        return cls(
            images=[Image.from_dict(image, f"{found.place('images')}[{i}]") for i, image in enumerate(images)],
            session_id=found.optional("session_id", LABEL),
            session_info=found.optional("session_info", OBJECT),
            **_common(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        images = [image.to_dict() for image in self.images]
        return self._written(session_id=self.session_id, session_info=self.session_info, images=images)


@dataclass(kw_only=True)
class Subject(Part):
    """One person: what is never divided between training and validation."""

    sessions: dict[str, Session] = field(default_factory=dict)
    subject_id: int | str | None = None
    subject_info: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: object, where: str) -> Subject:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        sessions = found.required("sessions", OBJECT)
        return cls(
            sessions={key: Session.from_dict(s, f"{found.place('sessions')}.{key}") for key, s in sessions.items()},
            subject_id=found.optional("subject_id", LABEL),
            subject_info=found.optional("subject_info", OBJECT),
            **_common(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        sessions = _dicts(self.sessions)
        return self._written(subject_id=self.subject_id, sessions=sessions, subject_info=self.subject_info)


@dataclass(kw_only=True)
class Dataset(Part):
    """The subjects of one study.

    Attributes:
        dataset_index: its name in identifiers, such as ``ds000001``.
        name: a longer one.
        dataset_info: anything; ``image_quality_score`` is a list of scores by modality, see :mod:`.flatten`.
        subjects: by their names.
        inverted_masks: those of ``anonymization_mask`` and ``anatomy_mask`` that are the other way round; None where
            nobody says so, which is what the collection says. Not known to nnssl, which does not look at it.
    """

    dataset_index: int | str
    name: str | None = None
    dataset_info: dict[str, Any] | None = None
    subjects: dict[str, Subject] = field(default_factory=dict)
    inverted_masks: list[str] | None = None

    @classmethod
    def from_dict(cls, content: object, where: str) -> Dataset:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        subjects = found.required("subjects", OBJECT)
        return cls(
            dataset_index=found.required("dataset_index", LABEL),
            name=found.optional("name", TEXT),
            dataset_info=found.optional("dataset_info", OBJECT),
            subjects={key: Subject.from_dict(s, f"{found.place('subjects')}.{key}") for key, s in subjects.items()},
            inverted_masks=_inverted_masks(found),
            **_common(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        return self._written(
            dataset_index=self.dataset_index,
            name=self.name,
            dataset_info=self.dataset_info,
            **({} if self.inverted_masks is None else {"inverted_masks": self.inverted_masks}),
            subjects=_dicts(self.subjects),
        )


@dataclass(kw_only=True)
class Collection(Part):
    """A whole ``pretrain_data.json``.

    Attributes:
        collection_index: number of the dataset that is made of it.
        collection_name: such as ``Dataset745_OpenMind``.
        datasets: by their names.
        inverted_masks: of the datasets that do not say themselves, see :class:`Dataset`; None where nobody says so, and
            then none is.
        file: where it was read from. Relative paths are relative to its folder; without one, to the current folder.
    """

    collection_index: int | str
    collection_name: str
    datasets: dict[str, Dataset] = field(default_factory=dict)
    inverted_masks: list[str] | None = None
    file: Path | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_dict(cls, content: object, where: str = "") -> Collection:
        """Raises ValueError with the place of what is missing or wrong."""
        found = Entries(content, where)
        datasets = found.required("datasets", OBJECT)
        return cls(
            collection_index=found.required("collection_index", LABEL),
            collection_name=found.required("collection_name", TEXT),
            datasets={key: Dataset.from_dict(d, f"{found.place('datasets')}.{key}") for key, d in datasets.items()},
            inverted_masks=_inverted_masks(found),
            **_common(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the document."""
        return self._written(
            collection_index=self.collection_index,
            collection_name=self.collection_name,
            **({} if self.inverted_masks is None else {"inverted_masks": self.inverted_masks}),
            datasets=_dicts(self.datasets),
        )

    def images(self) -> Iterator[tuple[str, str, str, str, Image]]:
        """Keys of dataset, subject and session, place in the document, image: of every image, in their order."""
        for dataset, content in self.datasets.items():
            for subject, person in content.subjects.items():
                for session, visit in person.sessions.items():
                    where = f"datasets.{dataset}.subjects.{subject}.sessions.{session}.images"
                    for i, image in enumerate(visit.images):
                        yield dataset, subject, session, f"{where}[{i}]", image


def read_collection(file: Path) -> Collection:
    """Read a ``pretrain_data.json``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a field is missing or wrong; names the file and the place in it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Make it with nnUNetv2_make_collection, or correct the path.")
    # pandas writes NaN for an empty cell.
    content = read_json(file, object, remedy="Correct it, or make it again.", not_finite=True)
    try:
        collection = Collection.from_dict(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}. The format is in documentation/how-to/collections.md.") from error
    collection.file = file.absolute()
    return collection


def _dicts(parts: Mapping[str, Session | Subject | Dataset]) -> dict[str, Any]:
    return {key: part.to_dict() for key, part in parts.items()}


def _inverted_masks(found: Entries) -> list[str] | None:
    where = found.place("inverted_masks")
    names = _texts(found.optional("inverted_masks", LIST), where)
    for name in names or ():
        if name not in MASK_NAMES:
            raise ValueError(f"{where} may name {' and '.join(MASK_NAMES)}, got {shown(name)}")
    return names


def _texts(values: list[Any] | None, where: str) -> list[str] | None:
    for i, value in enumerate(values or ()):
        if not isinstance(value, str):
            raise ValueError(f"{where}[{i}] must be {TEXT.name}, got {shown(value)}")
    return values
