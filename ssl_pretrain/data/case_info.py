"""What is known about a case besides its voxels; kept with the preprocessed case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """Where an image comes from; None where nobody said.

    Attributes:
        dataset: name of the dataset within its collection.
        subject: the person; unique over all collections. Images of one subject are never split.
        session: the visit.
        modality: such as ``T1w`` or ``CT``.
        quality: image quality score, 1 (best) to 5 (worst) in OpenMind.
    """

    dataset: str | None = None
    subject: str | None = None
    session: str | None = None
    modality: str | None = None
    quality: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, in plain types."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CaseInfo:
        """The inverse of :meth:`to_dict`; other keys are left aside."""
        return cls(**{name: content[name] for name in NAMES if name in content})


NAMES = tuple(f.name for f in fields(CaseInfo))
