"""Does a mask look as if it were the other way round? Asked when it is made, and before it is pretrained with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.cases import Cases, MaskKind

log = logging.getLogger("ssl_pretrain")

LOOKED_AT = 16
"""Cases of an earlier version that are read whole: a folder has one sense, and reading all would take hours."""


def doubt_about(kind: MaskKind, mask: npt.NDArray[np.bool_], image: npt.NDArray[np.float32]) -> str | None:
    """What speaks for a mask being the other way round, in words; None if nothing does.

    Around anatomy there is air, which is dark in most images; what was made unrecognisable is the smaller part.

    Args:
        kind: of mask.
        mask: ``(D, H, W)``, true where there is anatomy, or where the image was made unrecognisable.
        image: ``(C, D, H, W)``.
    """
    if kind == "anonymization":
        share = float(mask.mean())
        return f"it marks {100 * share:.0f} % of the image" if share > 0.5 else None
    if not mask.any():
        return None
    if mask[np.ix_(*[[0, -1]] * 3)].mean() > 0.5:
        return "it holds the corners of the volume"
    inside = image.mean(axis=(1, 2, 3), where=mask, dtype=np.float64)
    outside = image.mean(axis=(1, 2, 3), where=~mask, dtype=np.float64)
    if (inside < outside).all():
        return f"the image is darker inside it ({inside[0]:.4g} on average) than outside ({outside[0]:.4g})"
    return None


def doubts_in(cases: Cases, kind: MaskKind, identifiers: Sequence[str]) -> list[str | None]:
    """What speaks against the masks of preprocessed cases: case and reason, or None, for each that was looked at.

    Preprocessing has looked at all of them. Of cases of before it did so, :data:`LOOKED_AT` are read here.

    Args:
        cases: where they are.
        kind: of mask.
        identifiers: cases that have such a mask.

    Raises:
        CaseError: a file is corrupt.
    """
    index = cases.index()
    known = {name: about.get("masks", {}).get(kind) for name, about in zip(index.identifiers, index.about, strict=True)}
    doubts = {name: known[name]["doubt"] for name in identifiers if known[name] is not None}
    older = [name for name in identifiers if known[name] is None]
    for name in older[:: -(-len(older) // LOOKED_AT) or 1]:
        box = ((0, 0, 0), cases.shape(name))
        doubts[name] = doubt_about(kind, cases.read_mask(name, kind, box)[0] > 0, cases.read(name, box))
    return [reason and f"{cases.folder.name}, {name}: {reason}" for name, reason in doubts.items()]


def warn_of_doubts(kind: MaskKind, doubts: Sequence[str | None]) -> None:
    """One warning about all masks of a kind that may be the other way round.

    Args:
        kind: of mask.
        doubts: of each mask that was looked at, which it is and what speaks against it, or None.
    """
    found = [doubt for doubt in doubts if doubt is not None]
    if found:
        log.warning(
            "%d of %d %s masks look as if they were the other way round, e.g. %s. Look at one. If 0 is %s, say so in "
            'the collection ("inverted_masks": ["%s_mask"], see documentation/how-to/collections.md) and run '
            "nnUNetv2_preprocess_unlabeled again: it makes these cases anew",
            len(found),
            len(doubts),
            kind,
            found[0],
            "the anatomy" if kind == "anatomy" else "what was made unrecognisable",
            kind,
        )
