"""Any other file with tensors: a bare ``state_dict``, or one in a container of a usual name."""

from __future__ import annotations

from ssl_pretrain.transfer.sources.base import Opened, Reading
from ssl_pretrain.transfer.sources.nnssl import PLAN, patch_of

ORIGIN = "state_dict"


def recognise(opened: Opened) -> bool:
    """It holds tensors."""
    return bool(opened.tensors)


def read(opened: Opened) -> Reading:
    """All of them, by their own names."""
    return Reading(ORIGIN, opened.tensors, patch=patch_of(opened.entry(PLAN)), metadata=opened.about)
