"""Which base crops VoCo lays side by side: a grid and a size that cases and network allow."""

from __future__ import annotations

from math import prod

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import field_of, fit_grid
from ssl_pretrain.methods.base import MethodSetup
from ssl_pretrain.networks.base import Backbone

PUBLISHED_SIDE, LEAST_SIDE = 64, 16
"""Voxels of a crop per axis: the published ones, and below which there are rather fewer crops."""


def choose_crops(setup: MethodSetup, wanted: Triple, grid: Triple | None, crop: Triple | None) -> tuple[Triple, Triple]:
    """Grid of base crops and voxels of a crop, as large as the published ones where there is room.

    A convolutional network sees crops of its own patch or smaller; a transformer sees its patch.

    Args:
        setup: network, patch, and the shape of the cases; where that is not known, they have room.
        wanted: crops per axis, fewer where the cases have no room for them.
        grid: crops per axis that were asked for, exactly; None for the wanted ones.
        crop: voxels of a crop that were asked for; None where they may be chosen.

    Raises:
        ValueError: the cases have no room for two base crops, or for what was asked for; says what there is room for.
    """
    backbone, patch = setup.backbone, setup.patch
    transformer = "tokens" in backbone.offers
    given = crop or (patch if transformer else None)
    room = setup.case_shape or field_of(grid or wanted, given or patch)
    free = largest_crops(room, grid or wanted, backbone, patch, finer=grid is not None)
    chosen = fit_grid(room, grid or wanted, given, given, given) if given else free
    if _works(*chosen, backbone) and chosen[0] == (grid or chosen[0]):
        return chosen
    asked = f"{grid or 'two'} base crops" + (f" of {given} voxels" if given else "")
    text = f"VoCo: cases of {room} voxels (median) have no room for {asked} side by side."
    if not _works(*free, backbone):
        raise ValueError(f"{text} Nor for two that this network could see: use larger cases, or another method (-m).")
    counts, sizes = (",".join(map(str, numbers)) for numbers in free)
    how = f"-patch_size {sizes.replace(',', ' ')} -set" if transformer else f"-set crop={sizes}"
    raise ValueError(f"{text} There is room for {free[0]} of {free[1]} voxels: {how} grid={counts}.")


def largest_crops(
    room: Triple, wanted: Triple, backbone: Backbone, patch: Triple, *, finer: bool
) -> tuple[Triple, Triple]:
    """As many crops as are wanted or fit, of :data:`LEAST_SIDE` voxels per axis if two fit, and as large as fits then.

    Args:
        room: voxels per axis.
        wanted: crops per axis.
        backbone: whose total stride divides the crops.
        patch: largest crop, but where the stride asks for more.
        finer: make smaller crops, rather than fewer.
    """
    step = backbone.feature_maps[-1].stride
    for least, strides in ((1, 1), (1, 2)) if finer else ((LEAST_SIDE, 1), (LEAST_SIDE, 2), (1, 1), (1, 2)):
        d, h, w = (by * max(strides, -(-least // by)) for by in step)
        high = [max(low, min(PUBLISHED_SIDE, side)) for low, side in zip((d, h, w), patch, strict=True)]
        found = fit_grid(room, wanted, (d, h, w), (high[0], high[1], high[2]), step)
        if _works(*found, backbone):
            break
    return found


def _works(grid: Triple, crop: Triple, backbone: Backbone) -> bool:
    """Whether there are two crops, of more than the single voxel of the coarsest map that has no statistics."""
    return prod(grid) >= 2 and crop != backbone.feature_maps[-1].stride
