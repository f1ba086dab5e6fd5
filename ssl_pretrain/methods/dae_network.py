"""The network of Disruptive Autoencoders: a segmentation network whose embedding may lose channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_pretrain.methods.dense import train_only_used
from ssl_pretrain.methods.heads import Gather, GatheredBatchNorm
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.tokens import TokenBackbone


class RestoringNetwork(nn.Module):
    """Encoder, decoder and a fresh head for the image; the mean of the coarsest map beside it.

    Attributes:
        norm: of those means, over the samples of all processes, before they are compared: networks with instance norm
            make of every image much the same means.

    Args:
        backbone: the network.
        drop_path: of a transformer.
        gather: see :class:`~ssl_pretrain.methods.heads.GatheredBatchNorm`.
        freeze: ``encoder`` or ``decoder``, which gets no gradient; None for neither.
        blind: whether a decoder that looks at the image itself, beside the feature maps, sees 0 in its place.
    """

    def __init__(
        self,
        backbone: Backbone,
        drop_path: float,
        gather: Gather,
        freeze: Literal["encoder", "decoder"] | None,
        *,
        blind: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.blind = backbone, blind and backbone.decodes_image
        self.head = backbone.new_head(backbone.input_channels)
        self.norm = GatheredBatchNorm(backbone.feature_maps[-1].channels, gather)
        train_only_used(backbone, self.head, drop_path)
        frozen = {"encoder": backbone.encoder_keys, "decoder": backbone.decoder_keys, None: ()}[freeze]
        for name, parameter in backbone.network.named_parameters(remove_duplicate=False):
            if name in frozen:
                parameter.requires_grad_(False)

    @property
    def embedding(self) -> nn.Module:
        """The module whose output (B, E, ...) is the embedding: the projection of tokens, or the stem of a CNN.

        Raises:
            ValueError: nobody says which it is; says what to do.
        """
        backbone = self.backbone
        is_transformer = isinstance(backbone, TokenBackbone)
        key = backbone.input_projection_keys[0] if is_transformer else backbone.stem_key
        if not key:
            raise ValueError(
                f"{type(backbone.network).__name__} does not say which part first touches the image (key_to_stem), so "
                "no channels of its embedding can be lost. Use -set local=cells, or disruption=denoise or superres."
            )
        return backbone.network.get_submodule(key)

    def forward(self, image: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Restored image (B, C, D, H, W), and the mean of the coarsest map (B, F), float32.

        Args:
            image: (B, C, D, H, W).
            kept: boolean (B, E), channels of the embedding that are not replaced by 0; None for all.
        """
        with nullcontext() if kept is None else multiplied(self.embedding, kept):
            maps = self.backbone.encode(image)
        if self.blind:
            maps = [torch.zeros_like(maps[0]), *maps[1:]]
        return self.head(self.backbone.decode_features(maps)), maps[-1].float().mean((2, 3, 4))


@contextmanager
def multiplied(module: nn.Module, factors: Tensor) -> Iterator[None]:
    """A module whose output (B, E, ...) is multiplied by factors (B, E) as long as this lasts."""

    def multiply(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """What the module hands on instead."""
        return output * factors.view(*factors.shape, *[1] * (output.dim() - 2))

    handle = module.register_forward_hook(multiply)
    try:
        yield
    finally:
        handle.remove()
