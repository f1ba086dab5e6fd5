"""Running an encoder under a mask: the fine stages on packed cells, the deep ones on whole volumes."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from ssl_pretrain.networks.base import StagedEncoder
from ssl_pretrain.networks.recompute import checkpointed
from ssl_pretrain.sparse import SparseMask


class SparseMap(NamedTuple):
    """A feature map under a mask.

    Attributes:
        values: (B, C, D, H, W), 0 where masked; or packed (B, C, n·d, h, w).
        packed: which of the two.
    """

    values: Tensor
    packed: bool


def encode_masked(
    encoder: nn.Module, image: Tensor, mask: SparseMask, packed_stages: int = 0, checkpointing: bool = False
) -> list[SparseMap]:
    """The feature maps of a masked image, fine to coarse. Runs inside the mask's context.

    Args:
        encoder: converted by :func:`ssl_pretrain.sparse.convert`.
        image: (B, C, D, H, W); what masked cells hold does not matter.
        mask: the encoder's.
        packed_stages: how many stages, from the finest, work on packed cells; none do where samples have different
            numbers of visible cells.
        checkpointing: compute the stages again in the backward pass instead of keeping what is inside them. An encoder
            without stages is one stage.
    """
    if not isinstance(encoder, StagedEncoder):
        maps = _run(encoder, _hide(image, mask), mask, checkpointing)
        return [SparseMap(values, packed=False) for values in cast("list[Tensor]", maps)]
    if packed_stages and not mask.can_pack:
        packed_stages = 0
    result: list[SparseMap] = []
    x = mask.packing.pack(image) if packed_stages else _hide(image, mask)
    for i, stage in enumerate(encoder.stages):
        packed = i < packed_stages
        if packed_stages and i == packed_stages:
            x = mask.packing.unpack(x)
        with mask.packed_layout(packed):
            x = cast("Tensor", _run(nn.Sequential(encoder.stem, stage) if i == 0 else stage, x, mask, checkpointing))
        result.append(SparseMap(x, packed))
    return result


def _run(module: nn.Module, x: Tensor, mask: SparseMask, checkpointing: bool) -> object:
    return checkpointed(module, x, mask.replay()) if checkpointing else module(x)


def whole(feature_map: SparseMap, mask: SparseMask) -> Tensor:
    """A feature map as a volume (B, C, D, H, W), 0 where masked."""
    return mask.packing.unpack(feature_map.values) if feature_map.packed else feature_map.values


def _hide(image: Tensor, mask: SparseMask) -> Tensor:
    b, _, d, h, w = image.shape
    level = mask.level(b, (d, h, w), image.dtype)
    return image if level is None else image * level.visible
