"""The network that SparK and AnatoMask train: sparse encoder, densification, light decoder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods.light_decoder import DecoderKind, Densify, LightDecoder, Norm, decoder_strides
from ssl_pretrain.networks.backends import packable_stages
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import encode_masked
from ssl_pretrain.sparse import SparseMask, convert


class SparKNetwork(nn.Module):
    """Encoder with sparse layers, densification and light decoder: masked image -> reconstruction.

    The encoder's parameters are those of the segmentation network it was taken from; its layers are made mask-aware in
    place. A deep copy is a network of its own, with its own mask.

    Args:
        encoder: of a segmentation network.
        maps: channels and strides of its feature maps, fine to coarse.
        cell: voxels of a mask cell per axis.
        out_channels: of the image.
        width: channels of the decoder at the coarsest map; None for that map's own.
        norm: of the decoder.
        kind: of the decoder.
        checkpointing: compute encoder stages and decoder blocks again in the backward pass.

    Attributes:
        packed_stages: encoder stages, from the finest, that compute visible cells only; 0 to ``packable``.
        packable: most stages that can, and why no more.
        memory_format: of the decoder's maps. Weights stay as they are: a checkpoint may be continued with another
            format, and the optimiser's moments must lie in memory as their weights do.
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
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.mask = SparseMask()
        self.encoder = encoder
        self.maps, self.cell, self.checkpointing = maps, cell, checkpointing
        convert(encoder, self.mask)
        self.packed_stages = 0
        self.packable = packable_stages(encoder, maps, cell)
        self.memory_format = torch.contiguous_format
        strides = decoder_strides([m.stride for m in maps])
        finest = maps[0].channels if kind == "slim" else None
        self.decoder = LightDecoder(
            width or maps[-1].channels, strides, out_channels, norm, kind, finest, checkpointing=checkpointing
        )
        # The finest map enters no block when it has the resolution of the image: it gets no densification at all.
        used = maps[::-1][: len(strides)]
        self.densify = nn.ModuleList(
            Densify(source, self.decoder.widths[i], i == 0, cell, self.mask) for i, source in enumerate(used)
        )

    def forward(self, image: Tensor, mask: Tensor, visible: int | None = None) -> Tensor:
        """Reconstruct an image from its visible cells.

        Args:
            image: (B, C, D, H, W).
            mask: boolean (B, *grid), True where masked.
            visible: visible cells of every sample, where the caller knows it: counting them waits for the GPU.

        Returns:
            (B, C, D, H, W), each cell in its own normalised space.
        """
        return cast("Tensor", self.decoder(self.densified(image, mask, visible)))

    def densified(self, image: Tensor, mask: Tensor, visible: int | None = None) -> list[Tensor]:
        """The decoder's inputs, coarse to fine."""
        with self.mask.visible(~mask, visible):
            maps = encode_masked(self.encoder, image, self.mask, self.packed_stages, self.checkpointing)
            filled = [fill(feature_map) for fill, feature_map in zip(self.densify, reversed(maps), strict=False)]
        return [x.contiguous(memory_format=self.memory_format) for x in filled]
