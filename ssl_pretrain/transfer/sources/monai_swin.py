"""``model_swinvit.pt`` of MONAI: its Swin encoder after pretraining (Tang et al. 2022, arXiv 2111.14791).

The encoder alone, or with the heads of the pretext tasks as MONAI's ``SSLHead`` keeps them.
"""

from __future__ import annotations

from ssl_pretrain.transfer.sources.base import Opened, Reading, renamed
from ssl_pretrain.transfer.sources.swin import SWIN, modern

ORIGIN = "MONAI SSL Swin"
SIGN = "layers1.0.blocks.0.attn.qkv.weight"


def recognise(opened: Opened) -> bool:
    """It has the first block of the encoder, as such or in an ``SSLHead``, and no U-Net around it."""
    tensors = opened.tensors
    return (SIGN in tensors or f"{SWIN}{SIGN}" in tensors) and "encoder1.layer.conv1.conv.weight" not in tensors


def read(opened: Opened) -> Reading:
    """The encoder by the names that it has in a ``SwinUNETR``."""
    wrapped = f"{SWIN}{SIGN}" in opened.tensors

    def rename(name: str) -> str:
        return modern(name) if wrapped else f"{SWIN}{modern(name)}"

    return Reading(ORIGIN, renamed(opened.tensors, rename))
