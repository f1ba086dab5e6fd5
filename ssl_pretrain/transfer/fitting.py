"""What to do with one tensor that a file offers for one tensor of a network."""

from __future__ import annotations

from collections.abc import Sequence
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


def judge(slot: Slot, offered: Tensor, weights: WeightsFile, channels: Sequence[int] = ()) -> Verdict:
    """Decide what happens with an offered tensor, and make the values that are to be copied.

    Args:
        slot: the tensor of the network.
        offered: what the file has for it.
        weights: the file.
        channels: of the file, one for each of the network's, checked; none to repeat or average them.
    """
    if slot.is_head and not weights.ours:
        return Verdict("fresh", "segmentation head: its outputs are the classes of another dataset")
    if slot.is_rotary:
        return Verdict("fresh", ROTARY_TABLE)
    if slot.tensor.is_floating_point() != offered.is_floating_point():
        return Verdict("fresh", f"{offered.dtype} in the file, {slot.tensor.dtype} in the network")
    if slot.positions is not None and slot.adapts(offered):
        return _positioned(slot.positions, offered, weights.patch)
    mapped = bool(channels) and slot.input_projection
    if slot.tensor.shape == offered.shape and not mapped:
        return Verdict("loaded", "", offered)
    if not slot.adapts(offered):
        return Verdict("fresh", _misfit(slot, offered))
    return _convolved(slot, offered, channels)


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
