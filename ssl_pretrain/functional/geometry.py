"""Patches, cells and strides: which mask cells a patch and a network allow, and which one to take by default."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, log2, prod

Triple = tuple[int, int, int]
"""Voxels, cells or strides along the axes (D, H, W)."""

AXES = ("D", "H", "W")
PREFERRED_CELL = 16
"""Voxels per axis of SparK's cell in 3-D: the total stride of the encoder it was published with."""
FEWEST_CELLS = 8
"""Below this many cells a random mask says little; the default cell is made smaller."""


def as_triple(value: int | Sequence[int], name: str) -> Triple:
    """One integer, or three, as a triple (D, H, W).

    Raises:
        ValueError: not one or three positive integers; the message names ``name`` and the value.
    """
    numbers = [value] * 3 if isinstance(value, int) else list(value)
    if len(numbers) == 1:
        numbers = numbers * 3
    if len(numbers) != 3 or any(int(n) != n or n < 1 for n in numbers):
        raise ValueError(f"{name} must be one or three positive whole numbers (D H W), got {value!r}.")
    d, h, w = (int(n) for n in numbers)
    return d, h, w


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[Triple]:
    """Strides of each stage relative to the one before -> strides of each stage relative to the input."""
    total = [1, 1, 1]
    result: list[Triple] = []
    for stride in strides:
        total = [t * s for t, s in zip(total, as_triple(list(stride), "stride"), strict=True)]
        result.append((total[0], total[1], total[2]))
    return result


def check_patch(patch: Triple, total_stride: Triple) -> None:
    """Refuse a patch that the network cannot halve as often as it wants to.

    Args:
        patch: voxels per axis.
        total_stride: stride of the coarsest feature map per axis.

    Raises:
        ValueError: names the axis, the rule and the nearest patches that work.
    """
    wrong = [a for a in range(3) if patch[a] % total_stride[a]]
    if not wrong:
        return
    lower = tuple(max(p // s, 1) * s for p, s in zip(patch, total_stride, strict=True))
    upper = tuple(-(-p // s) * s for p, s in zip(patch, total_stride, strict=True))
    works = f"{lower} and {upper}" if lower != upper else f"{upper}"
    raise ValueError(
        f"Patch size {patch} is not divisible by the network's total stride {total_stride} along "
        f"{', '.join(AXES[a] for a in wrong)}. Nearest patch sizes that work: {works} (-patch_size D H W)."
    )


def check_square(patch: Triple, total_stride: Triple) -> None:
    """Refuse a patch that a quarter turn in the last two axes would change in shape.

    Args:
        patch: voxels per axis.
        total_stride: of the network, which sizes that work must be a multiple of.

    Raises:
        ValueError: names sizes that work.
    """
    depth, *plane = patch
    if plane[0] == plane[1]:
        return
    step = lcm(total_stride[1], total_stride[2])
    sides = sorted({max(step, side // step * step) for side in plane} | {-(-max(plane) // step) * step})
    # A coarsest map of a single voxel is refused elsewhere.
    works = ", ".join(str(size) for side in sides if (size := (depth, side, side)) != total_stride)
    raise ValueError(
        f"Patch size {patch}: crops are turned by 90° in the last two axes, and must be as long along H as along W. "
        f"Sizes that work: {works} (-patch_size D H W)."
    )


def allowed_cells(patch: int, strides: Sequence[int]) -> list[int]:
    """Cell sizes that fit along one axis, ascending.

    A cell must divide the patch, and at every feature map it must either hold a whole number of that map's voxels or
    be finer than the map, which is then all visible.

    Args:
        patch: voxels along the axis.
        strides: stride of each feature map along the axis.
    """

    def fits(cell: int) -> bool:
        return patch % cell == 0 and all(s > cell or cell % s == 0 for s in strides)

    return [cell for cell in range(min(strides), patch + 1) if fits(cell)]


def check_cell(cell: Triple, patch: Triple, strides: Sequence[Triple]) -> None:
    """Refuse a mask cell that does not fit the patch or the strides of the feature maps.

    Raises:
        ValueError: names the axes that do not fit and, per axis, the cells that do.
    """
    options = [allowed_cells(patch[a], [s[a] for s in strides]) for a in range(3)]
    wrong = [a for a in range(3) if cell[a] not in options[a]]
    if wrong:
        maps = f" and feature maps of stride {list(strides)}" if any(s != (1, 1, 1) for s in strides) else ""
        rows = "; ".join(f"{AXES[a]}: {', '.join(map(str, options[a]))}" for a in range(3))
        raise ValueError(
            f"Mask cell {cell} does not fit patch {patch}{maps} along "
            f"{', '.join(AXES[a] for a in wrong)}. A cell must divide the patch and be a multiple of every stride that "
            f"is not larger than it. Cells that work: {rows} (-mask_cell D H W)."
        )
    if prod(grid_of(patch, cell)) < 2:
        raise ValueError(
            f"Mask cell {cell} is as large as the patch {patch}: there must be at least two cells, one to mask and one "
            "to see. Choose a smaller -mask_cell or a larger -patch_size."
        )


def default_cell(patch: Triple, strides: Sequence[Triple]) -> Triple:
    """The cell nearest to 16 voxels per axis that patch and strides allow; smaller where too few cells would remain."""
    options = [allowed_cells(patch[a], [s[a] for s in strides]) for a in range(3)]
    if not all(options):
        # No cell fits: let the check explain which axis and why.
        check_cell((PREFERRED_CELL,) * 3, patch, strides)
    cell = [min(o, key=lambda c: (abs(log2(c / PREFERRED_CELL)), c)) for o in options]
    while prod(p // c for p, c in zip(patch, cell, strict=True)) < FEWEST_CELLS:
        smaller = [max((c for c in o if c < now), default=0) for o, now in zip(options, cell, strict=True)]
        axes = [a for a in range(3) if smaller[a]]
        if not axes:
            break
        axis = max(axes, key=lambda a: cell[a])
        cell[axis] = smaller[axis]
    return cell[0], cell[1], cell[2]


def grid_of(patch: Triple, cell: Triple) -> Triple:
    """Cells per axis."""
    d, h, w = (p // c for p, c in zip(patch, cell, strict=True))
    return d, h, w


def is_maskable(stride: Triple, cell: Triple) -> bool:
    """Whether a feature map of this stride is fine enough to carry the mask; a coarser one is all visible."""
    return all(s <= c for s, c in zip(stride, cell, strict=True))
