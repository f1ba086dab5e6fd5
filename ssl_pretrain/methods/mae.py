"""MAE: masked autoencoding of a whole segmentation network, as in OpenMind (Wald et al. 2024, arXiv 2412.17041).

A convolutional network, or a Swin UNETR, gets the image with its masked cells set to 0, the mean of a z-scored image,
and reconstructs it through its own decoder and skip connections. A Primus encodes the visible tokens only (He et al.
2022, arXiv 2111.06377); a short second transformer fills in the masked ones. The loss looks at masked voxels only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.losses import cell_errors
from ssl_pretrain.functional.masking import visible_first
from ssl_pretrain.methods.base import MethodSetup, Needs
from ssl_pretrain.methods.dense import DenseNetwork, train_only_used
from ssl_pretrain.methods.masking import Hidden, MaskedMethod, cell_of, check_ratio, hide
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.networks.primus import PrimusBackbone
from ssl_pretrain.networks.tokens import place_tokens

TOKEN_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class MAEConfig(OptimizerConfig):
    """Settings of MAE.

    Attributes:
        mask_ratio: share of the cells that is masked.
        mask_cell: voxels per axis of a cell; None for about 16 per axis, as patch and strides allow. In a transformer a
            cell is a token.
        mask_channels: ``all``: one mask for all channels; ``each``: every channel has its own.
        target: ``voxels``: intensities as nnU-Net normalised them; ``cells``: each cell by its own mean and deviation.
        decoder_depth: blocks of the second transformer; of no effect in a convolutional network.
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    mask_ratio: float = 0.75
    mask_cell: Triple | None = None
    mask_channels: Literal["all", "each"] = "all"
    target: Literal["voxels", "cells"] = "voxels"
    decoder_depth: int = 2
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.mask_ratio)
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {self.decoder_depth}.")


class MAE(MaskedMethod):
    """Reconstruction of hidden cells by the network's own decoder."""

    Config: ClassVar[type[MAEConfig]] = MAEConfig
    config: MAEConfig
    needs: ClassVar[Needs] = tuple(frozenset({kind, "decoder"}) for kind in ("convolutions", "windows", "kept tokens"))
    citations: ClassVar[tuple[str, ...]] = (
        "He, K. et al. Masked Autoencoders Are Scalable Vision Learners. CVPR 2022, arXiv:2111.06377.",
        "Wald, T. et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025, arXiv:2412.17041.",
    )

    def __init__(self, config: MAEConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        backbone, each = setup.backbone, config.mask_channels == "each"
        self.set_cells(cell_of(config.mask_cell, self.patch, backbone), config.mask_ratio)
        self.groups = backbone.input_channels if each else 1
        if config.target == "cells":
            self.errors = cell_errors
            if prod(self.cell) * backbone.input_channels // self.groups < 2:
                raise ValueError(
                    f"target=cells: mask cell {self.cell} is a single number, which has no variance. Choose a larger "
                    "-mask_cell, or target=voxels."
                )
        self.network: MaskedDenseNetwork | TokenMAENetwork
        if "kept tokens" in backbone.offers:
            if self.groups > 1:
                raise ValueError("mask_channels=each is not possible with a transformer: its tokens hold all channels.")
            self.network = TokenMAENetwork(cast("PrimusBackbone", backbone), config, self.masked)
        else:
            self.network = MaskedDenseNetwork(backbone, backbone.input_channels, config.drop_path)

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and head."""
        return self.network

    def predict(self, image: Tensor, hidden: Hidden) -> Tensor:
        """See :meth:`MaskedMethod.predict`."""
        return self.split(self.network(image, hidden.mask).float())

    def describe(self) -> str:
        """Mask grid, masked cells and target as text."""
        return f"{super().describe()}, target {self.config.target}"


class MaskedDenseNetwork(DenseNetwork):
    """A network that sees 0 where the image is masked."""

    def features(self, image: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Image (B, C, D, H, W) and mask (B or B·C, *grid), True where masked -> the encoder's maps, fine to coarse."""
        return self.backbone.encode(image if mask is None else hide(image, mask))

    def reconstruct(self, maps: list[Tensor]) -> Tensor:
        """Maps of :meth:`features` -> (B, C, D, H, W)."""
        return cast("Tensor", self.head(self.backbone.decode_features(maps)))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Image (B, C, D, H, W) and mask (B or B·C, *grid), True where masked -> (B, C, D, H, W)."""
        return self.reconstruct(self.features(image, mask))


class TokenMAENetwork(nn.Module):
    """A Primus that encodes visible tokens, a second transformer that fills in the others, and the Primus' decoder.

    Args:
        backbone: the Primus.
        config: of the method.
        masked: tokens that are masked in each sample.
    """

    def __init__(self, backbone: PrimusBackbone, config: MAEConfig, masked: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.visible = prod(backbone.token_grid) - masked
        self.mask_token = nn.Parameter(torch.empty(backbone.width))
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD)
        self.decoder = backbone.new_transformer(config.decoder_depth, config.drop_path)
        self.head = backbone.new_head(backbone.input_channels)
        train_only_used(backbone, self.head, config.drop_path)

    def features(self, image: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Image (B, C, D, H, W) and mask (B, *grid), True where masked -> a map of all tokens, masked ones filled in.

        Every sample of the mask has exactly ``masked`` masked cells. They are not counted, which would wait for the
        GPU.
        """
        backbone = self.backbone
        tokens = backbone.embed(image)
        if mask is None:
            return [backbone.tokens_to_map(self.decoder(backbone.encode_tokens(tokens)))]
        keep = visible_first(mask.flatten(1))[:, : self.visible]
        filled = place_tokens(backbone.encode_tokens(tokens, keep), keep, self.mask_token, tokens.shape[1])
        return [backbone.tokens_to_map(self.decoder(filled))]

    def reconstruct(self, maps: list[Tensor]) -> Tensor:
        """The map of :meth:`features` -> (B, C, D, H, W)."""
        return cast("Tensor", self.head(self.backbone.decode_features(maps)))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Image (B, C, D, H, W) and mask (B, *grid), True where masked -> (B, C, D, H, W)."""
        return self.reconstruct(self.features(image, mask))
