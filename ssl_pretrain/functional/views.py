"""How the crops of one sample lie to each other: what a method asks of the loader."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple


@dataclass(frozen=True, kw_only=True)
class Views:
    """Crops that a sample of a batch is made of.

    Attributes:
        count: crops per sample; in a batch they come one after the other.
        together: whether they are of one case; otherwise each is of a case of its own.
        overlap: least share, along each axis, that every crop has in common with the first; of crops of one case.
        size: voxels of a crop per axis; None for the network's patch.
        grid: crops per axis that lie side by side in one field of the case, row by row; they come first, and the others
            lie anywhere within the field. None where there is no grid.
    """

    count: int = 1
    together: bool = False
    overlap: float = 0.0
    size: Triple | None = None
    grid: Triple | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}.")
        if self.grid is not None and not (self.together and prod(self.grid) <= self.count):
            raise ValueError(
                f"A grid {self.grid} is of {prod(self.grid)} crops of one case: count must be at least that, got "
                f"{self.count}, and together True."
            )
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"overlap must lie between 0 and 1, got {self.overlap}.")


def fit_grid(room: Triple, wanted: Triple, least: Triple, most: Triple, step: Triple) -> tuple[Triple, Triple]:
    """Crops side by side that there is room for: as many along each axis as are wanted or fit, then as large as fits.

    Args:
        room: voxels per axis.
        wanted: crops per axis.
        least: shortest side of a crop, where one fits; multiples of ``step``.
        most: longest side.
        step: what every side is a multiple of.

    Returns:
        Crops per axis, at least 1, and voxels of a crop.
    """
    fitting = [
        (count := max(1, min(want, whole // low)), max(by, min(high, whole // count) // by * by))
        for whole, want, low, high, by in zip(room, wanted, least, most, step, strict=True)
    ]
    (d, crop_d), (h, crop_h), (w, crop_w) = fitting
    return (d, h, w), (crop_d, crop_h, crop_w)


def field_of(grid: Triple, size: Triple) -> Triple:
    """Voxels per axis of a grid of crops."""
    d, h, w = (count * side for count, side in zip(grid, size, strict=True))
    return d, h, w


def common_boxes(affine: Tensor, size: Triple) -> Tensor:
    """Voxels that the crops of a sample have in common, as boxes in each crop's own frame.

    Rotation and scale must be those of the whole sample: then what two crops share is a box along the axes of both.
    A voxel counts where its centre lies within the other crop. The device is not waited for.

    Args:
        affine: (B, V, 3, 4), from a voxel's offset from its crop's centre to voxels of the case, mirroring included.
        size: voxels of a crop per axis.

    Returns:
        (B, V, V, 3, 2) int64: at ``[b, i, j]`` the first voxel along each axis of crop *i* that lies within crop *j*,
        and the one after the last; equal where there is none. The box at ``[b, j, i]`` shows the same in crop *j*.
    """
    maps, centres = affine[..., :3], affine[..., 3]
    inverse = torch.linalg.inv_ex(maps)[0]
    # Crop i seen from crop j: centre, and the axes that run the other way.
    shift = torch.einsum("bjxy,bijy->bijx", inverse, centres[:, :, None] - centres[:, None])
    signs = torch.einsum("bjxy,biyx->bijx", inverse, maps).sign()
    whole = (shift * signs).round().long()
    ends = (torch.stack([-n, p - n], dim=-1).clamp(0, p) for n, p in zip(whole.unbind(-1), size, strict=True))
    return torch.stack(list(ends), dim=-2)


def overlaps(affine: Tensor, size: Triple) -> Tensor:
    """Share of crop *i*'s voxels that lie within crop *j*, (B, V, V), from the same as :func:`common_boxes`."""
    first, stop = common_boxes(affine, size).unbind(-1)
    return (stop - first).prod(-1) / prod(size)


def shared_points(affine: Tensor, size: Triple, count: int) -> Tensor:
    """Places that two crops of a sample have in common, evenly spread over the box, as each crop sees them.

    Args:
        affine: (B, 2, 3, 4), as for :func:`common_boxes`.
        size: voxels of a crop per axis.
        count: places per axis.

    Returns:
        (B, 2, count, count, count, 3) for :func:`torch.nn.functional.grid_sample` with ``align_corners=False``, of a
        crop's voxels and of its feature maps alike: the same index is the same place of the case in both crops.
    """
    first, stop = (ends[:, 0, 1].to(affine.dtype) for ends in common_boxes(affine, size).unbind(-1))
    extent = affine.new_tensor(size)
    share = (torch.arange(count, device=affine.device, dtype=affine.dtype) + 0.5) / count
    steps = torch.stack(torch.meshgrid(share, share, share, indexing="ij"), -1).flatten(0, 2)
    # Offsets from the centre of the first crop, whose first voxel begins half an extent before it.
    here = first[:, None] + steps * (stop - first)[:, None] - extent / 2
    maps, centres = affine[..., :3], affine[..., 3]
    case = torch.einsum("bxy,bny->bnx", maps[:, 0], here) + (centres[:, 0] - centres[:, 1])[:, None]
    there = torch.einsum("bxy,bny->bnx", torch.linalg.inv_ex(maps[:, 1])[0], case)
    both = torch.stack([here, there], 1) * 2 / extent
    # grid_sample names the last axis first.
    return both.flip(-1).view(len(affine), 2, count, count, count, 3)


def moved_onto(second: Tensor, affine: Tensor) -> Tensor:
    """A crop moved to where it overlaps another one of its sample, in whole voxels; NaN where it has nothing.

    Args:
        second: (C, D, H, W).
        affine: (2, 3, 4), of the other crop and of this one, as for :func:`common_boxes`.
    """
    boxes = common_boxes(affine[None], (second.shape[1], second.shape[2], second.shape[3]))[0]
    here, there = ([slice(a, b) for a, b in boxes[i, 1 - i].tolist()] for i in (0, 1))
    turned = (torch.linalg.solve(affine[0, :, :3], affine[1, :, :3]).diagonal() < 0).tolist()
    moved = torch.full_like(second, torch.nan)
    moved[(slice(None), *here)] = second[(slice(None), *there)].flip(
        [axis + 1 for axis, flip in enumerate(turned) if flip]
    )
    return moved


def mosaic(crops: Tensor, affine: Tensor, field: Triple) -> Tensor:
    """Crops of a sample where they lie to each other, in whole voxels, as the first one is mirrored.

    Args:
        crops: (V, C, D, H, W); where they overlap, later ones hide earlier ones but for what is NaN.
        affine: (V, 3, 4), as for :func:`common_boxes`.
        field: voxels per axis that hold them all.

    Returns:
        (C, *field), NaN where no crop is.
    """
    size = crops.shape[2:]
    seen = torch.linalg.solve(affine[0, :, :3], affine - affine[0] * affine.new_tensor([0.0, 0.0, 0.0, 1.0]))
    firsts = (seen[:, :, 3] - seen[:, :, 3].amin(0)).round().long().tolist()
    turned = (seen[:, :, :3].diagonal(dim1=1, dim2=2) < 0).tolist()
    made = crops.new_full((crops.shape[1], *field), torch.nan)
    for crop, starts, flips in zip(crops, firsts, turned, strict=True):
        corner = [min(start, whole - side) for start, whole, side in zip(starts, field, size, strict=True)]
        part = made[(slice(None), *(slice(a, a + side) for a, side in zip(corner, size, strict=True)))]
        shown = crop.flip([axis + 1 for axis, flip in enumerate(flips) if flip])
        part.copy_(torch.where(shown.isnan(), part, shown))
    return made
