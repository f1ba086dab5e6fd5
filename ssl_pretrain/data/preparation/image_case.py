"""An image that is to be preprocessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import MaskKind


@dataclass(frozen=True, kw_only=True)
class ImageCase:
    """Files of one case.

    Attributes:
        identifier: what its preprocessed files are called; unique, usable as a file name.
        images: one file per channel, in the order of the channels.
        anonymization_mask: not 0 where the image was made unrecognisable, such as a removed face.
        anatomy_mask: not 0 where there is anatomy.
        inverted: masks that are the other way round: 0 where the image was made unrecognisable, or where there is
            anatomy.
        info: where it comes from.
    """

    identifier: str
    images: tuple[Path, ...]
    anonymization_mask: Path | None = None
    anatomy_mask: Path | None = None
    inverted: frozenset[MaskKind] = frozenset()
    info: CaseInfo = field(default_factory=CaseInfo)


class ImageError(ValueError):
    """An image cannot be used; the message names the file, the fault and the remedy."""
