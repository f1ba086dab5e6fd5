"""The spatial transform of a crop: parameters first, then only the voxels they need are read and resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, prod, sin
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_pretrain.data.cases import Box
from ssl_pretrain.functional.geometry import Triple

ANISOTROPIC = 3.0
"""nnU-Net's ANISO_THRESHOLD: beyond this ratio of the patch's axes, it rotates and scales in the plane only."""

Matrix = npt.NDArray[np.float64]
Affine = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are drawn and augmented. Defaults: the published AnatoMask; no intensity is changed.

    Attributes:
        rotation: largest angle about each axis, degrees.
        rotation_p: probability that a crop is rotated (about all axes at once).
        scale_min: smallest zoom factor of the field of view; below 1 enlarges the anatomy.
        scale_max: largest zoom factor.
        scale_p: probability that a crop is scaled.
        mirror_p: probability of mirroring, for each axis.
        oversample_foreground: share of the crops that are centred on a labelled voxel, where labels are there.
        sample_in: ``anatomy`` centres the crops of a case that has an anatomy mask in it; ``image`` draws all places.
        ignore_anonymized: leave voxels of the anonymisation mask (a removed face) out of the loss.
    """

    rotation: float = 30.0
    rotation_p: float = 0.2
    scale_min: float = 0.7
    scale_max: float = 1.4
    scale_p: float = 0.2
    mirror_p: float = 0.5
    oversample_foreground: float = 0.0
    sample_in: Literal["image", "anatomy"] = "image"
    ignore_anonymized: bool = False

    def __post_init__(self) -> None:
        if self.sample_in not in get_args(get_type_hints(CropConfig)["sample_in"]):
            raise ValueError(f"sample_in must be image or anatomy, got {self.sample_in!r}.")
        for name in ("rotation_p", "scale_p", "mirror_p", "oversample_foreground"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if not 0.0 < self.scale_min <= self.scale_max:
            raise ValueError(f"0 < scale_min <= scale_max must hold, got {self.scale_min} and {self.scale_max}.")
        if not 0.0 <= self.rotation <= 180.0:
            raise ValueError(f"rotation must lie between 0 and 180 degrees, got {self.rotation}.")

    def without_augmentation(self) -> CropConfig:
        """The same sampling, nothing rotated, scaled or mirrored."""
        return replace(self, rotation_p=0.0, scale_p=0.0, mirror_p=0.0)


class Transform(NamedTuple):
    """Parameters of one crop's transform.

    Attributes:
        matrix: voxel offsets from the crop's centre in the output -> in the volume, 3×3; None for the identity.
        mirror: whether each axis is flipped.
    """

    matrix: Matrix | None
    mirror: tuple[bool, bool, bool]


def draw_transform(config: CropConfig, patch: Triple, rng: np.random.Generator) -> Transform:
    """Draw a transform. The generator is asked for the same numbers whatever the outcome."""
    rotate, scale, *flips = rng.random(5)
    angles = np.deg2rad(rng.uniform(-config.rotation, config.rotation, 3))
    factor = rng.uniform(config.scale_min, config.scale_max)
    in_plane = max(patch) / patch[0] > ANISOTROPIC
    matrix = np.eye(3)
    if rotate < config.rotation_p:
        matrix = rotation_matrix(angles * ([1, 0, 0] if in_plane else [1, 1, 1]))
    if scale < config.scale_p:
        matrix = matrix * np.array([1.0 if in_plane else factor, factor, factor])[:, None]
    moved = rotate < config.rotation_p or scale < config.scale_p
    mirror = tuple(bool(f < config.mirror_p) for f in flips)
    return Transform(matrix if moved else None, (mirror[0], mirror[1], mirror[2]))


def rotation_matrix(angles: npt.ArrayLike) -> Matrix:
    """Rotation about the axes D, H, W one after the other; angles in radians."""
    a, b, c = np.asarray(angles, dtype=np.float64)
    about_d = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    about_h = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    about_w = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    product: Matrix = about_w @ about_h @ about_d
    return product


def box_to_read(transform: Transform, start: Triple, patch: Triple) -> Box:
    """The voxels a crop needs: the patch itself, or the box around the transformed patch plus interpolation."""
    if transform.matrix is None:
        return start, triple_of(np.add(start, patch))
    half = (np.array(patch) - 1) / 2
    centre = np.array(start) + half
    reach = np.abs(transform.matrix) @ half
    return triple_of(np.floor(centre - reach)), triple_of(np.ceil(centre + reach) + 1)


def triple_of(values: npt.NDArray[Any]) -> Triple:
    """Three whole numbers of an array, as plain ones."""
    d, h, w = (int(value) for value in values)
    return d, h, w


def voxels_in(box: Box) -> int:
    """Number of voxels of a box."""
    return prod(b - a for a, b in zip(*box, strict=True))


def affine_of(transform: Transform, start: Triple, patch: Triple) -> Affine:
    """Where the voxels of a crop lie in its case: (3, 4) float32, in voxels.

    An output voxel at offset ``o`` from the crop's centre is at ``A[:, :3] @ o + A[:, 3]`` of the case. Mirroring is a
    change of sign of ``o``.
    """
    matrix = np.eye(3) if transform.matrix is None else transform.matrix
    centre = np.array(start) + (np.array(patch) - 1) / 2
    affine = np.concatenate([matrix * np.where(transform.mirror, -1.0, 1.0), centre[:, None]], axis=1)
    return affine.astype(np.float32)


def within(affine: Affine, first: Triple) -> Affine:
    """The same map to the voxels of a box that begins at voxel ``first`` of the case."""
    moved = affine.copy()
    moved[:, 3] -= first
    return moved


def mirrored(voxels: Tensor, transform: Transform) -> Tensor:
    """Voxels (C, D, H, W) of a crop that is neither rotated nor scaled."""
    axes = [axis + 1 for axis, flip in enumerate(transform.mirror) if flip]
    return voxels.flip(axes) if axes else voxels


def resample(voxels: Tensor, affine: Tensor, patch: Triple) -> Tensor:
    """Crops (B, C, *patch) from boxes of voxels (B, C, d, h, w); trilinear, 0 outside of the box.

    Args:
        voxels: one box per crop; boxes of a batch are filled up with zeros at their ends to the same size.
        affine: (B, 3, 4), see :func:`affine_of`.
        patch: voxels per axis.
    """
    if len(voxels) == 1 and voxels.device.type == "cpu" and _only_scales(affine[0]):
        return _scaled(voxels, affine[0], patch)
    grid = _sampling_grid(affine, voxels.shape[2:], patch)
    return F.grid_sample(voxels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _only_scales(affine: Tensor) -> bool:
    return not bool((affine[:, :3] - torch.diag(affine[:, :3].diagonal())).any())


def _scaled(voxels: Tensor, affine: Tensor, patch: Triple) -> Tensor:
    """The same without rotation, axis after axis: a third of the time on a CPU. The box holds all that is needed."""
    # From the side on which the volume is small: the last axis, whose neighbours in memory are used best, goes last
    # where the volume shrinks and first where it grows.
    axes = (0, 1, 2) if voxels[0, 0].numel() > prod(patch) else (2, 1, 0)
    for axis in axes:
        size = voxels.shape[axis + 2]
        places = (affine[axis, axis] * _offsets(patch[axis], affine.device) + affine[axis, 3]).clamp(0, size - 1)
        low = places.floor()
        share = (places - low).view([-1 if a == axis + 2 else 1 for a in range(5)])
        index = low.long()
        high = voxels.index_select(axis + 2, (index + 1).clamp_max(size - 1))
        voxels = voxels.index_select(axis + 2, index).lerp_(high, share)
    return voxels


def _sampling_grid(affine: Tensor, box: Sequence[int], patch: Triple) -> Tensor:
    """Where the output voxels lie in the boxes, in grid_sample's coordinates: (B, *patch, 3), last axis W, H, D."""
    size = torch.tensor(box, dtype=torch.float32).to(affine.device, non_blocking=True)
    scale = 2 / (size - 1).clamp_min(1)
    normalised = (affine * scale[:, None]).flip(1)
    # A sum of what each axis contributes: a product with every voxel's coordinates takes ten times as long.
    d, h, w = (_offsets(p, affine.device)[:, None] * normalised[:, None, :, axis] for axis, p in enumerate(patch))
    d = d + (normalised[:, :, 3] - 1)[:, None]
    return d[:, :, None, None] + (h[:, :, None] + w[:, None, :])[:, None]


def _offsets(size: int, device: torch.device) -> Tensor:
    """Of the voxels along an axis from the middle."""
    return torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
