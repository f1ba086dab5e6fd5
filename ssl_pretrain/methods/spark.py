"""SparK: masked image modelling for convolutional encoders (Tian et al. 2023, arXiv 2301.03580), in 3-D.

A random share of the cells is hidden, the encoder sees the rest through sparse layers, every feature map is densified
with mask tokens, and a light decoder reconstructs the hidden cells in their own normalised space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import nn

from ssl_pretrain.functional.geometry import Triple, check_cell, check_patch, default_cell
from ssl_pretrain.functional.losses import cell_errors
from ssl_pretrain.functional.masking import draw_cells
from ssl_pretrain.methods.base import Batch, Exports, MethodSetup
from ssl_pretrain.methods.dense import freeze_all_but
from ssl_pretrain.methods.light_decoder import DecoderKind, Norm
from ssl_pretrain.methods.masking import Hidden, check_ratio
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.methods.sparse_method import SparseConfig, SparseMethod
from ssl_pretrain.networks.base import Family

SMALLEST_BATCH_FOR_BATCH_NORM = 4

PUBLISHED_WARMUP = 20.0
"""Epochs, of runs of 1000; at most a tenth of a run."""


@dataclass(frozen=True, kw_only=True)
class SparKConfig(SparseConfig):
    """Settings of SparK.

    Attributes:
        mask_ratio: share of the cells that is masked.
        mask_cell: voxels per axis of a cell; None for about 16 per axis, as patch and strides allow.
        stages: encoder stages to pretrain, from the finest; None for all, and all where there are no more (published
            with STU-Net: 5 of 6).
        decoder: ``slim``, or ``spark`` (published) with about three times its multiply-adds.
        decoder_norm: ``batch`` (published) or ``instance``; ``auto`` takes instance below 4 samples per device.
        decoder_width: channels of the decoder at the coarsest map; None for that map's own.
        decode: share of the masked cells that the decoder's finest blocks compute in a training step, chosen at random;
            validation and pictures have all of them. None (published) for every cell of the patch.
    """

    published: ClassVar[Mapping[str, Any]] = {
        "stages": 5,
        "decoder": "spark",
        "decoder_norm": "batch",
        "oversample_foreground": 0.33,
    }

    optimizer: Literal["auto", "adamw", "sgd"] = "adamw"
    schedule: Literal["auto", "cosine", "poly"] = "cosine"
    lr: float | None = 2e-4
    betas: tuple[float, float] | None = (0.9, 0.999)
    weight_decay: float | None = 1e-5
    clip: float | None = 12.0
    mask_ratio: float = 0.6
    mask_cell: Triple | None = None
    stages: int | None = None
    decoder: DecoderKind = "slim"
    decoder_norm: Literal["auto", "batch", "instance"] = "auto"
    decoder_width: int | None = None
    decode: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.mask_ratio)
        if self.decoder_width is not None and self.decoder_width < 1:
            raise ValueError(f"decoder_width must be at least 1, got {self.decoder_width}.")
        if self.decode is not None and not 0.0 < self.decode <= 1.0:
            raise ValueError(f"decode must be greater than 0 and at most 1, or None for every cell, got {self.decode}.")

    def warmup(self, family: Family, epochs: int) -> float:
        """The published 20 epochs, at most a tenth of the run."""
        short = min(PUBLISHED_WARMUP, epochs / 10)
        return short if self.warmup_epochs is None else super().warmup(family, epochs)


class SparK(SparseMethod):
    """Reconstruction of hidden cells from a sparse encoder, by a light decoder."""

    Config: ClassVar[type[SparKConfig]] = SparKConfig
    config: SparKConfig
    exports: Exports = "encoder"
    errors = staticmethod(cell_errors)
    citations: ClassVar[tuple[str, ...]] = (
        "Tian, K. et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling. "
        "ICLR 2023, arXiv:2301.03580.",
    )

    def __init__(self, config: SparKConfig, setup: MethodSetup, *, coarse: bool = False) -> None:
        super().__init__(config, setup)
        total = len(setup.backbone.feature_maps)
        encoder, maps = setup.backbone.truncated(None if config.stages is None else min(config.stages, total))
        strides = [m.stride for m in maps]
        check_patch(self.patch, setup.backbone.feature_maps[-1].stride)
        cell = config.mask_cell or default_cell(self.patch, strides)
        check_cell(cell, self.patch, strides)
        if prod(cell) * setup.backbone.input_channels < 2:
            raise ValueError(f"Mask cell {cell} is a single number, which has no variance. Choose a larger -mask_cell.")
        self.set_cells(cell, config.mask_ratio)
        self.decoder_norm = _decoder_norm(config, setup)
        self.student = SparKNetwork(
            encoder,
            maps,
            self.cell,
            setup.backbone.input_channels,
            width=config.decoder_width,
            norm=self.decoder_norm,
            kind=config.decoder,
            coarse=coarse,
            alone=config.decode is not None,
            checkpointing=config.checkpointing,
        )
        if config.decode is not None and self.student.decoder.alone is not None:
            self.drawn = max(round(config.decode * self.masked), 1)
        freeze_all_but({id(p) for p in self.student.parameters()}, setup.backbone.network)

    def choose(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """See :meth:`MaskedMethod.choose`."""
        return self.thinned(super().choose(batch, generator), batch, generator)

    def thinned(self, hidden: Hidden, batch: Batch, generator: torch.Generator) -> Hidden:
        """In training: the cells to decode, drawn from the masked ones whatever they were masked for.

        The mean of their errors is an unbiased estimate of that of all masked cells.
        """
        if not self.training or self.drawn is None:
            return hidden
        # Streams of their own: the first numbers of a sample's own have led to its mask.
        generators = [np.random.default_rng(g.integers(2**62)) for g in self.sample_generators(batch, generator)]
        return hidden._replace(decoded=draw_cells(hidden.mask, self.drawn, generators))

    def networks(self) -> tuple[SparKNetwork, ...]:
        """Every network that reconstructs images."""
        return (self.student,)

    @property
    def trained(self) -> nn.Module:
        """The student: encoder, densification and decoder."""
        return self.student

    def describe(self) -> str:
        """Mask grid, masked cells and decoder widths as text."""
        return (
            f"{super().describe()}\n"
            f"decoder: {len(self.student.decoder.blocks)} blocks, widths {self.student.decoder.widths}, "
            f"{len(self.student.densify)} feature maps densified{self._decodes()}"
        )

    def _decodes(self) -> str:
        """Which blocks compute how many cells alone, as text; nothing where that was not asked for."""
        if self.config.decode is None:
            return ""
        if self.drawn is None:
            small = f"cells of {self.cell} voxels are too small to compute alone"
            return f"\ndecode={self.config.decode:g} has no effect: {small}"
        alone = len(self.student.decoder.blocks) - cast("int", self.student.decoder.alone)
        return f"\nthe last {alone} blocks compute {self.drawn} of the {self.masked} masked cells in a training step"


def _decoder_norm(config: SparKConfig, setup: MethodSetup) -> Norm:
    if config.decoder_norm != "auto":
        return config.decoder_norm
    return "batch" if setup.length.batch_size >= SMALLEST_BATCH_FOR_BATCH_NORM else "instance"
