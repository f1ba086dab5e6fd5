"""What contrastive methods put on an encoder: pooled features of any network, and projectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.contrast import full_precision
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods.dense import train_only_used
from ssl_pretrain.networks.base import Backbone, FeatureMap
from ssl_pretrain.networks.tokens import TokenBackbone

ProjectorNorm = Literal["batch", "layer"]
TURNS = 4
"""Rotations by multiples of 90° that are told apart."""
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
    maps = backbone.encode(image)[-len(backbone.features) :]
    return torch.cat([features.float().mean((2, 3, 4)) for features in maps], 1)


def pooled_width(backbone: Backbone) -> int:
    """Length of the vectors of :func:`pooled_features`."""
    if isinstance(backbone, TokenBackbone):
        return backbone.width
    return sum(feature_map.channels for feature_map in backbone.features)


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


class UpsamplingDecoder(nn.Sequential):
    """A light decoder on the bottleneck alone: convolution, instance norm, LeakyReLU and trilinear upsampling per step.

    Widths mirror those of the encoder; finer than its finest map, each step halves them.

    Args:
        maps: that the encoder computes, fine to coarse.
        channels: of the image.
    """

    def __init__(self, maps: Sequence[FeatureMap], channels: int) -> None:
        *finer, (width, stride) = maps
        steps = [entry for entry in reversed(finer) if entry.stride != stride]
        layers: list[nn.Module] = []
        while max(stride) > 1:
            halved = cast("Triple", tuple(s // 2 if s % 2 == 0 else 1 for s in stride))
            after, target = steps.pop(0) if steps else FeatureMap(max(channels, width // 2), halved)
            factors = tuple(before // now for before, now in zip(stride, target, strict=True))
            layers += [
                nn.Conv3d(width, after, 3, padding=1),
                nn.InstanceNorm3d(after, affine=True),
                nn.LeakyReLU(inplace=True),
                nn.Upsample(scale_factor=factors, mode="trilinear"),
            ]
            width, stride = after, target
        super().__init__(*layers, nn.Conv3d(width, channels, 1))


class Answers(NamedTuple):
    """What the network says of views.

    Attributes:
        reconstruction: (B, C, D, H, W).
        rotation: logits (B, 4) of the multiples of 90°.
        embedding: (B, E).
    """

    reconstruction: Tensor
    rotation: Tensor
    embedding: Tensor


class PretrainingHeads(nn.Module):
    """A network with a decoder for the image, and two linear heads on its pooled bottleneck.

    Networks with instance norm make of every image much the same means: a norm over the views brings their
    differences out.

    Args:
        backbone: the network.
        embedding: channels of the embeddings.
        drop_path: of a transformer.
        gather: see :class:`GatheredBatchNorm`.
        own: whether the network's own decoder reconstructs.

    Raises:
        ValueError: own, and there is none.
    """

    def __init__(self, backbone: Backbone, embedding: int, drop_path: float, gather: Gather, *, own: bool) -> None:
        super().__init__()
        self.backbone, self.own = backbone, own
        channels, width = backbone.input_channels, backbone.features[-1].channels
        self.image = backbone.new_head(channels) if own else UpsamplingDecoder(backbone.features, channels)
        self.norm = GatheredBatchNorm(width, gather)
        self.rotation, self.contrast = nn.Linear(width, TURNS), nn.Linear(width, embedding)
        heads = nn.ModuleList([self.image, self.rotation, self.contrast])
        train_only_used(backbone, heads, drop_path, decoder=own)

    def forward(self, image: Tensor) -> Answers:
        """(B, C, D, H, W) -> what is said of it."""
        maps = self.backbone.encode(image)
        made = self.image(self.backbone.decode_features(maps) if self.own else maps[-1])
        with full_precision(image.device):
            pooled = self.norm(maps[-1].float().mean((2, 3, 4)))
            return Answers(made, self.rotation(pooled), self.contrast(pooled))
