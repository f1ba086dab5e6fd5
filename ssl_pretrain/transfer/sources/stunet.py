"""Official weights of STU-Net, such as ``base_ep4k.model``: an nnU-Net v1 file (Huang et al. 2023, arXiv 2304.06716).

The names of its tensors are those of our :class:`~ssl_pretrain.networks.stunet.STUNet`.
"""

from __future__ import annotations

from ssl_pretrain.transfer.sources import nnunet_v1
from ssl_pretrain.transfer.sources.base import Opened, Reading

ORIGIN = "STU-Net"
SIGN = "conv_blocks_context.0.0.conv1.weight"
"""First convolution; a U-Net of nnU-Net v1 has ``blocks`` in its name instead."""


def recognise(opened: Opened) -> bool:
    """It has STU-Net's first convolution at the top."""
    return SIGN in opened.tensors


def read(opened: Opened) -> Reading:
    """The whole network; its segmentation heads are those of its dataset."""
    return Reading(ORIGIN, opened.tensors, metadata=nnunet_v1.training_of(opened))
