"""``model_final_checkpoint.model`` of nnU-Net v1, whose U-Net is nnU-Net v2's ``PlainConvUNet`` under other names.

The ``.model.pkl`` beside it is not needed. What v2 has and v1 has not: biases of transposed convolutions and heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ssl_pretrain.transfer.sources.base import Opened, Reading

ORIGIN = "nnU-Net v1"
SIGN = "conv_blocks_context.0.blocks.0.conv.weight"
"""First convolution of its U-Net."""

LAYER = re.compile(r"conv_blocks_(context|localization)\.(\d+)\.(?:(\d+)\.)?blocks\.(\d+)\.(conv|instnorm)\.(\w+)")
"""A convolution or norm: side, stage, half of a stage that is in two, layer in it, kind, parameter."""

STAGE = {"context": "encoder.stages.{}.0.convs", "localization": "decoder.stages.{}.convs"}
OTHERS = (
    (re.compile(r"tu\.(\d+)\.(\w+)"), r"decoder.transpconvs.\1.\2"),
    (re.compile(r"seg_outputs\.(\d+)\.(\w+)"), r"decoder.seg_layers.\1.\2"),
)


def recognise(opened: Opened) -> bool:
    """It has the U-Net of v1, or what v1 writes beside any network."""
    return SIGN in opened.tensors or "plot_stuff" in (opened.content or {})


def read(opened: Opened) -> Reading:
    """The U-Net by v2's names; another network by its own."""
    tensors = opened.tensors
    if SIGN in tensors:
        rename = _to_version_2(tensors)
        tensors = {rename(name): value for name, value in tensors.items()}
    return Reading(ORIGIN, tensors, metadata=training_of(opened))


def training_of(opened: Opened) -> dict[str, Any]:
    """What such a file says of the training: its epoch."""
    epoch = opened.value("epoch")
    return {"epoch": epoch} if isinstance(epoch, int) else {}


def _to_version_2(tensors: dict[str, Tensor]) -> Callable[[str], str]:
    """Stages are in two halves next to a change of resolution in v1, and never in v2: there layers are counted on."""
    halves: dict[tuple[str, str], int] = {}
    for match in filter(None, map(LAYER.fullmatch, tensors)):
        side, stage, half, layer = match[1], match[2], match[3], int(match[4])
        if half == "0":
            halves[side, stage] = max(halves.get((side, stage), 0), layer + 1)

    def rename(name: str) -> str:
        match = LAYER.fullmatch(name)
        if match is None:
            for pattern, replacement in OTHERS:
                name = pattern.sub(replacement, name) if pattern.fullmatch(name) else name
            return name
        side, stage, half, layer, kind, parameter = match.groups()
        before = halves.get((side, stage), 0) if half == "1" else 0
        return f"{STAGE[side].format(stage)}.{before + int(layer)}.{kind.removeprefix('inst')}.{parameter}"

    return rename
