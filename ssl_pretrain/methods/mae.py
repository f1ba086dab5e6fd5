"""MAE: masked autoencoding of a whole segmentation network, as in OpenMind (Wald et al. 2024, arXiv 2412.17041).

A convolutional network gets the image with its masked cells set to 0, the mean of a z-scored image, and reconstructs it
through its own decoder and skip connections. A Primus encodes the visible tokens only (He et al. 2022, arXiv
2111.06377); a short second transformer fills in the masked ones. The loss looks at masked voxels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, check_cell, default_cell, grid_of
from ssl_pretrain.functional.losses import cell_errors, cell_statistics, masked_mean, squared_errors
from ssl_pretrain.functional.masking import count_masked, repeat_to, sample_masks, visible_first
from ssl_pretrain.functional.patches import from_cells, to_cells
from ssl_pretrain.methods.base import Batch, Method, MethodSetup, Output, first_of, one_per_channel
from ssl_pretrain.methods.dense import DenseNetwork, train_only_used
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.primus import PrimusBackbone
from ssl_pretrain.networks.tokens import TokenBackbone, place_tokens

FINEST: tuple[Triple, ...] = ((1, 1, 1),)
"""A mask that is applied to the image alone need not fit any feature map."""

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
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {self.mask_ratio}.")
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {self.decoder_depth}.")


class MAE(Method):
    """Masked autoencoder: masked cells are reconstructed by the network's own decoder."""

    Config: ClassVar[type[MAEConfig]] = MAEConfig
    config: MAEConfig
    citations: ClassVar[tuple[str, ...]] = (
        "He, K. et al. Masked Autoencoders Are Scalable Vision Learners. CVPR 2022, arXiv:2111.06377.",
        "Wald, T. et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025, arXiv:2412.17041.",
    )

    def __init__(self, config: MAEConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        backbone = setup.backbone
        if isinstance(backbone, TokenBackbone):
            self._check_tokens(backbone)
        self.cell = cell_of(config.mask_cell, self.patch, backbone)
        self.grid = grid_of(self.patch, self.cell)
        self.masked = count_masked(prod(self.grid), config.mask_ratio)
        numbers = prod(self.cell) * (1 if config.mask_channels == "each" else backbone.input_channels)
        if config.target == "cells" and numbers < 2:
            raise ValueError(
                f"target=cells: mask cell {self.cell} is a single number, which has no variance. Choose a larger "
                "-mask_cell, or target=voxels."
            )
        self.network: nn.Module
        if isinstance(backbone, TokenBackbone):
            self.network = TokenMAENetwork(cast("PrimusBackbone", backbone), config, self.masked)
        else:
            self.network = MaskedDenseNetwork(backbone, backbone.input_channels)

    def _check_tokens(self, backbone: TokenBackbone) -> None:
        if not isinstance(backbone, PrimusBackbone):
            raise ValueError(
                "MAE leaves masked tokens out, which is written for Primus; of the transformers use PrimusS, PrimusB, "
                "PrimusM or PrimusL, or -m SimMIM with this one."
            )
        if self.config.mask_channels == "each" and backbone.input_channels > 1:
            raise ValueError("mask_channels=each is not possible with a transformer: its tokens hold all channels.")

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and head."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Mean squared error of the masked voxels that count."""
        image = batch["image"]
        mask = self.draw_mask(batch, generator)
        prediction = self.network(image, mask)
        return Output(self._loss(prediction, batch, mask), {"masked_fraction": self.masked / prod(self.grid)})

    def draw_mask(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Boolean (B, G, *grid) for images (B, C, D, H, W); G is 1, or C where every channel has its own."""
        image = batch["image"]
        groups = image.shape[1] if self.config.mask_channels == "each" else 1
        generators = self.sample_generators(batch, generator)
        mask = sample_masks(generators, self.grid, self.masked, image.device, groups)
        return mask.view(len(image), groups, *self.grid)

    def _loss(self, prediction: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        cells, counted = self._cells(batch, mask)
        errors_of = cell_errors if self.config.target == "cells" else squared_errors
        errors = errors_of(self._split(prediction.float(), mask), cells, counted)
        return masked_mean(errors, mask.flatten(0, 1).flatten(1), counted)

    def _cells(self, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Voxels of each cell that has a place in the mask, and which of them count (None where all do)."""
        ignored = batch.get("ignored")
        counted = None if ignored is None else self._split((~ignored).float().expand_as(batch["image"]), mask)
        return self._split(batch["image"], mask), counted

    def _split(self, volume: Tensor, mask: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B·G, L, V)."""
        return to_cells(one_per_channel(volume) if mask.shape[1] > 1 else volume, self.cell)

    def pictures(self, batch: Batch, generator: torch.Generator) -> Mapping[str, Any]:
        """Input, masked input and reconstruction of the batch's first crop; with a mask per channel, of the first."""
        first = first_of(batch)
        image = first["image"]
        mask = self.draw_mask(first, generator)
        prediction = self.network(image, mask).float()
        if self.config.target == "cells":
            mean, std = cell_statistics(*self._cells(first, mask))
            undone = self._split(prediction, mask) * std + mean
            prediction = from_cells(undone, self.cell, self.grid).view_as(image)
        # A picture has one mask: with several, it is of the channel that the first is of.
        drawn = slice(None) if mask.shape[1] == 1 else slice(0, 1)
        arrays = {
            "image": image[:, drawn],
            "masked_input": hide(image, mask)[:, drawn],
            "reconstruction": prediction[:, drawn],
            "mask": mask[:, 0],
        }
        return {**{name: array[0].detach().cpu() for name, array in arrays.items()}, "cell": self.cell}

    def describe(self) -> str:
        """Mask grid and masked cells as text."""
        cells = prod(self.grid)
        return (
            f"mask: cells of {self.cell} voxels, grid {self.grid}, {self.masked} of {cells} masked "
            f"({self.masked / cells:.1%}), target {self.config.target}"
        )


class MaskedDenseNetwork(DenseNetwork):
    """A convolutional network that sees 0 where the image is masked."""

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Image (B, C, D, H, W) and mask (B, 1 or C, *grid), True where masked -> (B, C, D, H, W)."""
        return super().forward(image if mask is None else hide(image, mask))


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

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Image (B, C, D, H, W) and mask (B, 1, *grid), True where masked -> (B, C, D, H, W).

        Every sample of the mask has exactly ``masked`` masked cells, or there is no mask. They are not counted, which
        would wait for the GPU.
        """
        backbone = self.backbone
        tokens = backbone.embed(image)
        if mask is None:
            filled = backbone.encode_tokens(tokens, None)
        else:
            keep = visible_first(mask.flatten(1))[:, : self.visible]
            filled = place_tokens(backbone.encode_tokens(tokens, keep), keep, self.mask_token, tokens.shape[1])
        features = backbone.tokens_to_map(self.decoder(filled))
        return cast("Tensor", self.head(backbone.decode_features([features])))


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """Set masked cells to 0: image (B, C, D, H, W), mask (B, 1 or C, *grid)."""
    b, groups = mask.shape[:2]
    d, h, w = image.shape[2:]
    voxels = repeat_to(mask.flatten(0, 1), (d, h, w)).view(b, groups, d, h, w)
    return image.masked_fill(voxels, 0.0)


def cell_of(wanted: Triple | None, patch: Triple, backbone: Backbone) -> Triple:
    """The mask cell of a method that masks the image: a token of a transformer, else about 16 voxels per axis.

    Raises:
        ValueError: it does not divide the patch, or is no token.
    """
    if isinstance(backbone, TokenBackbone):
        if wanted is not None and wanted != backbone.token:
            raise ValueError(f"mask_cell {wanted}: in this network a cell is a token of {backbone.token} voxels.")
        return backbone.token
    # Any cell that divides the patch will do, as the mask is applied to the image alone; the default is SparK's.
    cell = wanted or default_cell(patch, [m.stride for m in backbone.feature_maps])
    check_cell(cell, patch, FINEST)
    return cell
