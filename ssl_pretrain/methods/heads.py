"""What contrastive methods put on an encoder: pooled features of any network, and projectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.contrast import full_precision
from ssl_pretrain.methods.dense import train_only_used
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.tokens import TokenBackbone

ProjectorNorm = Literal["batch", "layer"]
PROJECTOR_LAYERS = 3
"""Linear layers of a projector."""

HIDDEN = 3
"""Modules of a projector up to its first hidden features: a linear layer, a norm, ReLU."""

Gather = Callable[[Tensor], tuple[Tensor, int]]


def pooled_features(backbone: Backbone, image: Tensor) -> Tensor:
    """One vector per image: the means of all feature maps, concatenated; of a transformer the mean of its tokens.

    Args:
        backbone: the network.
        image: (B, C, D, H, W).

    Returns:
        (B, F) with F of :func:`pooled_width`, float32.
    """
    if isinstance(backbone, TokenBackbone):
        return backbone.encode_tokens(backbone.embed(image)).float().mean(1)
    return torch.cat([features.float().mean((2, 3, 4)) for features in backbone.encode(image)], 1)


def pooled_width(backbone: Backbone) -> int:
    """Length of the vectors of :func:`pooled_features`."""
    if isinstance(backbone, TokenBackbone):
        return backbone.width
    return sum(feature_map.channels for feature_map in backbone.feature_maps)


class GatheredBatchNorm(nn.BatchNorm1d):
    """Batch norm without weights over the vectors of all processes: several compute what one does on all.

    Args:
        features: length of the vectors.
        gather: vectors of this process -> those of all processes, with gradient, and where its own begin. Copies of
            the norm share it.
    """

    def __init__(self, features: int, gather: Gather) -> None:
        super().__init__(features, affine=False)
        self.gather = gather

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, F); in evaluation mode by the running statistics."""
        everyone, first = self.gather(x) if self.training else (x, 0)
        return super().forward(everyone)[first : first + len(x)]


def build_projector(widths: Sequence[int], norm: ProjectorNorm, gather: Gather) -> nn.Sequential:
    """Linear layers with a norm without weights and ReLU between them: (B, first width) -> (B, last width).

    Args:
        widths: of what goes in, and of what every layer puts out.
        norm: ``batch``, over the vectors of all processes, as in SimCLR (Chen et al. 2020); or ``layer``, over the
            features of each vector: OpenMind's ``InstanceNorm1d`` does so, given vectors without a spatial axis.
        gather: see :class:`GatheredBatchNorm`.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        batch = norm == "batch"
        own = GatheredBatchNorm(after, gather) if batch else nn.LayerNorm(after, elementwise_affine=False)
        layers += [nn.Linear(before, after), own, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])


class ProjectedEncoder(nn.Module):
    """An encoder, its pooled features, and a projector: image -> (B, E) and (B, F), float32 under any precision.

    Args:
        backbone: the network; its decoder gets no gradient.
        widths: of the projector after the pooled features.
        norm: of the projector; see :func:`build_projector`.
        gather: see :class:`GatheredBatchNorm`.
        drop_path: of a transformer.
    """

    def __init__(
        self, backbone: Backbone, widths: Sequence[int], norm: ProjectorNorm, gather: Gather, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = build_projector([pooled_width(backbone), *widths], norm, gather)
        train_only_used(backbone, self.projector, drop_path, decoder=False)

    def forward(self, image: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E), and the pooled features (B, F) that they are made of.

        Args:
            image: (B, C, D, H, W).
            factors: (B, first of ``widths``), on what the projector makes of the pooled features first, after norm
                and ReLU; None for 1.
        """
        pooled = pooled_features(self.backbone, image)
        if factors is None:
            return projected(self.projector, pooled), pooled
        with full_precision(image.device):
            return cast("Tensor", self.projector[HIDDEN:](self.projector[:HIDDEN](pooled) * factors)), pooled


def projected(projector: nn.Module, pooled: Tensor) -> Tensor:
    """What a projector makes of pooled features (B, F), in full precision: (B, E)."""
    with full_precision(pooled.device):
        return cast("Tensor", projector(pooled))
