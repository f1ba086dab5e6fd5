"""What to do with one tensor that a file offers for one tensor of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.transfer.adapting import (
    average_channels,
    fit_kernel,
    fit_step,
    repeated_channels,
    spread_channels,
)
from ssl_pretrain.transfer.matching import Positions, Slot
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


def judge(slot: Slot, offered: Tensor, weights: WeightsFile, inputs: Inputs) -> Verdict:
    """Decide what happens with an offered tensor, and make the values that are to be copied.

    Args:
        slot: the tensor of the network.
        offered: what the file has for it.
        weights: the file.
        inputs: what the channels are of layers that see the image.
    """
    if slot.is_head and not weights.ours:
        return Verdict("fresh", "segmentation head: its outputs are the classes of another dataset")
    if slot.is_rotary:
        return Verdict("fresh", ROTARY_TABLE)
    if slot.tensor.is_floating_point() != offered.is_floating_point():
        return Verdict("fresh", f"{offered.dtype} in the file, {slot.tensor.dtype} in the network")
    if slot.positions is not None and slot.adapts(offered):
        return _positioned(slot.positions, offered, weights.patch)
    same = slot.tensor.shape == offered.shape
    if not same and not slot.adapts(offered):
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
