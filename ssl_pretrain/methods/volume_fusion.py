"""VolumeFusion: two crops are fused box by box, and the network says how much of which (Wang et al. 2023, 2306.16925).

The only method here whose pretext task is a segmentation, so that the decoder learns what it will be used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.fusion import Fused, FusionConfig, fuse
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.segmentation_loss import segmentation_loss
from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods.base import Batch, Column, Method, MethodSetup, Output
from ssl_pretrain.methods.dense import DenseNetwork
from ssl_pretrain.methods.recipe import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class VolumeFusionConfig(OptimizerConfig, FusionConfig):
    """Settings of VolumeFusion: those of the optimiser, those of the fusion, and

    Attributes:
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    published: ClassVar[Mapping[str, Any]] = {"rotation_p": 0.0, "scale_p": 0.0}

    drop_path: float = 0.2

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        FusionConfig.__post_init__(self)


class VolumeFusion(Method):
    """Segmentation of fused crops into classes of mixture."""

    Config: ClassVar[type[VolumeFusionConfig]] = VolumeFusionConfig
    config: VolumeFusionConfig
    fewest_cases: ClassVar[int] = 2
    citations: ClassVar[tuple[str, ...]] = (
        "Wang, G. et al. MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale "
        "Unannotated Dataset. 2023, arXiv:2306.16925.",
    )

    def __init__(self, config: VolumeFusionConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        self.network = DenseNetwork(setup.backbone, config.classes, config.drop_path)

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003
        """A foreground and a background, each of a case of its own."""
        return Views(count=2)

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and head."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Cross-entropy and soft Dice over the classes of mixture."""
        images, labels = self.fuse(batch, generator)
        counted = None
        if "ignored" in batch:
            first, second = halves(batch["ignored"])
            counted = ~(first | second)
        cross_entropy, dice = segmentation_loss(self.network(images), labels, counted)
        return Output(cross_entropy + dice, {})

    def fuse(self, batch: Batch, generator: torch.Generator) -> Fused:
        """Every sample's two crops, fused by its own generator."""
        rows = zip(*halves(batch["image"]), self.sample_generators(batch, generator), strict=True)
        fused = [fuse(foreground[None], background[None], own, self.config) for foreground, background, own in rows]
        return Fused(*(torch.cat(parts) for parts in zip(*fused, strict=True)))

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """The batch's first foreground, what it is fused to, and the class of each voxel: true and predicted."""
        fused, labels = self.fuse(batch, generator)
        classes = self.config.classes
        return (
            Column("foreground", "image", batch["image"][0]),
            Column("fused input", "image", fused[0]),
            Column("label", "classes", labels[:1], classes),
            Column("predicted label", "classes", self.network(fused[:1]).argmax(1), classes),
        )

    def probe(self, image: Tensor) -> None:
        """A forward pass of as many images as two crops each are fused to."""
        self.network(halves(image)[0])

    def describe(self) -> str:
        """Classes and boxes as text."""
        config = self.config
        return f"fusion: {config.classes} classes, {config.boxes_min} to {config.boxes_max} boxes in a crop"


def halves(crops: Tensor) -> tuple[Tensor, Tensor]:
    """Foregrounds and backgrounds: (2·B, …) -> two of (B, …). The loader makes two per sample; they come in turn."""
    return crops[0::2], crops[1::2]
