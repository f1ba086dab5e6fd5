"""Samples -> batches: in one piece where nothing has to be computed, else with what the device needs to finish them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.data.spatial import resample
from ssl_pretrain.functional.geometry import Triple

TOUCHED = 1e-3
"""Share of an interpolated voxel that comes from ignored ones, from which on it is ignored too."""


class Sample(NamedTuple):
    """A crop, finished or not.

    Attributes:
        voxels: (C, D, H, W) of the patch, or of the box that the affine map reads; float32. With ``masked``, the last
            channel is 1 where voxels are to be ignored.
        affine: (3, 4), still to be applied, or None.
        masked: whether there is such a channel.
        case: identifier.
        number: of the crop.
    """

    voxels: Tensor
    affine: Tensor | None
    masked: bool
    case: str
    number: int


def assemble(samples: Sequence[Sample], *, pinned: bool = False) -> dict[str, Any]:
    """A batch of samples.

    Args:
        samples: at least one.
        pinned: put it into page-locked memory, from which a GPU reads without waiting.

    Returns:
        ``image`` (B, C, D, H, W) and, with masks, ``ignored`` (B, 1, D, H, W), boolean; ``case`` and ``index``. Where
        samples are not finished, ``plain``, ``boxes`` (filled up to one size), ``affine`` and ``moved`` instead of the
        images: see :func:`finish`.
    """
    batch: dict[str, Any] = {
        "case": [sample.case for sample in samples],
        # No tensor: those go to the device, and to ask it for a number would be to wait for it.
        "index": [sample.number for sample in samples],
    }
    unfinished = [sample for sample in samples if sample.affine is not None]
    plain = [sample.voxels for sample in samples if sample.affine is None]
    masked = samples[0].masked
    if not unfinished:
        return {**batch, **_split(_stacked(plain, pinned), masked)}
    affine = torch.stack([sample.affine for sample in unfinished if sample.affine is not None])
    batch |= {"boxes": _stacked([s.voxels for s in unfinished], pinned), "affine": affine, "masked": masked}
    if plain:
        batch["plain"] = _stacked(plain, pinned)
    return {**batch, "moved": [sample.affine is not None for sample in samples]}


def finish(batch: dict[str, Any], patch: Triple) -> dict[str, Any]:
    """Rotate, scale and mirror the crops that need it, all in one ``grid_sample``, on the device where they are."""
    if "boxes" not in batch:
        return batch
    boxes, moved = batch["boxes"], batch["moved"]
    done = resample(boxes, batch["affine"], patch)
    if not all(moved):
        # Numbers known to the host, so that the GPU is not waited for.
        whole = done.new_empty(len(moved), *done.shape[1:])
        sources = {True: iter(done), False: iter(batch["plain"])}
        for row, is_moved in enumerate(moved):
            whole[row] = next(sources[is_moved])
        done = whole
    kept = {key: batch[key] for key in ("case", "index")}
    return {**kept, **_split(done, batch["masked"])}


def _split(voxels: Tensor, masked: bool) -> dict[str, Tensor]:
    if not masked:
        return {"image": voxels}
    return {"image": voxels[:, :-1].contiguous(), "ignored": voxels[:, -1:] > TOUCHED}


def _stacked(parts: Sequence[Tensor], pinned: bool) -> Tensor:
    """(B, C, D, H, W); smaller volumes are filled up with zeros at their ends."""
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    batch = torch.empty((len(parts), *shape), dtype=torch.float32, pin_memory=pinned)
    for target, part in zip(batch, parts, strict=True):
        c, d, h, w = part.shape
        target[:c, :d, :h, :w] = part
        # Only what is left is set to 0: boxes are large, and most of the batch is covered.
        target[:, d:], target[:, :d, h:], target[:, :d, :h, w:] = 0, 0, 0
    return batch
