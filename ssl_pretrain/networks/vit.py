"""ViT-B/16 for volumes inside UNETR (Hatamizadeh et al. 2022, arXiv 2103.10504), of MONAI's parts.

The published UNETR has twelve blocks and taps them after the fourth, seventh and tenth. Here the depth is free and the
taps stay at these quarters; with twelve blocks names, tensors and results are those of MONAI's ``UNETR``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.monai_parts import monai_parts
from ssl_pretrain.networks.request import NetworkRequest, check_counts, with_settings
from ssl_pretrain.networks.tokens import (
    DropPath,
    TokenBackbone,
    TokenEncoder,
    check_token_patch,
    drop_path_rates,
    take_tokens,
    tokens_to_map,
    untyped,
)

TOKEN: Triple = (16, 16, 16)
"""Voxels of a token: UNETR's decoder doubles the resolution four times."""

FEATURES = 16
"""Channels of UNETR's decoder at full resolution."""

VIT = "vit"
DECODER = ("encoder1", "encoder2", "encoder3", "encoder4", "decoder5", "decoder4", "decoder3", "decoder2")
"""MONAI's names of the convolutional parts; what it calls encoders there brings hidden states to finer grids."""


@dataclass(frozen=True)
class ViTSize:
    """Scale of a vision transformer.

    Attributes:
        width: channels of a token, a multiple of the heads; the hidden layers of the blocks have four times as many.
        depth: blocks of the transformer.
        heads: of its attention.
    """

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        check_counts(**asdict(self))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} of a ViT must be a multiple of its {self.heads} heads.")


VIT_B = ViTSize(width=768, depth=12, heads=12)


class UNETR(nn.Module):
    """UNETR for any patch size that is a multiple of 16.

    Args:
        input_channels: of the image.
        num_classes: channels of the output.
        patch_size: voxels of the patch per axis (D, H, W).
        width: channels of a token.
        depth: blocks of the transformer.
        heads: of its attention.

    Attributes:
        token_grid: tokens per axis, numbered in C-order.
        taps: blocks whose outputs go to the decoder besides the last one's.

    Raises:
        ValueError: MONAI is not installed, or the patch is not a multiple of 16; names the nearest sizes.
    """

    key_to_encoder = VIT
    key_to_stem = f"{VIT}.patch_embedding"
    key_to_lpe = f"{VIT}.patch_embedding.position_embeddings"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        width: int = VIT_B.width,
        depth: int = VIT_B.depth,
        heads: int = VIT_B.heads,
    ) -> None:
        super().__init__()
        size = ViTSize(width, depth, heads)
        patch = cast("Triple", tuple(int(n) for n in patch_size))
        self.token_grid = check_token_patch(patch, TOKEN)
        self.taps = tuple(depth * quarter // 4 for quarter in (1, 2, 3))
        nets = monai_parts("ViT_B16").nets
        self.vit = _vit(nets, size, input_channels, patch)
        made = nets.UNETR(
            input_channels, num_classes, patch, FEATURES, size.width, 4 * size.width, size.heads, proj_type="conv"
        )
        for name in (*DECODER, "out"):
            self.add_module(name, getattr(made, name))
        # The projection of a skip is missing where the channels that come in are as many as those that go out.
        own = (f"encoder1.layer.{name}.conv" for name in ("conv1", "conv3"))
        there = dict(self.named_modules())
        self.keys_to_in_proj = (f"{VIT}.patch_embedding.patch_embeddings", *(name for name in own if name in there))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) of the patch size -> logits (B, num_classes, D, H, W)."""
        tokens, hidden = self.vit(x)
        maps = [tokens_to_map(state, self.token_grid) for state in (*(hidden[tap] for tap in self.taps), tokens)]
        return cast("Tensor", self.segmentation_head(self.decode_features([x, *maps])))

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """The image, and maps of the tapped blocks and of the last one -> features (B, 16, D, H, W).

        Args:
            maps: fine to coarse; all but the image have the grid of the tokens.
        """
        parts = untyped(self)
        image, first, second, third, x = maps
        x = parts.decoder5(x, parts.encoder4(third))
        x = parts.decoder4(x, parts.encoder3(second))
        x = parts.decoder3(x, parts.encoder2(first))
        return cast("Tensor", parts.decoder2(x, parts.encoder1(image)))

    @property
    def decoder_modules(self) -> Sequence[nn.Module]:
        """Everything but the transformer and the head."""
        return [self.get_submodule(name) for name in DECODER]

    @property
    def segmentation_head(self) -> nn.Module:
        """From features to logits."""
        return cast("nn.Module", self.out)


class ViTEncoder(TokenEncoder):
    """The transformer of a UNETR; a view."""

    token = TOKEN

    def __init__(self, network: UNETR) -> None:
        super().__init__()
        self.vit = network.vit
        self.grid, self.taps = network.token_grid, network.taps
        vit = untyped(self.vit)
        self.width = int(vit.norm.normalized_shape[0])
        self.drop_paths = nn.ModuleList(DropPath(0.0) for _ in vit.blocks)

    def project(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E, *grid)."""
        return cast("Tensor", untyped(self.vit).patch_embedding.patch_embeddings(x))

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """See :meth:`TokenBackbone.encode_tokens`."""
        return self.hidden_states(tokens, keep)[-1]

    def hidden_states(self, tokens: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Outputs of the tapped blocks, and of the last one after the final norm; each (B, N or K, E)."""
        vit = untyped(self.vit)
        position = vit.patch_embedding.position_embeddings
        if keep is not None:
            tokens, position = take_tokens(tokens, keep), take_tokens(position, keep)
        x = vit.patch_embedding.dropout(tokens + position)
        states = []
        for block, drop in zip(vit.blocks, self.drop_paths, strict=True):
            x = x + drop(block.attn(block.norm1(x)))
            x = x + drop(block.mlp(block.norm2(x)))
            states.append(x)
        return [*(states[tap] for tap in self.taps), vit.norm(x)]

    def set_drop_path(self, rate: float) -> None:
        """See :meth:`TokenBackbone.set_drop_path`."""
        rates = drop_path_rates(rate, len(self.drop_paths))
        self.drop_paths = nn.ModuleList(DropPath(share) for share in rates).train(self.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> the image itself, which UNETR's decoder sees, and the maps of the hidden states."""
        return [x, *(self.to_map(state) for state in self.hidden_states(self.embed(x)))]


def build_vit(request: NetworkRequest) -> TokenBackbone:
    """ViT-B/16 in UNETR, with the fields in ``request.settings`` changed."""
    return _backbone(with_settings(VIT_B, request.settings, "ViT_B16"), request)


def build_planned_vit(request: NetworkRequest) -> TokenBackbone:
    """The UNETR of ours that the plans name."""
    return _backbone(ViTSize(**{**asdict(VIT_B), **request.architecture["arch_kwargs"]}), request)


def _backbone(size: ViTSize, request: NetworkRequest) -> TokenBackbone:
    network = UNETR(request.input_channels, request.num_classes, request.patch, **asdict(size))
    encoder = ViTEncoder(network)
    maps = [FeatureMap(request.input_channels, (1, 1, 1)), *[FeatureMap(encoder.width, TOKEN)] * 4]
    backbone = TokenBackbone(network, encoder, maps, request.input_channels)
    backbone.decodes_image = True
    backbone.architecture = UNETR_PATH
    backbone.architecture_kwargs = asdict(size)
    return backbone


UNETR_PATH = f"{UNETR.__module__}.{UNETR.__qualname__}"
"""What a plans file calls the network."""


def _vit(nets: Any, size: ViTSize, input_channels: int, patch: Triple) -> nn.Module:
    vit: nn.Module = nets.ViT(
        in_channels=input_channels,
        img_size=patch,
        patch_size=TOKEN,
        hidden_size=size.width,
        mlp_dim=4 * size.width,
        num_layers=size.depth,
        num_heads=size.heads,
        proj_type="conv",
    )
    for block in untyped(vit).blocks:
        # MONAI's block keeps parts for attention to a second sequence, which there is not; in some versions they have
        # parameters, which nothing would ever train.
        block.cross_attn = block.norm_cross_attn = nn.Identity()
    return vit
