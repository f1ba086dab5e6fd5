"""SimCLR: two views of a place are told from all others (Chen et al. 2020, arXiv 2002.05709), in 3-D as in OpenMind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch

from ssl_pretrain.functional.contrast import nt_xent, partners
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, moved_onto
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, Column, Output, first_of
from ssl_pretrain.methods.contrastive import ContrastiveConfig, ContrastiveMethod
from ssl_pretrain.methods.recipe import DEFAULTS, OptimizerConfig
from ssl_pretrain.networks.base import Family


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ContrastiveConfig):
    """Settings of SimCLR: those of contrastive methods, where a crop is None for the network's patch, and

    Attributes:
        temperature: of the softmax over cosines.
        overlap: least share of each axis that the two views of a place have in common.
        same_image: what other crops of the same case are: ``exclude`` leaves them out, ``negative`` as published.
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

    temperature: float = 0.5
    overlap: float = 0.5
    same_image: Literal["exclude", "negative"] = "exclude"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")


class SimCLR(ContrastiveMethod):
    """Contrast of two augmented, overlapping crops of a case."""

    Config: ClassVar[type[SimCLRConfig]] = SimCLRConfig
    config: SimCLRConfig
    fewest_samples: ClassVar[int] = 2
    citations: ClassVar[tuple[str, ...]] = (
        "Chen, T. et al. A Simple Framework for Contrastive Learning of Visual Representations. ICML 2020, "
        "arXiv:2002.05709.",
        "Wald, T. et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025, arXiv:2412.17041.",
    )

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003
        """Two crops of one case that overlap."""
        own = cast("SimCLRConfig", config)
        return Views(count=2, together=True, overlap=own.overlap, size=own.crop)

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """NT-Xent over the views of all processes."""
        owners = self.sample_generators(batch, generator)
        embedded = self.embed(self.augmented(batch, owners) if self.training else batch["image"])
        everyone, first = self.gather(embedded)
        # Where all crops are of one case, they are all that there is to be told from.
        alone = len(everyone) == len(embedded) and len(set(batch["row"])) == 1
        others = None
        if self.config.same_image == "exclude" and not alone:
            others, _ = self.gather(hand_over(torch.tensor(batch["row"]), embedded.device))
        partner = partners(first, len(embedded), embedded.device)
        return Output(nt_xent(embedded, everyone, first, partner, self.config.temperature, others), {})

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """Two views of a place, the second one moved to where it overlaps the first, and both as they are compared."""
        first, second = batch["image"][:2]
        sample = first_of(batch, 2)
        seen = self.augmented(sample, self.sample_generators(sample, generator))
        return (
            Column("first view", "image", first),
            Column("second view, where they overlap", "image", moved_onto(second, batch["affine"][:2])),
            Column("first view, augmented", "image", seen[0]),
            Column("second view, augmented", "image", seen[1]),
        )
