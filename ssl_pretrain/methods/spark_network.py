"""The network that SparK and AnatoMask train: sparse encoder, densification, light decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods.light_decoder import DecoderKind, Densify, LightDecoder, Norm, decoder_strides
from ssl_pretrain.methods.masked_network import MaskedNetwork
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import SparseMap


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
        checkpointing: bool = False,
    ) -> None:
        super().__init__(encoder, maps, cell, out_channels, checkpointing)
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

    def fill(self, maps: Sequence[SparseMap]) -> list[Tensor]:
        """The decoder's inputs, coarse to fine."""
        return [fill(feature_map) for fill, feature_map in zip(self.densify, reversed(maps), strict=False)]

    def reconstruct(self, filled: list[Tensor]) -> Tensor:
        """(B, C, D, H, W), each cell in its own normalised space."""
        return cast("Tensor", self.decoder(filled))

    def compile_decoder(self) -> None:
        """Let ``torch.compile`` make the decoder faster."""
        self.decoder.compile()  # type: ignore[no-untyped-call]
