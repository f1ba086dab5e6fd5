"""Drawing masks. A mask is boolean, True means masked; its shape is (B, *grid). Everything stays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import hand_over


class Cells(NamedTuple):
    """Some of the cells of each sample.

    Attributes:
        chosen: boolean (B, *grid), True where chosen.
        each: chosen cells of every sample, known to the host; None where it is not.
    """

    chosen: Tensor
    each: int | None


def count_masked(cells: int, ratio: float) -> int:
    """How many of ``cells`` cells are masked: ``L − round(L·(1−ratio))``, the same in every sample (SparK).

    Raises:
        ValueError: the ratio is not inside (0, 1), or leaves no cell visible or none masked.
    """
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {ratio}.")
    masked = cells - round(cells * (1.0 - ratio))
    if masked in (0, cells):
        state = "masked" if masked == 0 else "visible"
        raise ValueError(
            f"mask_ratio {ratio} of {cells} cells leaves no cell {state}. With {cells} cells it must lie between about "
            f"{1 / cells:.3f} and {1 - 1 / cells:.3f}; a smaller -mask_cell or a larger -patch_size gives more cells."
        )
    return masked


def random_mask(batch: int, grid: Triple, masked: int, generator: torch.Generator) -> Tensor:
    """Mask exactly ``masked`` cells of each sample, uniformly and independently.

    Args:
        batch: samples.
        grid: cells per axis.
        masked: cells to mask in each sample.
        generator: owner of the randomness; the mask is made on its device.

    Returns:
        Boolean tensor (B, *grid), True where masked.
    """
    scores = torch.rand(batch, grid[0] * grid[1] * grid[2], generator=generator, device=generator.device)
    return _mask_largest(scores, masked).view(batch, *grid)


def sample_masks(
    generators: Sequence[np.random.Generator], grid: Triple, masked: int, device: torch.device, each: int = 1
) -> Tensor:
    """As :func:`random_mask`, with an owner of the randomness for each sample: its masks do not depend on the others.

    Args:
        generators: of the samples, on the host.
        grid: cells per axis.
        masked: cells to mask in each mask.
        device: where to put the masks; it is not waited for.
        each: masks per sample, independent of each other.

    Returns:
        Boolean tensor (B · each, *grid), those of a sample one after the other; True where masked.
    """
    scores = _scores(generators, (each, prod(grid)), device).flatten(0, 1)
    return _mask_largest(scores, masked).view(-1, *grid)


def guided_mask(
    difficulty: Tensor, masked: int, hard: int, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """Mask the ``hard`` most difficult cells for certain and fill up to ``masked`` cells at random (AnatoMask).

    Args:
        difficulty: (B, *grid); cells that nobody rated carry ``-inf`` and are never among the hardest.
        masked: cells to mask in each sample.
        hard: how many of them are the hardest ones; at most ``masked``.
        generators: owners of the randomness, one for each sample, on the host.

    Returns:
        Two boolean tensors (B, *grid): the mask, and which of its cells were chosen for being hard.
    """
    flat = difficulty.flatten(1)
    # Where fewer cells were rated than are to be hard, the largest are not all rated ones.
    hardest = _mask_largest(flat, hard) & ~flat.isneginf()
    scores = _scores(generators, flat.shape[1:], flat.device)
    # Scores lie in [0, 1): two more puts every hard cell before every other one.
    chosen = _mask_largest(scores + 2.0 * hardest, masked)
    return chosen.view_as(difficulty), hardest.view_as(difficulty)


def draw_cells(mask: Tensor, count: int, generators: Sequence[np.random.Generator]) -> Cells:
    """Random cells of a mask, each as likely as any other.

    Args:
        mask: boolean (B, *grid), with at least ``count`` cells in every sample.
        count: cells to draw in each sample.
        generators: owners of the randomness, one for each sample, on the host.
    """
    flat = mask.flatten(1)
    scores = _scores(generators, flat.shape[1:], mask.device)
    return Cells(_mask_largest(scores.masked_fill(~flat, -1.0), count).view_as(mask), count)


def count_hard(masked: int, epoch: int, epochs: int, share: float = 0.5) -> int:
    """How many masked cells are chosen for their difficulty: ``floor(masked · share · (e+1)/(E−1))``.

    AnatoMask's linear easy-to-hard ramp, as published (arXiv 2407.06468 and its code). A run of a single epoch counts
    as the end of the ramp.

    Args:
        masked: masked cells of a sample.
        epoch: current epoch, from 0.
        epochs: epochs of the whole run.
        share: share of the masked cells at the end of the ramp.
    """
    return min(masked, floor(masked * share * (epoch + 1) / max(epochs - 1, 1)))


def repeat_to(cells: Tensor, shape: Triple) -> Tensor:
    """Spread a value per cell over the voxels of its cell: (B, *grid) -> (B, *shape).

    Raises:
        ValueError: ``shape`` is not a multiple of the grid.
    """
    grid = cells.shape[1:]
    if any(n % g for n, g in zip(shape, grid, strict=True)):
        raise ValueError(f"A map of {tuple(shape)} voxels does not hold whole cells of a {tuple(grid)} grid.")
    (gd, fd), (gh, fh), (gw, fw) = ((g, n // g) for n, g in zip(shape, grid, strict=True))
    spread = cells.view(-1, gd, 1, gh, 1, gw, 1).expand(-1, gd, fd, gh, fh, gw, fw)
    return spread.reshape(-1, *shape)


def _scores(generators: Sequence[np.random.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """(B, *shape), uniform in [0, 1), float32."""
    drawn = [torch.from_numpy(generator.random(tuple(shape), dtype=np.float32)) for generator in generators]
    return hand_over(torch.stack(drawn), device)


def _mask_largest(scores: Tensor, count: int) -> Tensor:
    """(B, L) scores -> boolean (B, L), True at the ``count`` largest of each row."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if count:
        chosen.scatter_(1, scores.topk(count, dim=1, sorted=False).indices, True)
    return chosen


def visible_first(mask: Tensor) -> Tensor:
    """Numbers of the cells, visible ones first, in order: boolean (B, L), True where masked -> int64 (B, L)."""
    return mask.to(torch.uint8).argsort(dim=1, stable=True)
