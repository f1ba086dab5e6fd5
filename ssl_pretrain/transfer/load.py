"""Loading pretrained weights into the network that nnU-Net (or anybody) built."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_pretrain.networks.anatomy import is_rotary
from ssl_pretrain.transfer.fitting import Inputs, check_channels, judge
from ssl_pretrain.transfer.images import Images, differences
from ssl_pretrain.transfer.matching import Alignment, Offer, align
from ssl_pretrain.transfer.report import Report, TensorEntry, shown
from ssl_pretrain.transfer.weights_file import WeightsFile, read_weights

__all__ = ["Report", "TensorEntry", "load_pretrained"]

logger = logging.getLogger("ssl_pretrain")

MANY = 3
"""How many tensors a message names."""


class _Plan(NamedTuple):
    report: Report
    copies: list[tuple[Tensor, Tensor]]
    inexact: list[TensorEntry]


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
    alignment = align(weights.tensors, network)
    plan = _plan(weights, alignment, channels, images or Images())
    if not plan.copies:
        raise ValueError(_nothing_fits(weights, alignment.offers, plan.report))
    if strict and plan.inexact:
        raise ValueError(_not_exact(weights, plan.inexact))
    with torch.no_grad():
        for target, value in plan.copies:
            target.copy_(value)
    logger.info("%s", plan.report.complete if logger.isEnabledFor(logging.DEBUG) else plan.report)
    for line in plan.report.warnings:
        logger.warning("%s", line)
    return plan.report


def _plan(weights: WeightsFile, alignment: Alignment, channels: Sequence[int] | None, images: Images) -> _Plan:
    """Decide about every tensor; nothing is copied yet, so that a refusal leaves the network as it is."""
    _check_dimensions(weights, alignment.offers)
    seen = _inputs(weights, alignment.offers, channels, images)
    entries: dict[str, list[TensorEntry]] = {"loaded": [], "adapted": [], "fresh": []}
    copies: list[tuple[Tensor, Tensor]] = []
    inexact: list[TensorEntry] = []
    for offer in alignment.offers:
        slot, verdict = offer.slot, judge(offer, weights, seen)
        shape = tuple(offer.tensor.shape) if offer.tensor is not None else None
        entry = TensorEntry(slot.names[0], shape, tuple(slot.tensor.shape), verdict.reason or offer.note)
        entries[verdict.kind].append(entry)
        if verdict.value is not None:
            copies.append((slot.tensor, verdict.value))
        if verdict.kind != "loaded" and not slot.is_head and not slot.is_rotary:
            inexact.append(entry)
    known = {name for offer in alignment.offers for name in offer.slot.names}
    unused = [TensorEntry(key, tuple(weights.tensors[key].shape), None, why) for key, why in alignment.unused.items()]
    left_out = {key: why for key, why in weights.left_out.items() if key not in known}
    unused += [TensorEntry(key, None, None, f"left out of the file: {why}") for key, why in left_out.items()]
    inexact += [entry for entry in unused if entry.name not in weights.left_out and not is_rotary(entry.name)]
    tables = {kind: tuple(rows) for kind, rows in entries.items()}
    warnings = differences(weights.images, images, weights.file, channels)
    report = Report(weights.file, **tables, unused=tuple(unused), images=weights.images, warnings=warnings)
    return _Plan(report, copies, inexact)


def _check_dimensions(weights: WeightsFile, offers: list[Offer]) -> None:
    """Refuse the weights of a 2-D network for a 3-D one, and the reverse: only their biases and norms would agree."""
    pairs = [(offer.slot, offer.tensor) for offer in offers if offer.tensor is not None and offer.slot.convolution]
    convolutions = [(slot, value) for slot, value in pairs if value.dim() in (3, 4, 5)]
    if not convolutions or any(slot.tensor.dim() == value.dim() for slot, value in convolutions):
        return
    slot, value = convolutions[0]
    raise ValueError(
        f"{weights.file} holds the weights of a {value.dim() - 2}-D network, and this network is "
        f"{slot.tensor.dim() - 2}-D: {slot.names[0]} is {shown(tuple(value.shape))} in the file and "
        f"{shown(tuple(slot.tensor.shape))} here. Use weights that were pretrained in {slot.tensor.dim() - 2}-D, or "
        f"a configuration of nnU-Net that is {value.dim() - 2}-D."
    )


def _inputs(weights: WeightsFile, offers: list[Offer], channels: Sequence[int] | None, images: Images) -> Inputs:
    """What the input channels are; ``channels`` are checked against the first layer that sees the image."""
    pairs = ((offer.slot.tensor, offer.tensor) for offer in offers if offer.slot.input_projection)
    seen = ((ours.shape[1], theirs.shape[1]) for ours, theirs in pairs if theirs is not None and theirs.dim() > 2)
    first = next(seen, None)
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


def _nothing_fits(weights: WeightsFile, offers: list[Offer], report: Report) -> str:
    # The beginnings of dotted names tell one kind of file from another.
    kinds = [offer.slot.names[0] for offer in offers], weights.tensors
    cut = ([".".join(part for part in name.split(".")[:2] if not part.isdigit()) for name in names] for names in kinds)
    expected, found = (", ".join(list(dict.fromkeys(names))[:8]) for names in cut)
    refused = [entry for entry in report.fresh if entry.file_shape is not None]
    return (
        f"Nothing in {weights.file} fits this network. The file has {found}; the network has {expected}. "
        + (f"Names that agree: {_named(refused)}. " if refused else "")
        + "Use weights that were made with the same network."
    )


def _not_exact(weights: WeightsFile, inexact: list[TensorEntry]) -> str:
    more = f" and {len(inexact) - MANY} more" if len(inexact) > MANY else ""
    return (
        f"{weights.file} does not fit this network exactly, and strict accepts nothing else: {_named(inexact)}{more}. "
        "Leave strict out to load what fits."
    )


def _named(entries: Sequence[TensorEntry]) -> str:
    return "; ".join(
        f"{entry.name}: {entry.reason} ({shown(entry.file_shape)} in the file, {shown(entry.network_shape)} here)"
        for entry in entries[:MANY]
    )
