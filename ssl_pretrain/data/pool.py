"""Cases of several folders, and how one of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.functional.geometry import Triple

Balance = Literal["cases", "datasets", "subjects"]


@dataclass(frozen=True)
class Source:
    """A folder of preprocessed cases.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        cases: of the folder.
        spacing: mm per voxel along each axis.
        channel_names: what the images show, from ``dataset.json``; empty where nobody said.
    """

    dataset: str
    cases: Cases
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_names: tuple[str, ...] = ()


class Case(NamedTuple):
    """A case of one of the sources.

    Attributes:
        source: number of the source.
        identifier: of the case.
        subject: who it shows; cases of one subject are not split over training and validation.
        info: what else is known.
    """

    source: int
    identifier: str
    subject: str
    info: CaseInfo


class CasePool:
    """Cases to draw crops from.

    Args:
        sources: the folders.
        members: the cases; at least one.
        balance: what is drawn uniformly first: a case, a dataset, or a subject; then one of its cases.

    Attributes:
        modalities: names of what the channels of the cases show, sorted.
        modality: (cases, channels), of each case's channels the number among those names: the modality of the case
            where its collection says it, else the name of the channel.
    """

    def __init__(self, sources: Sequence[Source], members: Sequence[Case], balance: Balance = "cases") -> None:
        self.sources = tuple(sources)
        # Arrays, not objects: reading processes share their memory, which counting references would copy.
        self.identifiers = np.array([case.identifier for case in members])
        self.source_of = np.array([case.source for case in members], dtype=np.int16)
        names = [""] * len(members)
        if balance == "subjects":
            names = [case.subject for case in members]
        elif balance == "datasets":
            names = [self.sources[case.source].dataset for case in members]
        _, groups = np.unique(np.array(names), return_inverse=True)
        shown = [_modalities(self.sources[case.source], case.info) for case in members]
        self.modalities: tuple[str, ...] = tuple(sorted({name for row in shown for name in row}))
        numbers = {name: number for number, name in enumerate(self.modalities)}
        self.modality = np.array([[numbers[name] for name in row] for row in shown], dtype=np.int16)
        self._by_group = np.argsort(groups, kind="stable")
        self._ends = np.cumsum(np.bincount(groups))

    @classmethod
    def of(cls, cases: Cases, identifiers: Sequence[str] | None = None) -> CasePool:
        """Some cases of one folder; all by default."""
        names = cases.identifiers if identifiers is None else identifiers
        return cls([Source(cases.folder.name, cases)], [Case(0, name, name, CaseInfo()) for name in names])

    @property
    def names(self) -> list[str]:
        """Dataset, folder and identifier of every case."""
        folders = [f"{source.dataset}/{source.cases.folder.name}" for source in self.sources]
        cases = zip(self.source_of.tolist(), self.identifiers.tolist(), strict=True)
        return [f"{folders[source]}/{name}" for source, name in cases]

    def __len__(self) -> int:
        return len(self.identifiers)

    def draw(self, rng: np.random.Generator) -> int:
        """Row of a case."""
        group = int(rng.integers(len(self._ends))) if len(self._ends) > 1 else 0
        start = int(self._ends[group - 1]) if group else 0
        return int(self._by_group[start + int(rng.integers(int(self._ends[group]) - start))])

    def median_shape(self) -> Triple:
        """Voxels per axis of the cases, the median of each axis, rounded down."""
        shapes = [cases.shape(name) for cases, name in map(self.case, range(len(self)))]
        d, h, w = np.median(shapes, axis=0).astype(int).tolist()
        return d, h, w

    def case(self, row: int) -> tuple[Cases, str]:
        """Folder and identifier of a case."""
        return self.sources[self.source_of[row]].cases, str(self.identifiers[row])


def _modalities(source: Source, info: CaseInfo) -> tuple[str, ...]:
    """What each channel of a case shows."""
    if info.modality is not None:
        return (info.modality,) * source.cases.channels
    return source.channel_names or ("unknown",) * source.cases.channels
