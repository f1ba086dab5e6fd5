"""S3D: SparK with the network's own U-Net decoder (Wald et al. 2025, arXiv 2410.23132).

Encoder and decoder are trained and exported. Every feature map is densified at its own width: norm over the visible
voxels, mask token, 3×3×3 convolution but for the finest map. The decoder reconstructs intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, check_cell, check_patch, default_cell
from ssl_pretrain.functional.masking import count_masked
from ssl_pretrain.functional.seeding import host_twin
from ssl_pretrain.methods.base import MethodSetup, Needs
from ssl_pretrain.methods.dense import train_only_used
from ssl_pretrain.methods.light_decoder import Densify
from ssl_pretrain.methods.masked_network import MaskedNetwork
from ssl_pretrain.methods.sparse_method import SparseConfig, SparseMethod
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.masked import SparseMap


@dataclass(frozen=True, kw_only=True)
class S3DConfig(SparseConfig):
    """Settings of S3D.

    Attributes:
        mask_ratio: smallest and largest share of the cells that is masked; drawn anew for every batch.
        mask_cell: voxels per axis of a cell; None for about 16 per axis, as patch and strides allow.
    """

    mask_ratio: tuple[float, float] = (0.6, 0.9)
    mask_cell: Triple | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_ratio
        if not 0.0 < low <= high < 1.0:
            raise ValueError(
                f"mask_ratio of S3D is a smallest and a largest share, 0 < smallest <= largest < 1, got {low} and "
                f"{high}. For a fixed ratio give it twice."
            )
        if self.compile:
            raise ValueError("compile=true is not possible with S3D, whose decoder is the network's own. Leave it out.")


class S3D(SparseMethod):
    """Reconstruction of hidden cells from a sparse encoder, by the network's own decoder."""

    Config: ClassVar[type[S3DConfig]] = S3DConfig
    config: S3DConfig
    needs: ClassVar[Needs] = (frozenset({"convolutions", "decoder"}),)
    decoder_norm = "instance"
    citations: ClassVar[tuple[str, ...]] = (
        "Wald, T. et al. Revisiting MAE pre-training for 3D medical image segmentation. CVPR 2025, arXiv:2410.23132.",
        "Tian, K. et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling. "
        "ICLR 2023, arXiv:2301.03580.",
    )

    def __init__(self, config: S3DConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        backbone = setup.backbone
        strides = [m.stride for m in backbone.feature_maps]
        check_patch(self.patch, strides[-1])
        cell = config.mask_cell or default_cell(self.patch, strides)
        check_cell(cell, self.patch, strides)
        fewest, most = config.mask_ratio
        self.set_cells(cell, fewest)
        self.most_masked = count_masked(prod(self.grid), most)
        self.student = S3DNetwork(backbone, self.cell, config.checkpointing)

    def networks(self) -> Sequence[MaskedNetwork]:
        """The student."""
        return (self.student,)

    @property
    def trained(self) -> nn.Module:
        """Encoder, densification, decoder and head."""
        return self.student

    def draw_count(self, generator: torch.Generator) -> int:
        """Masked cells of every sample of a batch, uniform between the two ratios.

        Drawn on the host, from what all processes of a run have in common: their batches are one.
        """
        ratio = host_twin(generator).uniform(*self.config.mask_ratio)
        return min(max(count_masked(prod(self.grid), float(ratio)), self.masked), self.most_masked)

    def describe(self) -> str:
        """Mask grid and masked cells as text."""
        return (
            f"mask: cells of {self.cell} voxels, grid {self.grid}, {self.masked} to {self.most_masked} of "
            f"{prod(self.grid)} masked"
        )


class S3DNetwork(MaskedNetwork):
    """A segmentation network with a sparse encoder, densified skip connections, and a head for intensities.

    Args:
        backbone: the network.
        cell: voxels of a mask cell per axis.
        checkpointing: compute encoder stages again in the backward pass.
    """

    def __init__(self, backbone: Backbone, cell: Triple, checkpointing: bool = False) -> None:
        maps = backbone.feature_maps
        super().__init__(backbone.encoder, maps, cell, backbone.input_channels, checkpointing)
        self.backbone = backbone
        self.densify = nn.ModuleList(
            Densify(source, source.channels, i == 0, cell, self.mask, affine=False) for i, source in enumerate(maps)
        )
        self.head = backbone.new_head(backbone.input_channels)
        train_only_used(backbone, self.head)

    def fill(self, maps: Sequence[SparseMap]) -> list[Tensor]:
        """The decoder's inputs, fine to coarse."""
        return [fill(feature_map) for fill, feature_map in zip(self.densify, maps, strict=True)]

    def reconstruct(self, filled: list[Tensor]) -> Tensor:
        """(B, C, D, H, W), intensities."""
        return cast("Tensor", self.head(self.backbone.decode_features(filled)))

    def compile_decoder(self) -> None:
        """Never asked for: the config refuses it, as the decoder is a part of the segmentation network."""
        raise NotImplementedError
