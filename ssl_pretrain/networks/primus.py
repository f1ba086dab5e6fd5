"""Primus (Wald et al. 2025, arXiv 2503.01835): an EVA-02 transformer on cells of 8³ voxels, and a light decoder.

The network is dynamic-network-architectures' own, names of tensors included. What is done here is to run its parts one
by one, so that a method can replace or leave out tokens: the class's own dropping of patches does not go together with
rotary position embedding in every version of timm, and adds positions before a method could replace anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import FeatureMap, Need
from ssl_pretrain.networks.request import NetworkRequest, check_counts, with_settings
from ssl_pretrain.networks.tokens import (
    DropPath,
    TokenBackbone,
    TokenEncoder,
    check_token_patch,
    drop_path_rates,
    rope_of,
    take_tokens,
    untyped,
)

TOKEN: Triple = (8, 8, 8)
"""Voxels of a token."""

LAYER_SCALE = 0.1
"""Initial value of the factors on residual branches."""

MODULE = "dynamic_network_architectures.architectures.primus"
KWARGS = {"width": "embed_dim", "depth": "eva_depth", "heads": "eva_numheads"}
"""What the class calls the fields of a size."""


@dataclass(frozen=True)
class PrimusSize:
    """Scale of a Primus.

    Attributes:
        width: channels of a token; a multiple of 6 per head, as rotary position embedding in three axes wants it.
        depth: blocks of the transformer.
        heads: of its attention.
    """

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        check_counts(**asdict(self))
        if self.width % (6 * self.heads):
            raise ValueError(
                f"width {self.width} of a Primus with {self.heads} heads must be a multiple of {6 * self.heads}: "
                "rotary position embedding takes pairs of channels of each head for each of three axes."
            )


PRIMUS_SIZES: dict[str, PrimusSize] = {
    "S": PrimusSize(width=396, depth=12, heads=6),
    "B": PrimusSize(width=792, depth=12, heads=12),
    "M": PrimusSize(width=864, depth=16, heads=12),
    "L": PrimusSize(width=1056, depth=24, heads=16),
}


PRIMUS_CLASSES = ("Primus", *(f"Primus{letter}" for letter in PRIMUS_SIZES))
"""Names of the classes, the first of any size."""


class EvaTransformer(nn.Module):
    """The transformer of dynamic-network-architectures (``Eva``) on all tokens or on some; a view of its modules.

    Args:
        eva: without register tokens and without dropping of its own.
    """

    def __init__(self, eva: nn.Module) -> None:
        super().__init__()
        self.eva = eva

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, N, E) without position -> (B, N, E), or (B, K, E) of the tokens ``keep`` (B, K)."""
        eva = untyped(self.eva)
        position = eva.pos_embed
        if keep is not None:
            tokens, position = take_tokens(tokens, keep), take_tokens(position, keep)
        x = eva.pos_drop(tokens + position)
        rope = rope_of(eva.rope.get_embed(), keep)
        for block in eva.blocks:
            x = block(x, rope=rope)
        return cast("Tensor", eva.norm(x))

    def set_drop_path(self, rate: float) -> None:
        """See :meth:`TokenBackbone.set_drop_path`."""
        blocks = untyped(self.eva).blocks
        for block, share in zip(blocks, drop_path_rates(rate, len(blocks)), strict=True):
            block.drop_path1 = block.drop_path2 = DropPath(share).train(self.training)


class PrimusEncoder(TokenEncoder):
    """Projection of the cells, and the transformer, of a Primus; a view."""

    token = TOKEN

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        primus = untyped(network)
        self.stem: nn.Module = primus.down_projection
        self.transformer = EvaTransformer(primus.eva)
        self.grid = cast("Triple", tuple(primus.eva.rope.feat_shape))
        self.width = int(primus.embed_dim)

    def project(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E, *grid)."""
        return cast("Tensor", self.stem(x))

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """See :meth:`TokenBackbone.encode_tokens`."""
        return cast("Tensor", self.transformer(tokens, keep))

    def set_drop_path(self, rate: float) -> None:
        """See :meth:`TokenBackbone.set_drop_path`."""
        self.transformer.set_drop_path(rate)


class PrimusBackbone(TokenBackbone):
    """A Primus.

    Args:
        network: as :func:`primus_network` builds it.
        input_channels: of the image.
    """

    encoder_offers: frozenset[Need] = frozenset({"tokens", "kept tokens"})
    normalises_over_space = False  # but over the channels of a token

    def __init__(self, network: nn.Module, input_channels: int) -> None:
        encoder = PrimusEncoder(network)
        super().__init__(network, encoder, [FeatureMap(encoder.width, TOKEN)], input_channels)
        self.heads = int(untyped(network).eva.blocks[0].attn.num_heads)

    def new_transformer(self, depth: int, drop_path: float = 0.0) -> EvaTransformer:
        """A fresh transformer like the encoder's, for a decoder: (B, N, E) -> (B, N, E), with positions of its own."""
        from dynamic_network_architectures.building_blocks.eva import Eva

        eva = Eva(
            embed_dim=self.width,
            depth=depth,
            num_heads=self.heads,
            ref_feat_shape=self.token_grid,
            init_values=LAYER_SCALE,
            scale_attn_inner=True,
        )
        transformer = EvaTransformer(eva)
        transformer.set_drop_path(drop_path)
        return transformer


def primus_network(
    size: PrimusSize, input_channels: int, num_classes: int, patch: Triple, drop_path: float = 0.0
) -> nn.Module:
    """Build a Primus as nnU-Net builds it: for pretraining and for fine-tuning alike.

    Args:
        size: one of :data:`PRIMUS_SIZES`, or another.
        input_channels: of the image.
        num_classes: segmentation heads.
        patch: voxels of the patch per axis.
        drop_path: rate at which the last block's residual branches are left out in training.

    Raises:
        ValueError: the patch is not divisible by 8; names the nearest sizes that are.
    """
    from dynamic_network_architectures.architectures.primus import Primus

    check_token_patch(patch, TOKEN)
    kwargs = {KWARGS[name]: value for name, value in asdict(size).items()}
    network: nn.Module = Primus(
        input_channels=input_channels,
        num_classes=num_classes,
        patch_embed_size=TOKEN,
        input_shape=tuple(patch),
        drop_path_rate=drop_path,
        init_values=LAYER_SCALE,
        scale_attn_inner=True,
        **kwargs,
    )
    return network


def build_primus(letter: str, request: NetworkRequest) -> PrimusBackbone:
    """Primus of a published size (S, B, M, L), with the fields in ``request.settings`` changed."""
    published = PRIMUS_SIZES[letter]
    return _backbone(with_settings(published, request.settings, f"Primus{letter}"), request)


def build_planned_primus(request: NetworkRequest) -> PrimusBackbone:
    """The Primus that the plans name."""
    size = primus_size(request.architecture)
    assert size is not None
    return _backbone(size, request)


def primus_architecture(size: PrimusSize) -> dict[str, Any]:
    """The ``architecture`` entry of a plans file for a Primus; the patch size is that of the configuration."""
    letter = next((name for name, published in PRIMUS_SIZES.items() if published == size), None)
    kwargs = {} if letter else {KWARGS[name]: value for name, value in asdict(size).items()}
    return {"network_class_name": f"{MODULE}.Primus{letter or ''}", "arch_kwargs": kwargs, "_kw_requires_import": []}


def primus_size(architecture: Mapping[str, Any]) -> PrimusSize | None:
    """The size of the Primus that an ``architecture`` entry names; None if it names another network.

    Raises:
        ValueError: a Primus without its size.
    """
    module, _, name = str(architecture.get("network_class_name", "")).rpartition(".")
    if module != MODULE:
        return None
    if name.removeprefix("Primus") in PRIMUS_SIZES:
        return PRIMUS_SIZES[name.removeprefix("Primus")]
    kwargs = architecture.get("arch_kwargs", {})
    if name != "Primus" or not all(key in kwargs for key in KWARGS.values()):
        raise ValueError(
            f"The plans name {name} with {sorted(kwargs)}. A Primus is known by its name "
            f"({', '.join(f'Primus{letter}' for letter in PRIMUS_SIZES)}), or as Primus by "
            f"{', '.join(KWARGS.values())}."
        )
    return PrimusSize(**{field: kwargs[key] for field, key in KWARGS.items()})


def _backbone(size: PrimusSize, request: NetworkRequest) -> PrimusBackbone:
    network = primus_network(size, request.input_channels, request.num_classes, request.patch)
    backbone = PrimusBackbone(network, request.input_channels)
    entry = primus_architecture(size)
    backbone.architecture = entry["network_class_name"]
    # nnssl's readers know the published sizes by their names, and want nothing beside them.
    backbone.architecture_kwargs = entry["arch_kwargs"] or None
    return backbone
