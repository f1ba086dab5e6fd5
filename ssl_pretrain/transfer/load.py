"""Loading pretrained weights into the network that nnU-Net (or anybody) built."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_pretrain.transfer.adapting import check_channels
from ssl_pretrain.transfer.fitting import ROTARY_TABLE, Inputs, Verdict, judge
from ssl_pretrain.transfer.images import Images, differences
from ssl_pretrain.transfer.matching import Alignment, Slot, align, beginnings, is_rotary, slots_of
from ssl_pretrain.transfer.report import Entry, Report, shown
from ssl_pretrain.transfer.stages import renumbered
from ssl_pretrain.transfer.weights_file import WeightsFile, read_weights

__all__ = ["Entry", "Report", "load_pretrained"]

logger = logging.getLogger("ssl_pretrain")

MANY = 3
"""How many tensors a message names."""


class _Plan(NamedTuple):
    report: Report
    copies: list[tuple[Tensor, Tensor]]
    inexact: list[Entry]


def load_pretrained(
    network: nn.Module,
    file: str | Path | WeightsFile,
    *,
    channels: Sequence[int] | None = None,
    strict: bool = False,
    fix_nnssl_axes: bool = False,
    images: Images | None = None,
) -> Report:
    """Copy pretrained weights into a network, as far as they can be made to fit, and say what was done with each.

    Accepts our ``checkpoint_final.pth`` (only what is pretrained in it is taken), checkpoints of nnU-Net, bare
    ``state_dict``\\ s, files that hold only an encoder, and names with the prefixes of wrappers. Segmentation heads are
    taken from a file of ours alone: elsewhere their outputs are the classes of another dataset. Tensors of another
    shape are adapted where that has a meaning: other input channels, other kernels along an axis, another patch size,
    another number of stages (``documentation/explanation/adapting-weights.md``). The report goes to the log as well.

    Args:
        network: changed in place; may be wrapped in DistributedDataParallel or torch.compile.
        file: any that :func:`~ssl_pretrain.transfer.weights_file.read_weights` opens, or what that has read; nothing
            in it is executed.
        channels: for each input channel of the network the file's channel that it corresponds to, counted from 0; None
            to repeat or average them.
        strict: load only where every tensor of the network but its segmentation heads comes from the file as it is, and
            nothing of the file is left over.
        fix_nnssl_axes: swap the first two axes of position embeddings back that nnssl's MAE trainers exchanged.
        images: what the network works on, e.g. :func:`~ssl_pretrain.transfer.images.images_of_plans`. Where spacing,
            normalisation or order of axes are not those of the pretraining, the report's ``warnings`` say so. Input
            channels beyond those of the image are the segmentation of an earlier stage, and stay as they are.

    Raises:
        FileNotFoundError: no such file, or none that can be reached.
        ValueError: not a checkpoint, needs arbitrary code, weights of a 2-D network for a 3-D one or the reverse,
            ``channels`` that do not fit, nothing in it fits, or ``strict`` and it is not exact. The network is
            unchanged then.
    """
    weights = file if isinstance(file, WeightsFile) else read_weights(file, fix_nnssl_axes=fix_nnssl_axes)
    slots = slots_of(network)
    alignment = align(weights.tensors, slots, network)
    plan = _plan(weights, slots, alignment, channels, images or Images())
    if not plan.copies:
        raise ValueError(_nothing_fits(weights, slots, plan.report))
    if strict and plan.inexact:
        raise ValueError(_not_exact(weights, plan.inexact))
    with torch.no_grad():
        for target, value in plan.copies:
            target.copy_(value)
    logger.info("%s", plan.report.complete if logger.isEnabledFor(logging.DEBUG) else plan.report)
    for line in plan.report.warnings:
        logger.warning("%s", line)
    return plan.report


def _plan(
    weights: WeightsFile, slots: list[Slot], alignment: Alignment, channels: Sequence[int] | None, images: Images
) -> _Plan:
    """Decide about every tensor; nothing is copied yet, so that a refusal leaves the network as it is."""
    offers = _offers(slots, alignment)
    _check_dimensions(weights, slots, offers)
    seen = _inputs(weights, slots, offers, channels, images)
    entries: dict[str, list[Entry]] = {"loaded": [], "adapted": [], "fresh": []}
    copies: list[tuple[Tensor, Tensor]] = []
    inexact: list[Entry] = []
    for slot in slots:
        key, name = offers.get(slot.names[0]), slot.names[0]
        offered = weights.tensors[key] if key is not None else None
        if offered is None:
            verdict = Verdict("fresh", _absence(slot, weights, alignment))
        else:
            verdict = judge(slot, offered, weights, seen)
        reason = verdict.reason or _renumbering(key, name, alignment)
        shape = tuple(offered.shape) if offered is not None else None
        entry = Entry(name, shape, tuple(slot.tensor.shape), reason)
        entries[verdict.kind].append(entry)
        if verdict.value is not None:
            copies.append((slot.tensor, verdict.value))
        if verdict.kind != "loaded" and not slot.is_head and not slot.is_rotary:
            inexact.append(entry)
    unused = _unused(weights, slots, alignment)
    inexact += [entry for entry in unused if entry.name not in weights.left_out and not is_rotary(entry.name)]
    tables = {kind: tuple(rows) for kind, rows in entries.items()}
    warnings = differences(weights.images, images, weights.file, channels)
    report = Report(weights.file, **tables, unused=unused, images=weights.images, warnings=warnings)
    return _Plan(report, copies, inexact)


def _offers(slots: list[Slot], alignment: Alignment) -> dict[str, str]:
    """Name in the file by a slot's first name; the first alias that the file has counts."""
    by_name = {name: key for key, name in reversed(alignment.names.items())}
    found = {slot.names[0]: next((by_name[name] for name in slot.names if name in by_name), None) for slot in slots}
    return {name: key for name, key in found.items() if key is not None}


def _check_dimensions(weights: WeightsFile, slots: list[Slot], offers: dict[str, str]) -> None:
    """Refuse the weights of a 2-D network for a 3-D one, and the reverse: only their biases and norms would agree."""
    convolutions = [(slot, weights.tensors[offers[slot.names[0]]]) for slot in slots if slot.names[0] in offers]
    convolutions = [(slot, value) for slot, value in convolutions if slot.convolution and value.dim() in (3, 4, 5)]
    if not convolutions or any(slot.tensor.dim() == value.dim() for slot, value in convolutions):
        return
    slot, value = convolutions[0]
    raise ValueError(
        f"{weights.file} holds the weights of a {value.dim() - 2}-D network, and this network is "
        f"{slot.tensor.dim() - 2}-D: {slot.names[0]} is {shown(tuple(value.shape))} in the file and "
        f"{shown(tuple(slot.tensor.shape))} here. Use weights that were pretrained in {slot.tensor.dim() - 2}-D, or "
        f"a configuration of nnU-Net that is {value.dim() - 2}-D."
    )


def _inputs(
    weights: WeightsFile,
    slots: list[Slot],
    offers: dict[str, str],
    channels: Sequence[int] | None,
    images: Images,
) -> Inputs:
    """What the input channels are; ``channels`` are checked against the first layer that sees the image."""
    projections = (slot for slot in slots if slot.input_projection and slot.names[0] in offers)
    pairs = ((slot.tensor, weights.tensors[offers[slot.names[0]]]) for slot in projections)
    first = next(((int(ours.shape[1]), int(theirs.shape[1])) for ours, theirs in pairs if theirs.dim() > 2), None)
    if first is None:
        if channels is None:
            return Inputs()
        raise ValueError(
            f"channels {' '.join(map(str, channels))!r} cannot be mapped: {weights.file} has no weights for the layer "
            "of this network that sees the image. Leave channels out."
        )
    ours, theirs = first
    image = min(ours, images.image_channels or ours)
    image_there = min(theirs, weights.images.image_channels or theirs)
    mapped = check_channels(channels, image, image_there) if channels is not None else ()
    return Inputs(ours, theirs, image, image_there, mapped)


def _absence(slot: Slot, weights: WeightsFile, alignment: Alignment) -> str:
    """Why the file has nothing for a tensor of the network."""
    name = slot.names[0]
    if slot.is_rotary:
        return ROTARY_TABLE
    left_out = next((weights.left_out[known] for known in slot.names if known in weights.left_out), None)
    if left_out is not None:
        return f"left out of the file: {left_out}"
    ours, theirs = alignment.network_stages, alignment.stages
    if ours > theirs > 0 and renumbered(name, ours, theirs) is None:
        return f"the file has {theirs} stages, the network {ours}; as initialised"
    return "nothing in the file; as initialised"


def _renumbering(key: str | None, name: str, alignment: Alignment) -> str:
    """Where a tensor of a decoder comes from, if the decoders count to different numbers."""
    ours, theirs = alignment.network_stages, alignment.stages
    if key is None or ours == theirs or not theirs or renumbered(name, ours, theirs) == name:
        return ""
    return f"{key} in the file: the same resolution"


def _unused(weights: WeightsFile, slots: list[Slot], alignment: Alignment) -> tuple[Entry, ...]:
    known = {name for slot in slots for name in slot.names}
    rest = [key for key in weights.tensors if alignment.names.get(key) not in known]
    found = [Entry(key, tuple(weights.tensors[key].shape), None, _surplus(key, alignment)) for key in rest]
    left_out = {key: why for key, why in weights.left_out.items() if key not in known}
    return (*found, *(Entry(key, None, None, f"left out of the file: {why}") for key, why in left_out.items()))


def _surplus(key: str, alignment: Alignment) -> str:
    """Why a tensor of the file has no place in the network."""
    if is_rotary(key):
        return "rotary table: the network computes its own"
    ours, theirs = alignment.network_stages, alignment.stages
    if key in alignment.surplus:
        return f"the file has {theirs} stages, the network {ours}"
    return "no such tensor in the network"


def _nothing_fits(weights: WeightsFile, slots: list[Slot], report: Report) -> str:
    expected = ", ".join(beginnings(slot.names[0] for slot in slots)[:8])
    found = ", ".join(beginnings(weights.tensors)[:8])
    refused = [entry for entry in report.fresh if entry.file_shape is not None]
    return (
        f"Nothing in {weights.file} fits this network. The file has {found}; the network has {expected}. "
        + (f"Names that agree: {_named(refused)}. " if refused else "")
        + "Use weights that were made with the same network."
    )


def _not_exact(weights: WeightsFile, inexact: list[Entry]) -> str:
    more = f" and {len(inexact) - MANY} more" if len(inexact) > MANY else ""
    return (
        f"{weights.file} does not fit this network exactly, and strict accepts nothing else: {_named(inexact)}{more}. "
        "Leave strict out to load what fits."
    )


def _named(entries: Sequence[Entry]) -> str:
    return "; ".join(
        f"{entry.name}: {entry.reason} ({shown(entry.file_shape)} in the file, {shown(entry.network_shape)} here)"
        for entry in entries[:MANY]
    )
