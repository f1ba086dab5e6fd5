"""Stages of U-Nets, so that networks of another number of stages share those of the same resolution.

An encoder counts its stages from the finest, a decoder from the coarsest. The same number means the same resolution in
two encoders, whatever their depth, but in two decoders only where the depth agrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FINE_FIRST = ("encoder.stages", "conv_blocks_context")
"""Lists that begin with full resolution: in nnU-Net's own networks, and in STU-Net."""

COARSE_FIRST = (
    *("decoder.stages", "decoder.transpconvs", "decoder.seg_layers"),
    *("upsample_layers", "conv_blocks_localization", "seg_outputs"),
)
"""Lists that begin with the level above the bottleneck, and have one entry less than the encoder."""

_LISTS = "|".join(re.escape(name) for name in (*FINE_FIRST, *COARSE_FIRST))
_PLACE = re.compile(rf"(?:^|\.)(?P<list>{_LISTS})\.(?P<index>\d+)(?=\.|$)")


def number_of_stages(names: Iterable[str]) -> int:
    """Stages of the encoder of the U-Net whose tensors these are; 0 where they are not a U-Net's."""
    count = 0
    for name in names:
        place = _PLACE.search(name)
        if place:
            count = max(count, int(place["index"]) + (1 if place["list"] in FINE_FIRST else 2))
    return count


def part_of(name: str) -> str:
    """The part of a network that a tensor is in, for people: a stage, or the beginning of its name."""
    place = _PLACE.search(name)
    if place is None:
        return ".".join(part for part in name.split(".")[:2] if not part.isdigit())
    return f"stage {place['index']}" if place["list"] in FINE_FIRST else f"{place['list']}.{place['index']}"


def renumbered(name: str, stages: int, wanted: int) -> str | None:
    """What a tensor of a U-Net is called in a U-Net with another number of stages.

    Args:
        name: of a tensor; without a stage in it, it is the same in both.
        stages: of the network that it belongs to.
        wanted: stages of the other network.

    Returns:
        The name of the tensor at the same resolution; None where the other network has no such stage.
    """
    place = _PLACE.search(name)
    if place is None:
        return name
    index = int(place["index"])
    if place["list"] in FINE_FIRST:
        return name if index < wanted else None
    index += wanted - stages
    return f"{name[: place.start('index')]}{index}{name[place.end('index') :]}" if index >= 0 else None


def at_their_resolution(mapping: Mapping[str, str], wanted: int) -> dict[str, str | None]:
    """Names in a network of ``wanted`` stages for the names in a file, see :func:`renumbered`.

    Args:
        mapping: name in the network by name in the file, as far as the beginnings of the names go.
        wanted: stages of the network; 0 for a network that is no U-Net.
    """
    stages = number_of_stages(mapping.values())
    if not stages or not wanted:
        return dict(mapping)
    return {key: renumbered(name, stages, wanted) for key, name in mapping.items()}
