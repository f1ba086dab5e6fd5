"""Disruptive autoencoders (Valanarasu et al. 2023, arXiv 2307.16896): a Swin UNETR with its decoder.

MONAI's own filter for these files takes the encoder and drops the decoder. Here the decoder is kept; what both drop is
the mask token, a norm that the segmentation network does not have, and the head, whose output is an image.
"""

from __future__ import annotations

import re

from ssl_pretrain.transfer.sources.base import Opened, Reading
from ssl_pretrain.transfer.sources.swin import SWIN, modern

ORIGIN = "DAE"
ENCODER = "encoder."
STAGE = re.compile(r"layers(\d)\.0\.0\.")
"""A stage has one more level of modules than MONAI's."""

DROPPED = {
    "encoder.mask_token": "mask token of the pretext task",
    "encoder.norm.": "norm of the pretext task",
    "out.": "head of the pretext task",
}


def recognise(opened: Opened) -> bool:
    """It has a Swin encoder with stages in that level of modules."""
    return "encoder.layers1.0.0.blocks.0.attn.qkv.weight" in opened.tensors


def read(opened: Opened) -> Reading:
    """Encoder and decoder by the names of MONAI's ``SwinUNETR(downsample="merging", normalize=False)``."""
    left_out = {
        name: reason
        for name in opened.tensors
        for beginning, reason in DROPPED.items()
        if name == beginning or (beginning.endswith(".") and name.startswith(beginning))
    }
    tensors = {_renamed(name): value for name, value in opened.tensors.items() if name not in left_out}
    return Reading(ORIGIN, tensors, left_out=left_out)


def _renamed(name: str) -> str:
    if not name.startswith(ENCODER):
        return name
    return SWIN + modern(STAGE.sub(r"layers\1.0.", name.removeprefix(ENCODER)))
