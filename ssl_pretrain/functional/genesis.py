"""The corruptions of Models Genesis in their order (Zhou et al. 2021, Medical Image Analysis, arXiv 2004.07882)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.drawing import draw_uniform
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.intensity import apply_intensity_, draw_intensity, value_ranges
from ssl_pretrain.functional.painting import apply_painting_, draw_painting, seen_windows
from ssl_pretrain.functional.shuffling import apply_shuffling, draw_shuffling

Flips = tuple[tuple[bool, bool, bool], ...]
"""For each sample, which of the axes (D, H, W) are reversed."""


@dataclass(frozen=True, kw_only=True)
class GenesisConfig:
    """How a crop is corrupted. Defaults: as published; lengths are shares of the patch, every axis for itself.

    Attributes:
        flip_p: probability that a flip along a random axis follows; the first failure ends it.
        flip_times: at most so many flips.
        shuffle_p: probability that voxels are shuffled locally.
        shuffle_side: longest side of a box of shuffling.
        shuffle_patterns: boxes of shuffling that differ in sides and permutation.
        shuffle_rounds: places at which each of them is laid; patterns × rounds are the published 10 000 boxes.
        intensity_p: probability that intensities change along a Bézier curve.
        falling_p: probability that such a curve falls instead of rising.
        paint_p: probability that something is painted.
        inpaint_p: probability that this is in-painting; otherwise it is out-painting.
        paint_windows: at most so many windows.
        paint_next_p: probability that another window follows.
        paint_margin: voxels between a window and the border of the patch.
        inpaint_min: shortest side of a window of in-painting.
        inpaint_max: longest side of a window of in-painting.
        outpaint_min: shortest side of a window that out-painting spares.
        outpaint_max: longest side of a window that out-painting spares.
    """

    flip_p: float = 0.4
    flip_times: int = 3
    shuffle_p: float = 0.5
    shuffle_side: float = 0.1
    shuffle_patterns: int = 250
    shuffle_rounds: int = 40
    intensity_p: float = 0.9
    falling_p: float = 0.5
    paint_p: float = 0.9
    inpaint_p: float = 0.2
    paint_windows: int = 5
    paint_next_p: float = 0.95
    paint_margin: int = 3
    inpaint_min: float = 1 / 6
    inpaint_max: float = 1 / 3
    outpaint_min: float = 3 / 7
    outpaint_max: float = 4 / 7

    def __post_init__(self) -> None:
        for name in ("flip_p", "shuffle_p", "intensity_p", "falling_p", "paint_p", "inpaint_p", "paint_next_p"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        for name in ("shuffle_patterns", "shuffle_rounds", "paint_windows"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}; to do without, set the probability to 0."
                )
        for name in ("flip_times", "paint_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0.0 < self.shuffle_side <= 1.0:
            raise ValueError(
                f"shuffle_side must lie between 0 and 1 (a share of the patch), got {self.shuffle_side}; "
                "to do without shuffling, set shuffle_p to 0."
            )
        for kind in ("inpaint", "outpaint"):
            low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(
                    f"0 < {kind}_min <= {kind}_max <= 1 must hold (shares of the patch: a window must fit into it), "
                    f"got {low} and {high}."
                )


def draw_flips(batch: int, generator: np.random.Generator, config: GenesisConfig) -> Flips:
    """Draw flips one after the other, each along a random axis, as long as chance goes on; two along one cancel out.

    Published: up to three, each with 0.4; every axis ends up reversed with probability 0.154.
    """
    times = config.flip_times
    done = (draw_uniform(batch, times, generator=generator) < config.flip_p).long().cumprod(1)
    axes = (draw_uniform(batch, times, generator=generator) * 3).long()
    along = torch.nn.functional.one_hot(axes, 3) * done[:, :, None]
    return tuple((bool(d), bool(h), bool(w)) for d, h, w in (along.sum(1) % 2).tolist())


def apply_flips(volumes: Tensor, flips: Flips) -> Tensor:
    """Reverse the chosen axes; for everything that belongs to a crop: image, target, ignored voxels.

    Args:
        volumes: (B, C, D, H, W); not changed.
        flips: of as many samples.
    """
    axes = [[axis + 1 for axis, flip in enumerate(sample) if flip] for sample in flips]
    return torch.stack([volume.flip(a) for volume, a in zip(volumes, axes, strict=True)])


def corrupt(images: Tensor, generator: np.random.Generator, config: GenesisConfig) -> Tensor:
    """Shuffle, change intensities, paint, in this order; each with its probability and each sample for itself.

    Flips are not among them, as they concern the target, too: :func:`apply_flips` comes first.

    Args:
        images: (B, C, D, H, W), float32; not changed.
        generator: owner of the randomness.
        config: probabilities and sizes.
    """
    batch, channels, d, h, w = images.shape
    patch: Triple = (d, h, w)
    shuffling = draw_shuffling(
        batch,
        patch,
        generator,
        p=config.shuffle_p,
        side=config.shuffle_side,
        patterns=config.shuffle_patterns,
        rounds=config.shuffle_rounds,
    )
    curves = draw_intensity(batch, channels, generator, p=config.intensity_p, falling_p=config.falling_p)
    painting = draw_painting(
        batch,
        patch,
        generator,
        p=config.paint_p,
        inside_p=config.inpaint_p,
        windows=config.paint_windows,
        next_p=config.paint_next_p,
        inside_sides=(config.inpaint_min, config.inpaint_max),
        outside_sides=(config.outpaint_min, config.outpaint_max),
        margin=config.paint_margin,
    )
    seen, ranges = seen_windows(painting, patch), value_ranges(images)
    shuffled = apply_shuffling(images, shuffling, seen)
    return apply_painting_(apply_intensity_(shuffled, curves, ranges, seen), painting, ranges)
