"""Positions that nnssl learned with two axes exchanged, put right.

The masked autoencoder that nnssl builds around a Primus, and uses for all of its Primus trainers but SimMIM's, numbers
tokens in the order (second, first, third axis). Primus, and nnU-Net with it, numbers them (first, second, third). So a
token is given the learned and the rotary position of the one that is mirrored at the diagonal.

For a patch whose first two axes have the same length, renumbering undoes both, exactly. The learned positions are put
into the other order. The rotary ones turn a third of the channels of each head by the first coordinate and another
third by the second: exchanging these two thirds in the projections of queries and keys turns each by the coordinate it
was trained with, and their product, all that attention sees of them, stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.networks.primus import MODULE, TOKEN, primus_size
from ssl_pretrain.transfer.sources import nnssl
from ssl_pretrain.transfer.sources.base import Reading

POSITIONS = f"{nnssl.ENCODER}.pos_embed"
ROTATED = re.compile(rf"{nnssl.ENCODER}\.blocks\.\d+\.attn\.(q_proj|k_proj)\.(weight|bias)")
AXES = 3

MARK = "axes_in_order"
"""Entry that a plan gets once its axes are in order, so that a file written from it is not treated again."""


def are_exchanged(reading: Reading) -> bool:
    """Whether the weights come from one of the trainers that number tokens otherwise."""
    trainer = _trainer(reading)
    return _is_primus(reading) and "Eva" in trainer and "SimMIM" not in trainer and MARK not in _plan(reading)


def with_axes_in_order(reading: Reading, file: Path) -> Reading:
    """The same network with its positions in the order in which nnU-Net numbers tokens: the same features.

    Raises:
        ValueError: the axes of this file are in order, or cannot be put into it.
    """
    plan = _plan(reading)
    if not _is_primus(reading):
        raise ValueError(
            f"fix_nnssl_axes is for Primus checkpoints of nnssl, and {file} is none ({reading.origin}"
            f"{f', {name}' if (name := nnssl.architecture_of(plan)) else ''}). Leave it out."
        )
    if "SimMIM" in _trainer(reading) or MARK in plan:
        why = "they were put in order before" if MARK in plan else f"nnssl's {_trainer(reading)} has them right"
        raise ValueError(f"fix_nnssl_axes would put the axes of {file} out of order: {why}. Leave it out.")
    grid = _grid(reading, file)
    described: Mapping[str, Any] = plan["architecture_plans"]
    size = primus_size(
        {
            "network_class_name": f"{MODULE}.{nnssl.architecture_of(plan)}",
            "arch_kwargs": described.get("arch_kwargs") or {},
        }
    )
    if size is None or size.width != reading.tensors[POSITIONS].shape[-1]:
        raise ValueError(f"{file} is no {nnssl.architecture_of(plan)}, as its plan says it is: the sizes differ.")
    exchange = _exchange(size.heads)
    tensors = {name: exchange(value) if ROTATED.fullmatch(name) else value for name, value in reading.tensors.items()}
    tensors[POSITIONS] = _reordered(reading.tensors[POSITIONS], grid)
    metadata = {**reading.metadata, nnssl.PLAN: {**plan, MARK: True}}
    return replace(reading, tensors=tensors, origin=f"{reading.origin}, axes put in order", metadata=metadata)


def _grid(reading: Reading, file: Path) -> Triple:
    positions = reading.tensors.get(POSITIONS)
    if positions is None or reading.patch is None:
        missing = POSITIONS if positions is None else "patch_size in its plan"
        raise ValueError(f"The axes of {file} cannot be put in order: it has no {missing}.")
    grid = grid_of(reading.patch, TOKEN)
    if grid[0] != grid[1] or grid[0] * grid[1] * grid[2] != positions.shape[1]:
        raise ValueError(
            f"The axes of {file} cannot be put in order: it has {positions.shape[1]} tokens of a patch of "
            f"{reading.patch}. The first two axes must have the same length, as in all of nnssl's patches; otherwise "
            "rotary positions were not exchanged but scattered."
        )
    return grid


def _reordered(positions: Tensor, grid: Triple) -> Tensor:
    """(1, N, E) numbered (second, first, third axis) -> numbered (first, second, third)."""
    first, second, third = grid
    return positions.reshape(1, second, first, third, -1).transpose(1, 2).reshape(positions.shape).contiguous()


def _exchange(heads: int) -> Callable[[Tensor], Tensor]:
    """For a projection (heads * channels, …): in each head, the channels of the first axis for those of the second."""

    def exchange(value: Tensor) -> Tensor:
        parts = value.reshape(heads, AXES, -1, *value.shape[1:])
        return parts[:, [1, 0, 2]].reshape(value.shape)

    return exchange


def _plan(reading: Reading) -> Mapping[str, Any]:
    return reading.metadata.get(nnssl.PLAN) or {}


def _is_primus(reading: Reading) -> bool:
    return reading.origin == nnssl.ORIGIN and nnssl.is_primus(_plan(reading))


def _trainer(reading: Reading) -> str:
    return str(reading.metadata.get("trainer_name") or "")
