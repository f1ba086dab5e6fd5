"""Samples -> batches: in one piece where nothing has to be computed, else with what the device needs to finish it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.data.spatial import Affine, resample, within
from ssl_pretrain.functional.geometry import Triple

TOUCHED = 1e-3
"""Share of an interpolated voxel that comes from ignored ones, from which on it is ignored too."""


class LoadedCrop(NamedTuple):
    """A crop, finished or not. Only voxels are a tensor: each one that a process hands over costs a file handle.

    Attributes:
        voxels: (C, D, H, W) of the patch, or of a box that is still to be resampled; float32. With ``masked``, the last
            channel is 1 where voxels are to be ignored.
        box: first voxel in the case of that box; None where the crop is finished.
        start: first voxel of the crop in the case, before the transform.
        affine: (3, 4), from a voxel's offset from the crop's centre to voxels of the case.
        spacing: mm per voxel of the case along each axis.
        modality: code of what each channel shows.
        masked: whether there is such a channel.
        case: identifier.
        row: number of the case in its pool.
        number: of the crop.
    """

    voxels: Tensor
    box: Triple | None
    start: Triple
    affine: Affine
    spacing: tuple[float, float, float]
    modality: tuple[int, ...]
    masked: bool
    case: str
    row: int
    number: int


Sample = list[LoadedCrop]
"""The crops of a sample, view after view."""


def assemble(samples: Sequence[Sample], *, pinned: bool = False) -> dict[str, Any]:
    """A batch of samples.

    Args:
        samples: at least one.
        pinned: put it into page-locked memory, from which a GPU reads without waiting.

    Returns:
        What :class:`~ssl_pretrain.methods.base.Batch` lists, but for the seeds. Where crops are not finished, there are
        ``plain``, ``boxes`` (filled up to one size), ``into_boxes`` (the maps from the crops into them), ``masked`` and
        ``moved`` instead of the images: see :func:`finish`.
    """
    crops = [crop for sample in samples for crop in sample]

    def tensor(rows: Sequence[Any], dtype: torch.dtype) -> Tensor:
        made = torch.from_numpy(np.array(rows)).to(dtype)
        return made.pin_memory() if pinned else made

    batch: dict[str, Any] = {
        "case": [crop.case for crop in crops],
        # No tensor: those go to the device, and to ask it for a number would be to wait for it.
        "row": [crop.row for crop in crops],
        "index": [crop.number for crop in crops],
        "start": tensor([crop.start for crop in crops], torch.int64),
        "affine": tensor([crop.affine for crop in crops], torch.float32),
        "spacing": tensor([crop.spacing for crop in crops], torch.float32),
        "modality": tensor([crop.modality for crop in crops], torch.int64),
    }
    maps = [within(crop.affine, crop.box) for crop in crops if crop.box is not None]
    plain = [crop.voxels for crop in crops if crop.box is None]
    masked = crops[0].masked
    if not maps:
        return {**batch, **_split(_stacked(plain, pinned), masked)}
    boxes = _stacked([crop.voxels for crop in crops if crop.box is not None], pinned)
    batch |= {"boxes": boxes, "into_boxes": tensor(maps, torch.float32), "masked": masked}
    if plain:
        batch["plain"] = _stacked(plain, pinned)
    return {**batch, "moved": [crop.box is not None for crop in crops]}


def finish(batch: dict[str, Any], patch: Triple) -> dict[str, Any]:
    """Rotate, scale and mirror the crops that need it, all in one ``grid_sample``, on the device where they are."""
    if "boxes" not in batch:
        return batch
    moved = batch["moved"]
    done = resample(batch["boxes"], batch["into_boxes"], patch)
    if not all(moved):
        # Numbers known to the host, so that the GPU is not waited for.
        whole = done.new_empty(len(moved), *done.shape[1:])
        sources = {True: iter(done), False: iter(batch["plain"])}
        for row, is_moved in enumerate(moved):
            whole[row] = next(sources[is_moved])
        done = whole
    used = ("boxes", "into_boxes", "masked", "plain", "moved")
    return {**{key: batch[key] for key in batch if key not in used}, **_split(done, batch["masked"])}


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
