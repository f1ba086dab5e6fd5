"""What contrastive methods put on an encoder: pooled features of any network, and projectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ssl_pretrain.methods.dense import train_only_used
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.tokens import TokenBackbone


def pooled_features(backbone: Backbone, image: Tensor) -> Tensor:
    """One vector per image: the means of all feature maps, concatenated; of a transformer the mean of its tokens.

    Args:
        backbone: the network.
        image: (B, C, D, H, W).

    Returns:
        (B, F) with F of :func:`pooled_width`.
    """
    if isinstance(backbone, TokenBackbone):
        return backbone.encode_tokens(backbone.embed(image)).mean(1)
    return torch.cat([features.mean((2, 3, 4)) for features in backbone.encode(image)], 1)


def pooled_width(backbone: Backbone) -> int:
    """Length of the vectors of :func:`pooled_features`."""
    if isinstance(backbone, TokenBackbone):
        return backbone.width
    return sum(feature_map.channels for feature_map in backbone.feature_maps)


class Projector(nn.Sequential):
    """Linear layers with a norm over the features of each vector and ReLU between them: (B, F) -> (B, E).

    The norm has no weights and looks at one vector alone, so that a batch may be of any size. OpenMind's projectors are
    so: its ``InstanceNorm1d``, given vectors without a spatial axis, normalises over features.

    Args:
        widths: of the vectors, from F to E.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after, elementwise_affine=False), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-2])


class ProjectedEncoder(nn.Module):
    """An encoder, its pooled features, and a projector: image -> (B, E).

    Args:
        backbone: the network; its decoder gets no gradient.
        widths: of the projector after the pooled features.
        drop_path: of a transformer.
    """

    def __init__(self, backbone: Backbone, widths: Sequence[int], drop_path: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Projector([pooled_width(backbone), *widths])
        train_only_used(backbone, self.projector, drop_path, decoder=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E)."""
        return cast("Tensor", self.projector(pooled_features(self.backbone, image)))
