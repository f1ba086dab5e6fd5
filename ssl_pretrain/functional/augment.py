"""Intensity augmentations of nnU-Net for a batch on its device: parameters are drawn on the host, then applied.

Every channel of every crop has its own parameters, which the host knows, so that applying them never waits for a GPU.
What is not chosen stays as it is, bit for bit. The transforms are nnU-Net's, as batchgeneratorsv2 has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_pretrain.functional.drawing import draw_seeds, draw_uniform
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.windows import Window

TINY = 1e-7
"""Least range and deviation that is divided by, as in batchgeneratorsv2."""

KERNEL_SIGMAS = 6
"""Width of the kernel of a blur in standard deviations, as in batchgeneratorsv2."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How the intensities of a crop change. Defaults: nnU-Net's for training.

    Attributes:
        noise_p: probability of Gaussian noise, for each channel as in all that follows.
        noise_variance: largest variance of the noise, in units of the normalised image.
        blur_p: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation, voxels; each axis has its own.
        brightness_p: probability that intensities are multiplied.
        brightness: smallest and largest factor.
        contrast_p: probability that the distance to the mean is multiplied.
        contrast: smallest and largest factor; the range of the channel is kept.
        low_resolution_p: probability of a lower resolution.
        low_resolution: smallest and largest zoom.
        inverted_gamma_p: probability of a gamma curve on the inverted image.
        gamma_p: probability of a gamma curve after that.
        gamma: smallest and largest exponent; mean and deviation of the channel are kept.
    """

    noise_p: float = 0.1
    noise_variance: float = 0.1
    blur_p: float = 0.1
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    brightness_p: float = 0.15
    brightness: tuple[float, float] = (0.75, 1.25)
    contrast_p: float = 0.15
    contrast: tuple[float, float] = (0.75, 1.25)
    low_resolution_p: float = 0.125
    low_resolution: tuple[float, float] = (0.5, 1.0)
    inverted_gamma_p: float = 0.1
    gamma_p: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_p") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
        for name in ("blur_sigma", "brightness", "contrast", "low_resolution", "gamma"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise ValueError(f"{name} must be two numbers, 0 < smallest <= largest, got {low} and {high}.")
        if self.low_resolution[1] > 1.0:
            raise ValueError(f"low_resolution must not enlarge: at most 1, got {self.low_resolution[1]}.")
        if self.noise_variance < 0:
            raise ValueError(f"noise_variance must not be negative, got {self.noise_variance}.")


class Change(NamedTuple):
    """One transform of one channel.

    Attributes:
        sample: number of the crop in the batch.
        channel: of the crop.
        values: the parameters.
        seed: of the noise.
    """

    sample: int
    channel: int
    values: tuple[float, ...]
    seed: int = 0


@dataclass(frozen=True)
class Augmentation:
    """Parameters of :func:`apply_augmentation_`, on the host: for each transform, what it does to which channels.

    Attributes:
        noise: standard deviation.
        blur: standard deviation along (D, H, W), voxels.
        brightness: factor.
        contrast: factor.
        low_resolution: zoom along (D, H, W).
        inverted_gamma: exponent.
        gamma: exponent.
    """

    noise: Sequence[Change] = ()
    blur: Sequence[Change] = ()
    brightness: Sequence[Change] = ()
    contrast: Sequence[Change] = ()
    low_resolution: Sequence[Change] = ()
    inverted_gamma: Sequence[Change] = ()
    gamma: Sequence[Change] = ()


def draw_augmentation(batch: int, channels: int, generator: np.random.Generator, config: AugmentConfig) -> Augmentation:
    """Draw what happens to each channel of each crop.

    Args:
        batch: crops.
        channels: of a crop.
        generator: owner of the randomness; it is asked for the same numbers whatever the outcome.
        config: probabilities and ranges.
    """

    def chosen(p: float, low: float, high: float, count: int = 1) -> list[Change]:
        seeds = draw_seeds(batch * channels, generator)
        wanted = draw_uniform(batch * channels, generator=generator).tolist()
        values = (low + (high - low) * draw_uniform(batch * channels, count, generator=generator)).tolist()
        rows = zip(wanted, values, seeds, strict=True)
        return [
            Change(*divmod(row, channels), tuple(value), seed)
            for row, (want, value, seed) in enumerate(rows)
            if want < p
        ]

    def factors(p: float, low: float, high: float) -> list[Change]:
        """Below and above 1 equally often, however far the range reaches on either side."""
        changes, sides = chosen(p, 0.0, 1.0), draw_uniform(batch, channels, generator=generator).tolist()
        ends = {True: (low, min(1.0, high)), False: (max(1.0, low), high)}
        spans = [ends[low < 1.0 and (high <= 1.0 or sides[c.sample][c.channel] < 0.5)] for c in changes]
        return [c._replace(values=(a + (b - a) * c.values[0],)) for c, (a, b) in zip(changes, spans, strict=True)]

    noise = chosen(config.noise_p, 0.0, config.noise_variance)
    zooms = chosen(config.low_resolution_p, *config.low_resolution)
    return Augmentation(
        noise=[change._replace(values=(change.values[0] ** 0.5,)) for change in noise],
        blur=chosen(config.blur_p, *config.blur_sigma, count=3),
        brightness=factors(config.brightness_p, *config.brightness),
        contrast=factors(config.contrast_p, *config.contrast),
        # One zoom for all axes, as nnU-Net does it.
        low_resolution=[change._replace(values=change.values * 3) for change in zooms],
        inverted_gamma=factors(config.inverted_gamma_p, *config.gamma),
        gamma=factors(config.gamma_p, *config.gamma),
    )


def apply_augmentation_(images: Tensor, augmentation: Augmentation) -> Tensor:
    """All transforms in nnU-Net's order, in place.

    Args:
        images: (B, C, D, H, W), floating point; changed.
        augmentation: parameters of as many crops and channels.

    Returns:
        ``images``.
    """
    for volume, change in _volumes(images, augmentation.noise):
        add_noise_(volume, change.values[0], change.seed)
    for volume, change in _volumes(images, augmentation.blur):
        volume.copy_(blurred(volume, change.values))
    for volume, change in _volumes(images, augmentation.brightness):
        volume.mul_(change.values[0])
    for volume, change in _volumes(images, augmentation.contrast):
        change_contrast_(volume, change.values[0])
    for volume, change in _volumes(images, augmentation.low_resolution):
        volume.copy_(at_low_resolution(volume, change.values))
    for volume, change in _volumes(images, augmentation.inverted_gamma):
        change_gamma_(volume.neg_(), change.values[0]).neg_()
    for volume, change in _volumes(images, augmentation.gamma):
        change_gamma_(volume, change.values[0])
    return images


def _volumes(images: Tensor, changes: Sequence[Change]) -> Iterator[tuple[Tensor, Change]]:
    return ((images[change.sample, change.channel], change) for change in changes)


def add_noise_(volume: Tensor, deviation: float, seed: int) -> Tensor:
    """Gaussian noise of a standard deviation on a volume (D, H, W), in place; the same seed gives the same noise."""
    generator = torch.Generator(volume.device).manual_seed(seed)
    noise = torch.empty_like(volume).normal_(generator=generator)
    return volume.add_(noise, alpha=deviation)


def blurred(volume: Tensor, sigmas: Sequence[float]) -> Tensor:
    """A volume (D, H, W) under a Gaussian of a standard deviation (voxels) per axis; mirrored beyond its ends.

    The kernel is as wide as batchgeneratorsv2's, and no wider than mirroring at the ends of a short axis allows.
    """
    result = volume[None, None]
    for axis, sigma in enumerate(sigmas):
        reach = min(int((KERNEL_SIGMAS * sigma + 0.5) / 2), volume.shape[axis] - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=volume.dtype) / sigma) ** 2)
        shape = [1] * 5
        shape[axis + 2] = len(kernel)
        padding = [0] * 6
        padding[4 - 2 * axis : 6 - 2 * axis] = [reach, reach]
        weights = (kernel / kernel.sum()).view(shape).to(volume.device, non_blocking=True)
        result = F.conv3d(F.pad(result, padding, mode="reflect"), weights)
    return result[0, 0]


def change_contrast_(volume: Tensor, factor: float) -> Tensor:
    """Distances to the mean times a factor, in place, clamped to the range that the volume had."""
    low, high = volume.aminmax()
    mean = volume.mean()
    return volume.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def at_low_resolution(volume: Tensor, zooms: Sequence[float]) -> Tensor:
    """A volume (D, H, W) brought to a smaller size by nearest neighbours and back trilinearly."""
    small = [max(1, round(size * zoom)) for size, zoom in zip(volume.shape, zooms, strict=True)]
    lowered = F.interpolate(volume[None, None], small, mode="nearest-exact")
    return F.interpolate(lowered, volume.shape, mode="trilinear")[0, 0]


def change_gamma_(volume: Tensor, exponent: float) -> Tensor:
    """A gamma curve over the range of a volume, in place; mean and standard deviation stay what they were."""
    low, high = volume.aminmax()
    span, mean, deviation = high - low, volume.mean(), volume.std()
    volume.sub_(low).div_(span.clamp_min(TINY)).pow_(exponent).mul_(span).add_(low)
    return volume.sub_(volume.mean()).mul_(deviation / volume.std().clamp_min(TINY)).add_(mean)


def draw_cutouts(
    batch: int, patch: Triple, generator: np.random.Generator, *, smallest: float, largest: float, most: float
) -> list[list[Window]]:
    """Boxes to cut out of each crop, until a share of its voxels is covered that is uniform between 0 and ``most``.

    Args:
        batch: crops.
        patch: voxels per axis.
        generator: owner of the randomness.
        smallest: shortest side, as a share of the axis.
        largest: longest side, as a share of the axis.
        most: largest share of the voxels.

    Raises:
        ValueError: the shares are not 0 < smallest <= largest <= 1, or ``most`` is not below 1.
    """
    if not (0.0 < smallest <= largest <= 1.0 and 0.0 <= most < 1.0):
        raise ValueError(
            "0 < smallest <= largest <= 1 and 0 <= most < 1 must hold for boxes to cut out (shares of the patch), got "
            f"{smallest}, {largest} and {most}."
        )
    size = np.array(patch)
    crops: list[list[Window]] = []
    for _ in range(batch):
        covered, wanted = np.zeros(patch, dtype=bool), generator.uniform(0, most)
        boxes: list[Window] = []
        while covered.mean() < wanted:
            sides = np.maximum(1, np.round(generator.uniform(smallest, largest, 3) * size)).astype(int)
            starts = generator.integers(0, size - sides + 1)
            d, h, w = (slice(int(a), int(a + b)) for a, b in zip(starts, sides, strict=True))
            covered[d, h, w] = True
            boxes.append((d, h, w))
        crops.append(boxes)
    return crops
