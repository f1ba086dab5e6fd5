"""Models Genesis: a network restores an image from its corrupted copy (Zhou et al. 2021, arXiv 2004.07882)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ssl_pretrain.functional.genesis import GenesisConfig, apply_flips, corrupt, draw_flips
from ssl_pretrain.functional.shuffling import check_patterns
from ssl_pretrain.methods.base import Batch, Column, Method, MethodSetup, Output, first_of
from ssl_pretrain.methods.dense import DenseNetwork
from ssl_pretrain.methods.recipe import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ModelsGenesisConfig(OptimizerConfig, GenesisConfig):
    """Settings of Models Genesis: those of the optimiser, those of the corruptions, and

    Attributes:
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    published: ClassVar[Mapping[str, Any]] = {"rotation_p": 0.0, "scale_p": 0.0, "mirror_p": 0.0}

    drop_path: float = 0.2

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        GenesisConfig.__post_init__(self)


class ModelsGenesis(Method):
    """Restoration of shuffled, recoloured and painted crops."""

    Config: ClassVar[type[ModelsGenesisConfig]] = ModelsGenesisConfig
    config: ModelsGenesisConfig
    citations: ClassVar[tuple[str, ...]] = (
        "Zhou, Z. et al. Models Genesis. Medical Image Analysis 67, 101840 (2021), arXiv:2004.07882.",
    )

    def __init__(self, config: ModelsGenesisConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        check_patterns(self.patch, config.shuffle_side, config.shuffle_patterns)
        self.network = DenseNetwork(setup.backbone, setup.backbone.input_channels, config.drop_path)

    @property
    def trained(self) -> nn.Module:
        """Encoder, decoder and head."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Mean squared error of all voxels that count."""
        image, generators = batch["image"], self.sample_generators(batch, generator)
        flips = tuple(draw_flips(1, own, self.config)[0] for own in generators)
        target = apply_flips(image, flips)
        corrupted = [corrupt(one[None], own, self.config) for one, own in zip(target, generators, strict=True)]
        squares = (self.network(torch.cat(corrupted)).float() - target).square()
        if "ignored" not in batch:
            return Output(squares.mean(), {})
        counted = (~apply_flips(batch["ignored"], flips)).to(squares.dtype).expand_as(squares)
        return Output((squares * counted).sum() / counted.sum().clamp_min(1), {})

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """The batch's first crop, its corrupted copy, what the network makes of that, and how far off it is.

        Every corruption that can happen does: chance would leave the one crop that is shown in every epoch untouched.
        """
        first = first_of(batch)
        image, own = first["image"], self.sample_generators(first, generator)[0]
        possible = (name for name in ("shuffle_p", "intensity_p", "paint_p") if getattr(self.config, name))
        certain: dict[str, Any] = dict.fromkeys(possible, 1.0)
        corrupted = corrupt(image, own, replace(self.config, **certain))
        restored = self.network(corrupted).float()
        return (
            Column("original", "image", image[0]),
            Column("corrupted input", "image", corrupted[0]),
            Column("restored", "image", restored[0]),
            Column("absolute error", "error", (restored - image).abs()[0]),
        )

    def describe(self) -> str:
        """Probabilities of the corruptions as text."""
        config = self.config
        return (
            f"corruption: shuffling {config.shuffle_p:.0%}, intensities {config.intensity_p:.0%}, "
            f"painting {config.paint_p:.0%} of the crops"
        )
