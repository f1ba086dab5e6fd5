"""SimMIM: masked tokens are replaced and predicted (Xie et al. 2022, arXiv 2111.09886), in 3-D.

The projection of a masked cell is replaced by a mask token *before* positions are added, so that the network knows
which cell it is to predict; all tokens run through the encoder, and a light head gives the voxels. In a Swin UNETR a
cell is of many tokens, and its own decoder gives the voxels, as in the masked form of disruptive autoencoders
(Valanarasu et al. 2023, arXiv 2307.16896).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.losses import absolute_errors, squared_errors
from ssl_pretrain.functional.masking import repeat_to
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods.base import Exports, MethodSetup, Needs
from ssl_pretrain.methods.dense import DenseNetwork, train_only_used
from ssl_pretrain.methods.mae import TOKEN_STD
from ssl_pretrain.methods.masking import Hidden, MaskedMethod, cell_of, check_ratio, hide
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.networks.base import Family
from ssl_pretrain.networks.primus import PrimusBackbone
from ssl_pretrain.networks.swin import SwinBackbone
from ssl_pretrain.networks.tokens import TokenBackbone

PRIMUS = {"mask_ratio": 0.75, "error": "mse"}
VIT = {"mask_ratio": 0.7, "error": "l1"}
SWIN = {"mask_ratio": 0.6, "error": "l1"}
"""Published: OpenMind's with Primus, SimMIM3D's with a ViT of 16³ tokens, that of disruptive autoencoders with Swin."""


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(OptimizerConfig):
    """Settings of SimMIM.

    Attributes:
        mask_ratio: share of the cells that is masked; None for 0.75 with Primus, 0.7 with ViT and 0.6 with Swin.
        mask_cell: voxels per axis of a cell of a Swin UNETR, a multiple of its tokens of 2³; None for about 16 per
            axis. In other transformers a cell is a token.
        error: ``mse`` or ``l1``; ``auto`` is mse with Primus and l1 with ViT and Swin.
        drop_path: rate in the blocks of the transformer while it is pretrained.
    """

    mask_ratio: float | None = None
    mask_cell: Triple | None = None
    error: Literal["auto", "mse", "l1"] = "auto"
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.mask_ratio)


@dataclass(frozen=True, kw_only=True)
class ViTSimMIMConfig(SimMIMConfig):
    """Settings of SimMIM with a ViT, whose optimiser is that of SimMIM3D unless they say otherwise."""

    defaults: ClassVar[Mapping[Family, Mapping[str, Any]]] = {
        "transformer": {"optimizer": "adamw", "schedule": "cosine", "lr": 5e-4, "weight_decay": 5e-3, "clip": 1.0}
    }

    def warmup(self, family: Family, epochs: int) -> float:
        """A tenth of the run, as published."""
        return epochs / 10 if self.warmup_epochs is None else super().warmup(family, epochs)


class SimMIM(MaskedMethod):
    """Prediction of hidden tokens, which a mask token replaces."""

    Config: ClassVar[type[SimMIMConfig]] = SimMIMConfig
    config: SimMIMConfig
    needs: ClassVar[Needs] = (frozenset({"tokens"}), frozenset({"windows", "decoder"}))
    exports: Exports = "encoder"
    citations: ClassVar[tuple[str, ...]] = (
        "Xie, Z. et al. SimMIM: A Simple Framework for Masked Image Modeling. CVPR 2022, arXiv:2111.09886.",
    )

    def __init__(self, config: SimMIMConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        backbone = setup.backbone
        windows = "windows" in backbone.offers
        published = SWIN if windows else PRIMUS if isinstance(backbone, PrimusBackbone) else VIT
        if published is VIT:
            own = ViTSimMIMConfig(**{**vars(config), "betas": config.betas or (0.9, 0.999)})
            self.recipe = own.recipe(backbone.family, setup.length.epochs)
        ratio = config.mask_ratio if config.mask_ratio is not None else cast("float", published["mask_ratio"])
        self.set_cells(cell_of(config.mask_cell, self.patch, backbone), ratio)
        error = published["error"] if config.error == "auto" else config.error
        self.errors = absolute_errors if error == "l1" else squared_errors
        self.network: SimMIMNetwork | WindowedSimMIMNetwork
        if windows:
            self.network = WindowedSimMIMNetwork(cast("SwinBackbone", backbone), self.cell, config.drop_path)
        else:
            self.network = SimMIMNetwork(cast("TokenBackbone", backbone), config.drop_path)
        self.exports = "network" if self.network.own_decoder else "encoder"

    @property
    def trained(self) -> nn.Module:
        """Encoder, mask token and head."""
        return self.network

    def predict(self, image: Tensor, hidden: Hidden) -> Tensor:
        """See :meth:`MaskedMethod.predict`."""
        return cast("Tensor", self.network(image, hidden.mask).float())


class SimMIMNetwork(nn.Module):
    """A transformer with a mask token and a light head.

    The head of a Primus is its own decoder, three transposed convolutions; that of a ViT one linear layer per token.

    Args:
        backbone: the transformer.
        drop_path: of its blocks.
    """

    def __init__(self, backbone: TokenBackbone, drop_path: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.empty(backbone.width))
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD)
        self.own_decoder = isinstance(backbone, PrimusBackbone)
        if self.own_decoder:
            self.head = backbone.new_head(backbone.input_channels)
        else:
            self.head = nn.Linear(backbone.width, prod(backbone.token) * backbone.input_channels)
        train_only_used(backbone, self.head, drop_path, decoder=self.own_decoder)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Image (B, C, D, H, W) and mask (B, *grid), True where masked -> cells (B, L, V)."""
        backbone = self.backbone
        tokens = backbone.embed(image)
        tokens = torch.where(mask.flatten(1).unsqueeze(2), self.mask_token.to(tokens.dtype), tokens)
        features = backbone.encode_tokens(tokens)
        if not self.own_decoder:
            return cast("Tensor", self.head(features))
        maps = [backbone.tokens_to_map(features)]
        return to_cells(self.head(backbone.decode_features(maps)), backbone.token)


class WindowedSimMIMNetwork(DenseNetwork):
    """A Swin UNETR with a mask token, and a fresh head on its own decoder.

    The decoder sees the image at full resolution as well: there, masked cells are 0.

    Args:
        backbone: the Swin UNETR.
        cell: voxels of a mask cell per axis, a multiple of the network's tokens.
        drop_path: of its blocks.
    """

    backbone: SwinBackbone
    own_decoder = True

    def __init__(self, backbone: SwinBackbone, cell: Triple, drop_path: float) -> None:
        super().__init__(backbone, backbone.input_channels, drop_path)
        self.cell = cell
        self.mask_token = nn.Parameter(torch.empty(backbone.width))
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Image (B, C, D, H, W) and mask (B, *grid), True where masked -> cells (B, L, V)."""
        visible = hide(image, mask)
        tokens = self.backbone.embed(visible)
        masked = repeat_to(mask, (tokens.shape[2], tokens.shape[3], tokens.shape[4])).unsqueeze(1)
        tokens = torch.where(masked, self.mask_token.to(tokens.dtype).view(-1, 1, 1, 1), tokens)
        maps = [visible, *self.backbone.hidden_states(tokens)]
        return to_cells(self.head(self.backbone.decode_features(maps)), self.cell)
