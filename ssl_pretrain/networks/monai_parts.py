"""MONAI, which some networks are made of and which is an extra."""

from __future__ import annotations

from typing import Any, NamedTuple


class MonaiParts(NamedTuple):
    """Modules of ``monai.networks``."""

    nets: Any
    blocks: Any


def monai_parts(network: str) -> MonaiParts:
    """MONAI's networks and their blocks, imported where a network is asked for that is made of them.

    Args:
        network: what the user calls it, for the message.

    Raises:
        ValueError: MONAI cannot be imported; says how to get it.
    """
    try:
        from monai.networks import blocks, nets
    except ImportError as error:
        raise ValueError(
            f"{network} is made of MONAI's parts, and MONAI cannot be imported ({error}). "
            "Install it: pip install anatomask[monai]"
        ) from error
    return MonaiParts(nets, blocks)
