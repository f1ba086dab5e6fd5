"""SimCLR: two views of a place are told from all others (Chen et al. 2020, arXiv 2002.05709), in 3-D as in OpenMind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_pretrain.functional.augment import AugmentConfig, apply_augmentation_, draw_augmentation
from ssl_pretrain.functional.contrast import nt_xent
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, moved_onto
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, Column, Exports, Method, MethodSetup, Needs, Output, first_of
from ssl_pretrain.methods.heads import ProjectedEncoder, ProjectorNorm
from ssl_pretrain.methods.recipe import DEFAULTS, OptimizerConfig
from ssl_pretrain.networks.base import Family

PROJECTOR_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(OptimizerConfig, AugmentConfig):
    """Settings of SimCLR: those of the optimiser, those of the augmentation of each view, and

    Attributes:
        temperature: of the softmax over cosines.
        crop: voxels of a view per axis; None for the network's patch, which is what a transformer needs.
        overlap: least share of each axis that the two views of a place have in common.
        same_image: what other crops of the same case are: ``exclude`` leaves them out, ``negative`` as published.
        quarter_turns: rotate each view by a multiple of 90° in the plane of the first two axes, where these are equally
            long.
        projector: channels of the projector's layers.
        projector_norm: between these: ``batch``, over the views of all processes, or ``layer``, as published.
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    defaults: ClassVar[Mapping[Family, Mapping[str, Any]]] = {
        **DEFAULTS,
        "convolutional": {**DEFAULTS["convolutional"], "clip": 0.1},
    }

    published: ClassVar[Mapping[str, Any]] = {
        "crop": (64, 64, 64),
        "same_image": "negative",
        "projector_norm": "layer",
        "rotation_p": 0.0,
        "scale_p": 0.0,
    }

    blur_p: float = 0.2
    low_resolution_p: float = 0.1
    temperature: float = 0.5
    crop: Triple | None = None
    overlap: float = 0.5
    same_image: Literal["exclude", "negative"] = "exclude"
    quarter_turns: bool = True
    projector: int = 2048
    projector_norm: ProjectorNorm = "batch"
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        AugmentConfig.__post_init__(self)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")
        if self.projector < 1:
            raise ValueError(f"projector must be at least 1, got {self.projector}.")


class SimCLR(Method):
    """Contrast of two augmented, overlapping crops of a case."""

    Config: ClassVar[type[SimCLRConfig]] = SimCLRConfig
    config: SimCLRConfig
    needs: ClassVar[Needs] = (frozenset(),)
    exports: Exports = "encoder"
    fewest_samples: ClassVar[int] = 2
    citations: ClassVar[tuple[str, ...]] = (
        "Chen, T. et al. A Simple Framework for Contrastive Learning of Visual Representations. ICML 2020, "
        "arXiv:2002.05709.",
        "Wald, T. et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025, arXiv:2412.17041.",
    )

    def __init__(self, config: SimCLRConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        if config.crop is not None and config.crop != setup.patch:
            stride = setup.backbone.feature_maps[-1].stride
            if "tokens" in setup.backbone.offers:
                raise ValueError(
                    f"crop {config.crop}: a transformer sees its whole patch {setup.patch}. Use that as -patch_size, "
                    "or -set crop=None."
                )
            if config.crop == stride or any(size % step for size, step in zip(config.crop, stride, strict=True)):
                raise ValueError(
                    f"crop {config.crop}: every axis must be a multiple of the network's total stride {stride}, and at "
                    "least one of them twice as long (-set crop=D,H,W)."
                )
        widths = [config.projector] * PROJECTOR_LAYERS
        self.network = ProjectedEncoder(setup.backbone, widths, config.projector_norm, self.gather, config.drop_path)

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003
        """Two crops of one case that overlap."""
        own = cast("SimCLRConfig", config)
        return Views(count=2, together=True, overlap=own.overlap, size=own.crop)

    @property
    def trained(self) -> nn.Module:
        """Encoder and projector."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """NT-Xent over the views of all processes."""
        embedded = self.embed(self.augmented(batch, generator) if self.training else batch["image"])
        everyone, first = self.gather(embedded)
        # Where all crops are of one case, they are all that there is to be told from.
        alone = len(everyone) == len(embedded) and len(set(batch["row"])) == 1
        others = None
        if self.config.same_image == "exclude" and not alone:
            others, _ = self.gather(hand_over(torch.tensor(batch["row"]), embedded.device))
        # The two views of a sample come one after the other: 0 and 1, 2 and 3.
        partner = torch.arange(first, first + len(embedded), device=embedded.device) ^ 1
        return Output(nt_xent(embedded, everyone, first, partner, self.config.temperature, others), {})

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E)."""
        return normalize(self.network(image).float(), dim=1)

    def augmented(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The crops turned and with other intensities, each channel of each crop its own."""
        image, count = batch["image"].clone(), self.sample_views.count
        turns = self.config.quarter_turns and image.shape[2] == image.shape[3]
        for sample, own in enumerate(self.sample_generators(batch, generator)):
            crops = image[sample * count : (sample + 1) * count]
            for crop, turn in zip(crops, own.integers(4, size=count).tolist(), strict=True):
                if turns and turn:
                    crop.copy_(crop.rot90(turn, (1, 2)))
            apply_augmentation_(crops, draw_augmentation(count, image.shape[1], own, self.config))
        return image

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """Two views of a place, the second one moved to where it overlaps the first, and both as they are compared."""
        first, second = batch["image"][:2]
        seen = self.augmented(first_of(batch, 2), generator)
        return (
            Column("first view", "image", first),
            Column("second view, where they overlap", "image", moved_onto(second, batch["affine"][:2])),
            Column("first view, augmented", "image", seen[0]),
            Column("second view, augmented", "image", seen[1]),
        )
