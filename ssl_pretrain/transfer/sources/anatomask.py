"""``…_head_latest.pt`` of the published AnatoMask and SparK-3D code: a network wrapped for its pretext task."""

from __future__ import annotations

from ssl_pretrain.transfer.sources.base import Opened, Reading, any_begins, renamed

ORIGIN = "AnatoMask (published code)"
ENCODER = "sparse_encoder.sp_cnn."
"""Where it keeps the network; all else is its decoder and what lies between."""


def recognise(opened: Opened) -> bool:
    """It has a sparse encoder with a network in it."""
    return any_begins(opened.tensors, ENCODER)


def read(opened: Opened) -> Reading:
    """The network by its own names; the stages that the pretext task does not use are not in the file."""
    epoch = opened.value("current_epoch")
    metadata = {"current_epoch": epoch} if isinstance(epoch, int) else {}
    return Reading(ORIGIN, renamed(opened.tensors, lambda name: name.removeprefix(ENCODER)), metadata=metadata)
