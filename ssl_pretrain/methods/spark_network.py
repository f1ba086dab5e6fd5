"""The network that SparK and AnatoMask train: sparse encoder, densification, light decoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import cast

from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import Cells
from ssl_pretrain.methods.light_decoder import (
    DecoderKind,
    Densify,
    LightDecoder,
    Norm,
    decoder_strides,
    goes_up_alone,
)
from ssl_pretrain.methods.masked_network import MaskedNetwork, hidden_cells
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import SparseMap

COARSE_VOXELS = 64
"""Fewest voxels of a cell in a coarse image."""


class SparKNetwork(MaskedNetwork):
    """Encoder with sparse layers, densification and light decoder: masked image -> reconstruction.

    What comes out is each cell in its own normalised space.

    Args:
        encoder: of a segmentation network.
        maps: channels and strides of its feature maps, fine to coarse.
        cell: voxels of a mask cell per axis.
        out_channels: of the image.
        width: channels of the decoder at the coarsest map; None for that map's own.
        norm: of the decoder.
        kind: of the decoder.
        coarse: whether the decoder also makes a coarse image, where it has a level for it; see :func:`coarse_level`.
        alone: whether the decoder's finest blocks compute decoded cells alone, where they can; see
            :func:`alone_level`.
        checkpointing: compute encoder stages and decoder blocks again in the backward pass.
    """

    def __init__(
        self,
        encoder: nn.Module,
        maps: tuple[FeatureMap, ...],
        cell: Triple,
        out_channels: int,
        *,
        width: int | None,
        norm: Norm,
        kind: DecoderKind = "spark",
        coarse: bool = False,
        alone: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(encoder, maps, cell, out_channels, checkpointing)
        strides = decoder_strides([m.stride for m in maps])
        finest = maps[0].channels if kind == "slim" else None
        self.decoder = LightDecoder(
            width or maps[-1].channels,
            strides,
            out_channels,
            norm,
            kind,
            finest,
            coarse_level(maps[-1].stride, strides, cell) if coarse else None,
            alone_level(maps[-1].stride, strides, cell) if alone else None,
            checkpointing,
        )
        # The finest map enters no block when it has the resolution of the image: it gets no densification at all.
        used = maps[::-1][: len(strides)]
        self.densify = nn.ModuleList(
            Densify(source, self.decoder.widths[i], i == 0, cell, self.mask) for i, source in enumerate(used)
        )

    def fill(self, maps: Sequence[SparseMap]) -> list[Tensor]:
        """The decoder's inputs, coarse to fine; packed where the decoder takes decoded cells alone."""
        return [
            fill(feature_map, self.decoder.decoded.packing if self.decoder.packs(i) else None)
            for i, (fill, feature_map) in enumerate(zip(self.densify, reversed(maps), strict=False))
        ]

    def reconstruct(self, filled: list[Tensor]) -> Tensor:
        """(B, C, D, H, W), each cell in its own normalised space."""
        return cast("Tensor", self.decoder(filled)[0])

    def decoding(self, cells: Cells) -> AbstractContextManager[None]:
        """See :meth:`MaskedNetwork.decoding`."""
        return self.decoder.decoded.visible(*cells)

    def both(
        self, image: Tensor, mask: Tensor, visible: int | None = None, decoded: Cells | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`forward`, and the coarse image, which is whole; None where there is none."""
        with self.decoding(decoded or hidden_cells(mask, visible)):
            return cast("tuple[Tensor, Tensor | None]", self.decoder(self.densified(image, mask, visible)))

    def cut(self) -> None:
        """Leave out what comes after the coarse image, where there is one: it becomes the reconstruction."""
        if self.decoder.coarse is not None:
            self.decoder.cut()
            self.densify = self.densify[: self.decoder.coarse]

    def compile_decoder(self) -> None:
        """Let ``torch.compile`` make the decoder faster."""
        self.decoder.compile()  # type: ignore[no-untyped-call]


def coarse_level(coarsest: Triple, strides: Sequence[Triple], cell: Triple) -> int | None:
    """Decoder blocks after which a cell has :data:`COARSE_VOXELS` voxels at least, a whole number along every axis.

    Args:
        coarsest: stride of the decoder's first input.
        strides: of each block, coarse to fine.
        cell: voxels of a mask cell per axis.

    Returns:
        None where that is the finest level, which has a head already.
    """
    stride = coarsest
    for level, step in enumerate(strides[:-1], 1):
        stride = cast("Triple", tuple(s // t for s, t in zip(stride, step, strict=True)))
        if all(c % s == 0 for c, s in zip(cell, stride, strict=True)) and prod(cell) >= COARSE_VOXELS * prod(stride):
            return level
    return None


def alone_level(coarsest: Triple, strides: Sequence[Triple], cell: Triple) -> int | None:
    """Decoder blocks after which the others can compute cells alone: those finer than a coarse image.

    With strides of 2 their cells have 8³ voxels and more: of smaller ones the halo is several times the cell.

    Args:
        coarsest: stride of the decoder's first input.
        strides: of each block, coarse to fine.
        cell: voxels of a mask cell per axis.

    Returns:
        None where no block can.
    """
    level = coarse_level(coarsest, strides, cell)
    wide = [i for i, stride in enumerate(strides) if not goes_up_alone(stride)]
    if level is None or len(strides) - 1 in wide:
        return None
    return max([level, *(i + 1 for i in wide)])
