"""Loading pretrained weights into the network that nnU-Net (or anybody) built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import grid_of
from ssl_pretrain.networks.tokens import resize_positions
from ssl_pretrain.transfer.matching import Slot, align, beginnings, inflation, slots_of
from ssl_pretrain.transfer.weights_file import WeightsFile, read_weights

logger = logging.getLogger("ssl_pretrain")

Shape = tuple[int, ...]


class Entry(NamedTuple):
    """One tensor that a file offered to a network.

    Attributes:
        name: its name in the network.
        file_shape: its shape in the file.
        network_shape: its shape in the network.
        reason: why it was inflated or skipped; empty where it was loaded as it is.
    """

    name: str
    file_shape: Shape
    network_shape: Shape
    reason: str


@dataclass(frozen=True)
class Report:
    """What became of every tensor, of the file and of the network.

    Attributes:
        file: where the weights come from.
        loaded: copied as they are.
        inflated: adapted to the network: input projections that were repeated over channels and divided by the number
            of repetitions, and positions that were interpolated to another patch size.
        skipped: offered by the file and not taken, with the reason.
        fresh: tensors of the network to which the file offers nothing; they stay as they were initialised.
        unused: names in the file for which the network has no place.
        fraction: share of the network's numbers that now come from the file, 0 to 1.
    """

    file: Path
    loaded: tuple[Entry, ...]
    inflated: tuple[Entry, ...]
    skipped: tuple[Entry, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    fraction: float

    @property
    def summary(self) -> str:
        """The file, how much of the network comes from it, and the number of tensors of each kind."""
        kinds = ("loaded", "inflated", "skipped", "fresh", "unused")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)
        return f"Pretrained weights from {self.file}: {100 * self.fraction:.1f} % of the network. Tensors: {counts}."

    def __str__(self) -> str:
        """Return the summary, then a table with a line per tensor."""
        rows = list(self._rows())
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows)
        return "\n".join([self.summary, *(line.rstrip() for line in lines)])

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        yield ("", "tensor", "in the file", "in the network", "")
        for kind in ("loaded", "inflated", "skipped"):
            for entry in getattr(self, kind):
                yield kind, entry.name, _shown(entry.file_shape), _shown(entry.network_shape), entry.reason
        for name in self.fresh:
            yield "fresh", name, "-", "", "nothing in the file; as initialised"
        for name in self.unused:
            yield "unused", name, "", "-", "no such tensor in the network"


class _Copy(NamedTuple):
    target: Tensor
    value: Tensor


def load_pretrained(network: nn.Module, file: str | Path) -> Report:
    """Copy pretrained weights into a network, as far as they fit, and say what was done with each tensor.

    Accepts our ``checkpoint_final.pth`` (only what is pretrained in it is taken), checkpoints of nnU-Net, bare
    ``state_dict``\\ s, files that hold only an encoder, and names with the prefixes of wrappers. Segmentation heads are
    taken from a file of ours alone: elsewhere their outputs are the classes of another dataset. Where the network has
    more input channels than the file, the input projection is repeated over channels and divided by the number of
    repetitions, so that the response to identical channels stays the same. The report goes to the log as well.

    Args:
        network: changed in place; may be wrapped in DistributedDataParallel or torch.compile.
        file: opened with ``weights_only``, so nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, needs arbitrary code, or nothing in it fits. The network is unchanged then.
    """
    weights = read_weights(file)
    slots = slots_of(network)
    mapping = align(weights.tensors, slots, network)
    report, copies = _plan(weights, slots, mapping)
    if not copies:
        raise ValueError(_nothing_fits(weights, slots, report))
    with torch.no_grad():
        for target, value in copies:
            target.copy_(value)
    logger.info("%s", report)
    return report


def _plan(weights: WeightsFile, slots: list[Slot], mapping: dict[str, str]) -> tuple[Report, list[_Copy]]:
    """Decide about every tensor; nothing is copied yet, so that a refusal leaves the network as it is."""
    offers = {name: key for key, name in reversed(mapping.items())}
    entries: dict[str, list[Entry]] = {"loaded": [], "inflated": [], "skipped": []}
    fresh: list[str] = []
    copies: list[_Copy] = []
    for slot in slots:
        key = next((offers[name] for name in slot.names if name in offers), None)
        if key is None:
            fresh.append(slot.names[0])
            continue
        offered = weights.tensors[key]
        kind, reason, value = _verdict(slot, offered, weights)
        entries[kind].append(Entry(slot.names[0], tuple(offered.shape), tuple(slot.tensor.shape), reason))
        if value is not None:
            copies.append(_Copy(slot.tensor, value))
    known = {name for slot in slots for name in slot.names}
    unused = tuple(key for key in weights.tensors if mapping.get(key) not in known)
    total = sum(slot.tensor.numel() for slot in slots)
    fraction = sum(copy.target.numel() for copy in copies) / max(1, total)
    tables = {kind: tuple(rows) for kind, rows in entries.items()}
    return Report(weights.file, **tables, fresh=tuple(fresh), unused=unused, fraction=fraction), copies


def _verdict(slot: Slot, offered: Tensor, weights: WeightsFile) -> tuple[str, str, Tensor | None]:
    """Return what to do with an offered tensor, why, and the values to copy."""
    if slot.is_head and not weights.ours:
        return "skipped", "segmentation head: its outputs are the classes of another dataset", None
    if slot.tensor.is_floating_point() != offered.is_floating_point():
        return "skipped", f"{offered.dtype} in the file, {slot.tensor.dtype} in the network", None
    resized = _resized(slot, offered, weights)
    if resized is not None:
        return resized
    if slot.tensor.shape == offered.shape:
        return "loaded", "", offered
    times = inflation(slot, offered)
    if times is not None:
        spread = offered.repeat(1, times, *[1] * (offered.dim() - 2)) / times
        return "inflated", f"repeated {times} times over channels, divided by {times}", spread
    if slot.differs_in_channels(offered):
        channels = f"the network has {slot.tensor.shape[1]} input channels and the file {offered.shape[1]}"
        return "skipped", f"{channels}, which does not divide them", None
    return "skipped", "the shapes differ", None


def _resized(slot: Slot, offered: Tensor, weights: WeightsFile) -> tuple[str, str, Tensor | None] | None:
    """An embedding of positions that was learned with another patch size; None for anything else."""
    if slot.positions is None or slot.tensor.dim() != offered.dim() or slot.tensor.shape[-1] != offered.shape[-1]:
        return None
    if weights.patch is None:
        if slot.tensor.shape == offered.shape:
            return None
        return "skipped", "positions of another patch size, and the file does not say of which", None
    # Both networks have tokens of one size, or their projections of the image would differ.
    tokens = offered.shape[1]
    token = round((prod(weights.patch) / tokens) ** (1 / 3))
    grid = grid_of(weights.patch, (token, token, token))
    if prod(grid) != tokens:
        return "skipped", f"{tokens} positions are not those of a patch of {weights.patch}", None
    if grid == slot.positions:
        return None
    value = resize_positions(offered, grid, slot.positions)
    return "inflated", f"positions interpolated from {_shown(grid)} to {_shown(slot.positions)} tokens", value


def _nothing_fits(weights: WeightsFile, slots: list[Slot], report: Report) -> str:
    expected = ", ".join(beginnings(slot.names[0] for slot in slots)[:8])
    found = ", ".join(beginnings(weights.tensors)[:8])
    reasons = "; ".join(
        f"{entry.name}: {entry.reason} ({_shown(entry.file_shape)} in the file, {_shown(entry.network_shape)} here)"
        for entry in report.skipped[:3]
    )
    return (
        f"Nothing in {weights.file} fits this network. The file has {found}; the network has {expected}. "
        + (f"Names that agree: {reasons}. " if reasons else "")
        + "Use weights that were made with the same network."
    )


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
