"""What to do with one tensor that a file offers for one tensor of a network: channels, kernels, steps, positions.

The functions that change weights are pure. Convolutions have ``(C_out, C_in, *kernel)``, transposed ones
``(C_in, C_out, *kernel)``. Learned positions have theirs in :func:`ssl_pretrain.networks.tokens.resize_positions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.networks.anatomy import Positions
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.transfer.matching import Offer, Slot
from ssl_pretrain.transfer.report import shown
from ssl_pretrain.transfer.weights_file import WeightsFile

ROTARY_TABLE = "rotary table: computed for the patch of this network"


class Verdict(NamedTuple):
    """A decision.

    Attributes:
        kind: ``loaded``, ``adapted`` or ``fresh``.
        reason: how, or why not.
        value: the values to copy; None for ``fresh``.
    """

    kind: str
    reason: str
    value: Tensor | None = None


class Inputs(NamedTuple):
    """What the input channels of the layers are that see the image.

    Attributes:
        ours: of the network.
        theirs: of the file.
        image: how many of the network's are the image's; those after them are the segmentation of an earlier stage.
        image_there: how many of the file's, likewise.
        channels: of the file, one for each of the network's image, checked; none to repeat or average them.
    """

    ours: int = 0
    theirs: int = 0
    image: int = 0
    image_there: int = 0
    channels: tuple[int, ...] = ()


def judge(offer: Offer, weights: WeightsFile, inputs: Inputs) -> Verdict:
    """Decide what happens with an offer, and make the values that are to be copied.

    Args:
        offer: what the file has for a tensor of the network.
        weights: the file.
        inputs: what the channels are of layers that see the image.
    """
    slot, offered = offer.slot, offer.tensor
    if slot.is_rotary:
        return Verdict("fresh", ROTARY_TABLE)
    if offered is None:
        left_out = next((weights.left_out[name] for name in slot.names if name in weights.left_out), None)
        return Verdict("fresh", offer.note if left_out is None else f"left out of the file: {left_out}")
    if slot.is_head and not weights.ours:
        return Verdict("fresh", "segmentation head: its outputs are the classes of another dataset")
    if slot.tensor.is_floating_point() != offered.is_floating_point():
        return Verdict("fresh", f"{offered.dtype} in the file, {slot.tensor.dtype} in the network")
    if slot.positions is not None and offer.adapts:
        return _positioned(slot.positions, offered, weights.patch)
    same = slot.tensor.shape == offered.shape
    if not same and not offer.adapts:
        return Verdict("fresh", _misfit(slot, offered))
    seen = slot.input_projection and offered.shape[1:2] == (inputs.theirs,)
    cascade = seen and (inputs.image, inputs.image_there) != (inputs.ours, inputs.theirs)
    if same and not (seen and inputs.channels) and (not cascade or inputs.image == inputs.image_there):
        return Verdict("loaded", "", offered)
    if cascade:
        return _of_a_cascade(slot, offered, inputs)
    return _convolved(slot, offered, inputs.channels if seen else ())


def _of_a_cascade(slot: Slot, offered: Tensor, inputs: Inputs) -> Verdict:
    """Channels of the image from the file; those of the previous segmentation, of other classes, as they are."""
    image = replace(slot, tensor=slot.tensor[:, : inputs.image])
    _, reason, value = _convolved(image, offered[:, : inputs.image_there], inputs.channels)
    assert value is not None
    previous = slot.tensor[:, inputs.image :].detach()
    fresh, unused = previous.shape[1], inputs.theirs - inputs.image_there
    said = [f"{fresh} channels of the previous segmentation as initialised"] if fresh else []
    said += [f"{unused} channels of the previous segmentation in the file left out"] if unused else []
    return Verdict("adapted", "; ".join(filter(None, [reason, *said])), torch.cat([value.to(previous), previous], 1))


def _convolved(slot: Slot, offered: Tensor, channels: Sequence[int] = ()) -> Verdict:
    """The weight of a convolution with other kernels, other input channels, or both."""
    ours, size = slot.tensor.shape, tuple(slot.tensor.shape[2:])
    value, notes = offered.float() if offered.dtype in (torch.float16, torch.bfloat16) else offered, []
    before = tuple(value.shape[2:])
    if before != size:
        value = fit_step(value, size) if slot.transposed else fit_kernel(value, size)
        notes.append(_kernel_note(before, size, slot.transposed))
    theirs = int(value.shape[1])
    if slot.input_projection and channels:
        if tuple(channels) != tuple(range(theirs)):
            value = spread_channels(value, channels)
            notes.append(f"channels {_listed(channels)} of the file, as asked{_divided(channels)}")
    elif ours[1] > theirs:
        turns = repeated_channels(ours[1], theirs)
        value = spread_channels(value, turns)
        even = f"repeated {ours[1] // theirs} times over channels, divided by {ours[1] // theirs}"
        notes.append(f"channels {_listed(turns)} of the file{_divided(turns)}" if ours[1] % theirs else even)
    elif ours[1] < theirs:
        value = average_channels(value, ours[1])
        notes.append(f"mean of {theirs} channels, times {theirs}/{ours[1]}")
    return Verdict("adapted" if notes else "loaded", "; ".join(notes), value)


def _positioned(positions: Positions, offered: Tensor, patch: Triple | None) -> Verdict:
    """An embedding of positions, which may have been learned with another patch size."""
    tokens, guessed = offered.shape[1], ""
    if patch is not None:
        # Both networks have tokens of one size, or their projections of the image would differ.
        edge = round((prod(patch) / tokens) ** (1 / 3))
        grid = grid_of(patch, positions.token or (max(1, edge),) * 3)
        if prod(grid) != tokens:
            return Verdict("fresh", f"{tokens} positions are not those of a patch of {patch}")
    elif tokens == prod(positions.grid):
        return Verdict("loaded", "", offered)
    else:
        edge = round(tokens ** (1 / 3))
        grid, guessed = (edge, edge, edge), ", taken for a cube as the file does not say its patch size,"
        if prod(grid) != tokens:
            return Verdict("fresh", "positions of another patch size, and the file does not say of which")
    if grid == positions.grid:
        return Verdict("loaded", "", offered)
    value = resize_positions(offered, grid, positions.grid)
    reason = f"positions interpolated from {shown(grid)}{guessed} to {shown(positions.grid)} tokens"
    return Verdict("adapted", reason, value)


def _misfit(slot: Slot, offered: Tensor) -> str:
    """Why a tensor of another shape cannot be adapted."""
    ours, theirs = tuple(slot.tensor.shape), tuple(offered.shape)
    if not slot.convolution or len(ours) != len(theirs) or ours[:2] != theirs[:2]:
        return "the shapes differ"
    what = "steps of upsampling" if slot.transposed else "kernels"
    return f"{what} of {shown(theirs[2:])} cannot become {shown(ours[2:])}"


def _kernel_note(before: tuple[int, ...], after: tuple[int, ...], transposed: bool) -> str:
    what = "step of upsampling" if transposed else "kernel"
    ways = []
    if any(a < b for b, a in zip(before, after, strict=True)):
        ways.append("mean")
    if any(a > b for b, a in zip(before, after, strict=True)):
        ways.append("repeated" if transposed else "centred among zeros")
    return f"{what} {shown(before)} to {shown(after)}: {' and '.join(ways)}"


def _listed(channels: Sequence[int]) -> str:
    return " ".join(map(str, channels))


def _divided(channels: Sequence[int]) -> str:
    return ", each divided by how often it occurs" if len(set(channels)) < len(channels) else ""


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


def fit_kernel(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Change the kernel of a convolution along the axes where it differs.

    Along an axis on which the kernel shrinks to 1 its mean is taken. The convolutions of these networks are followed by
    a normalisation, which takes out that the mean is smaller than the sum. Along an axis on which it grows, the kernel
    stands in the middle among zeros: with padding that keeps the shape, it computes what it computed.

    Args:
        weight: (C_out, C_in, *kernel).
        size: kernel that is wanted; see :func:`~ssl_pretrain.transfer.matching.kernel_fits`.
    """
    for axis, wanted in enumerate(size, start=2):
        if wanted < weight.shape[axis]:
            weight = weight.mean(axis, keepdim=True)
    # The last axis comes first in what pad() wants.
    margins = [(wanted - given) // 2 for wanted, given in zip(size, weight.shape[2:], strict=True)]
    return functional.pad(weight, [margin for m in reversed(margins) for margin in (m, m)])


def fit_step(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Change the step of a transposed convolution whose kernel is its stride, along the axes where it differs.

    From more to 1 the mean is taken: a voxel gets the average of those that it stands for. From 1 to more the value is
    repeated: each finer voxel gets what the coarser one got.

    Args:
        weight: (C_in, C_out, *kernel).
        size: kernel that is wanted; see :func:`~ssl_pretrain.transfer.matching.step_fits`.
    """
    for axis, wanted in enumerate(size, start=2):
        if wanted < weight.shape[axis]:
            weight = weight.mean(axis, keepdim=True)
    return weight.expand(*weight.shape[:2], *size).contiguous()
