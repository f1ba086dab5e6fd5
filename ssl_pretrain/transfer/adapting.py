"""Tensors of one network made into those of another: channels of the image, kernels, steps of upsampling.

Pure functions on weights of convolutions, ``(C_out, C_in, *kernel)``, and of transposed ones,
``(C_in, C_out, *kernel)``. Learned positions have theirs in :func:`ssl_pretrain.networks.tokens.resize_positions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def check_channels(channels: Sequence[int], ours: int, theirs: int) -> tuple[int, ...]:
    """Refuse a mapping of input channels that does not fit network and file.

    Args:
        channels: for each channel of the network the number of the file's channel, counted from 0.
        ours: input channels of the network.
        theirs: input channels of the file's network.

    Raises:
        ValueError: another number of entries than the network has channels, or a channel that the file does not have.
    """
    numbers = tuple(int(number) for number in channels)
    shown = " ".join(map(str, numbers))
    if len(numbers) != ours:
        raise ValueError(
            f"channels {shown!r} names {len(numbers)} channels, but the network has {ours} input channels. "
            "Name one channel of the file for each channel of the network."
        )
    absent = [number for number in numbers if not 0 <= number < theirs]
    if absent:
        raise ValueError(
            f"channels {shown!r} asks for channel {absent[0]} of the file, which has {theirs} input channels. "
            f"Use numbers from 0 to {theirs - 1}."
        )
    return numbers


def repeated_channels(ours: int, theirs: int) -> tuple[int, ...]:
    """The file's channels in turn, until each of the network's has one: ``(0, 1, 0)`` for 3 and 2."""
    return tuple(number % theirs for number in range(ours))


def spread_channels(weight: Tensor, channels: Sequence[int]) -> Tensor:
    """Let input channel *i* see what the file's channel ``channels[i]`` saw.

    A channel of the file that is used several times is divided by the number of times. So the answer to an image whose
    channels agree as the mapping says is the answer of the file's network; with every channel of the file in use, that
    includes images of identical channels. A channel of the file that is left out counts as 0, which is the mean of a
    normalised image; nothing else is scaled up for it.

    Args:
        weight: (C_out, C_in, *kernel).
        channels: of the file, one for each channel of the network.

    Returns:
        (C_out, len(channels), *kernel).
    """
    times = Counter(channels)
    divisors = torch.tensor([times[number] for number in channels], dtype=weight.dtype, device=weight.device)
    return weight[:, list(channels)] / divisors.view(1, -1, *[1] * (weight.dim() - 2))


def average_channels(weight: Tensor, count: int) -> Tensor:
    """Let fewer input channels do the work of more: each is the mean of the file's, scaled up to the same sum.

    A convolution adds its input channels up, so the answer to identical channels stays the same only if the sum over
    input channels does: the mean is multiplied by how many times fewer channels there are.

    Args:
        weight: (C_out, C_in, *kernel).
        count: input channels of the network.

    Returns:
        (C_out, count, *kernel).
    """
    mean = weight.mean(1, keepdim=True) * (weight.shape[1] / count)
    return mean.repeat(1, count, *[1] * (weight.dim() - 2))


def kernel_fits(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether :func:`fit_kernel` can make one kernel size of another: odd sizes that shrink to 1, or grow."""
    pairs = zip(theirs, ours, strict=True)
    return all(t == o or (t % 2 == 1 and o % 2 == 1 and (o == 1 or o > t)) for t, o in pairs)


def fit_kernel(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Change the kernel of a convolution along the axes where it differs.

    Along an axis on which the kernel shrinks to 1 its mean is taken. The convolutions of these networks are followed by
    a normalisation, which takes out that the mean is smaller than the sum. Along an axis on which it grows, the kernel
    stands in the middle among zeros: with padding that keeps the shape, it computes what it computed.

    Args:
        weight: (C_out, C_in, *kernel).
        size: kernel that is wanted; see :func:`kernel_fits`.
    """
    for axis, wanted in enumerate(size, start=2):
        if wanted < weight.shape[axis]:
            weight = weight.mean(axis, keepdim=True)
    # The last axis comes first in what pad() wants.
    margins = [(wanted - given) // 2 for wanted, given in zip(size, weight.shape[2:], strict=True)]
    return functional.pad(weight, [margin for m in reversed(margins) for margin in (m, m)])


def step_fits(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether :func:`fit_step` can make one step of upsampling of another: equal, or 1 on one side."""
    return all(t == o or 1 in (t, o) for t, o in zip(theirs, ours, strict=True))


def fit_step(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Change the step of a transposed convolution whose kernel is its stride, along the axes where it differs.

    From more to 1 the mean is taken: a voxel gets the average of those that it stands for. From 1 to more the value is
    repeated: each finer voxel gets what the coarser one got.

    Args:
        weight: (C_in, C_out, *kernel).
        size: kernel that is wanted; see :func:`step_fits`.
    """
    for axis, wanted in enumerate(size, start=2):
        if wanted < weight.shape[axis]:
            weight = weight.mean(axis, keepdim=True)
    return weight.expand(*weight.shape[:2], *size).contiguous()
