"""Disruptive Autoencoders: a network restores disrupted crops (Valanarasu et al. 2023, arXiv 2307.16896).

Noise, low resolution and lost channels of the embedding, one of them or all, and a contrast of modalities beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_pretrain.functional.contrast import supervised_contrast
from ssl_pretrain.functional.disruption import DisruptionConfig, add_noise, draw_kept, reduced, reductions
from ssl_pretrain.functional.geometry import check_cell, default_cell, grid_of
from ssl_pretrain.functional.masking import count_masked, repeat_to, sample_masks
from ssl_pretrain.functional.seeding import host_twin
from ssl_pretrain.methods.base import Batch, Column, Method, MethodSetup, Output, first_of, one_per_channel
from ssl_pretrain.methods.dae_network import RestoringNetwork
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.networks.base import Family

RECIPE = {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-4, "weight_decay": 0.05, "clip": 1.0}
WARMUP = 4.0
"""Epochs, of runs of 300 or 1000; at most a tenth of a run."""


@dataclass(frozen=True, kw_only=True)
class DAEConfig(OptimizerConfig, DisruptionConfig):
    """Settings of DAE: those of the optimiser, those of the disruptions, and

    Attributes:
        channels: a case is one sample, or ``each`` of its channels is one, which all inputs of the network then see.
        mm_con: weight of the contrast of modalities, which there is where the cases have several.
        temperature: of that contrast.
        freeze: part of the network that is not trained.
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    defaults: ClassVar[Mapping[Family, Mapping[str, Any]]] = {"convolutional": RECIPE, "transformer": RECIPE}

    published: ClassVar[Mapping[str, Any]] = {
        "local": "published",
        "channels": "each",
        "rotation_p": 0.0,
        "scale_p": 0.0,
        "mirror_p": 0.0,
    }

    channels: Literal["together", "each"] = "together"
    mm_con: float = 0.03
    temperature: float = 0.5
    freeze: Literal["encoder", "decoder"] | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        DisruptionConfig.__post_init__(self)
        if not 0 <= self.mm_con < float("inf"):
            raise ValueError(f"mm_con must not be negative, and finite, got {self.mm_con}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")

    def warmup(self, family: Family, epochs: int) -> float:
        """The published 4 epochs, at most a tenth of the run."""
        return min(WARMUP, epochs / 10) if self.warmup_epochs is None else super().warmup(family, epochs)


class Disrupted(NamedTuple):
    """What the network sees.

    Attributes:
        image: (B, C, D, H, W).
        kept: boolean (B, E), channels of the embedding that are not lost; None where none is.
        mask: boolean (B, *grid), cells that are lost; None where none is.
    """

    image: Tensor
    kept: Tensor | None
    mask: Tensor | None


class DAE(Method):
    """Restoration of noisy crops of low resolution with lost channels, and contrast of modalities."""

    Config: ClassVar[type[DAEConfig]] = DAEConfig
    config: DAEConfig
    citations: ClassVar[tuple[str, ...]] = (
        "Valanarasu, J. M. J. et al. Disruptive Autoencoders: Leveraging Low-level Features for 3D Medical Image "
        "Pre-training. MIDL 2024, arXiv:2307.16896.",
    )

    def __init__(self, config: DAEConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        shown = {(one,) for row in setup.shown for one in row} if config.channels == "each" else set(setup.shown)
        self.contrasts = config.mm_con > 0 and len(shown) > 1
        self.factors = reductions(self.patch, config.interpolate)
        self.loses_channels = config.has("local") and config.local != "cells"
        if config.has("local") and config.local == "cells":
            strides = [entry.stride for entry in setup.backbone.features]
            self.cell = config.mask_cell or default_cell(self.patch, strides)
            check_cell(self.cell, self.patch, strides)
            self.grid = grid_of(self.patch, self.cell)
            self.masked = count_masked(prod(self.grid), config.mask_ratio)
        self.width = setup.backbone.features[0].channels
        # Its decoder would see the whole image beside an embedding that has lost channels.
        blind = self.loses_channels and config.disruption == "local"
        self.network = RestoringNetwork(setup.backbone, config.drop_path, self.gather, config.freeze, blind=blind)
        if self.loses_channels:
            _ = self.network.embedding  # refuses a network that has none

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and head, but for what is frozen."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Mean absolute error of all voxels that count, and the contrast."""
        image, each = self.samples(batch["image"]), self.crops_of_a_sample(batch)
        owners = [own for own in self.sample_generators(batch, generator) for _ in range(each)]
        disrupted = self.disrupt(image, owners, generator)
        restored, pooled = self.network(disrupted.image, disrupted.kept)
        errors = (restored.float() - image).abs()
        if "ignored" in batch:
            counted = (~batch["ignored"]).repeat_interleave(each, 0).float().expand_as(errors)
            reconstruction = (errors * counted).sum() / counted.sum().clamp_min(1)
        else:
            reconstruction = errors.mean()
        if not self.contrasts:
            return Output(reconstruction, {})
        modality = batch["modality"].flatten()[:, None] if self.config.channels == "each" else batch["modality"]
        classes = self.gather(modality)[0]
        # A single sample has no statistics, and nothing to be told from.
        own = normalize(self.network.norm(pooled) if len(classes) > 1 else pooled, dim=1)
        everyone, first = self.gather(own)
        contrast = supervised_contrast(own, everyone, first, classes, self.config.temperature)
        log = {"reconstruction": reconstruction.detach(), "contrast": contrast.detach()}
        return Output(reconstruction + self.config.mm_con * contrast, log)

    def samples(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) as it is, or each channel as a sample (B·C, C, D, H, W) that all inputs show."""
        if self.config.channels == "together":
            return image
        return one_per_channel(image).expand(-1, image.shape[1], -1, -1, -1)

    def crops_of_a_sample(self, batch: Batch) -> int:
        """Samples that the network sees for each of a batch."""
        return batch["image"].shape[1] if self.config.channels == "each" else 1

    def disrupt(self, image: Tensor, owners: list[np.random.Generator], generator: torch.Generator) -> Disrupted:
        """Crops (B, C, D, H, W) with noise, then of low resolution, and what of their embedding is lost.

        Args:
            image: not changed.
            owners: of the randomness of each crop.
            generator: of what the whole batch has in common.
        """
        config, seen, kept, mask = self.config, image, None, None
        if config.has("denoise"):
            seen = add_noise(seen, config.variance, [int(own.integers(2**62)) for own in owners])
        if config.has("superres"):
            seen = reduced(seen, self.factors, config.resampling)
        if self.loses_channels:
            drawn = [host_twin(generator)] if config.local == "published" else owners
            kept = draw_kept(drawn, self.width, int(config.mask_ratio * self.width), image.device)
            kept = kept.expand(len(image), -1)
        elif config.has("local"):
            mask = sample_masks(owners, self.grid, self.masked, image.device)
            seen = seen.masked_fill(repeat_to(mask, self.patch)[:, None], 0.0)
        return Disrupted(seen, kept, mask)

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """The first crop, what the network sees of it, what it makes of that, and how far off it is."""
        first = first_of(batch)
        image = self.samples(first["image"])[:1]
        seen = self.disrupt(image, self.sample_generators(first, generator), generator)
        restored = self.network(seen.image, seen.kept)[0].float()
        lost = f", {self.config.mask_ratio:.0%} of its embedding lost" if self.loses_channels else ""
        return (
            Column("original", "image", image[0]),
            Column(f"disrupted{lost}", "image", seen.image[0], tinted=None if seen.mask is None else seen.mask[0]),
            Column("restored", "image", restored[0]),
            Column("absolute error", "error", (restored - image).abs()[0]),
        )

    def describe(self) -> str:
        """Disruptions and contrast as text."""
        config, parts = self.config, []
        if config.has("denoise"):
            parts.append(f"noise of variance {config.variance:g}")
        if config.has("superres"):
            parts.append(f"resolution lower by {' x '.join(map(str, self.factors))}")
        if self.loses_channels:
            parts.append(f"{int(config.mask_ratio * self.width)} of {self.width} channels of the embedding lost")
        elif config.has("local"):
            parts.append(f"{self.masked} of {prod(self.grid)} cells of {self.cell} lost")
        contrast = f"of weight {config.mm_con:g}" if self.contrasts else "none: all cases show the same"
        if not config.mm_con:
            contrast = "none (mm_con=0)"
        return f"disruption: {', '.join(parts)}\ncontrast of modalities: {contrast}"
