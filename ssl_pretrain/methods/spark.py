"""SparK: masked image modelling for convolutional encoders (Tian et al. 2023, arXiv 2301.03580), in 3-D.

A random share of the cells is hidden, the encoder sees the rest through sparse layers, every feature map is densified
with mask tokens, and a light decoder reconstructs the hidden cells in their own normalised space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, check_cell, check_patch, default_cell, grid_of
from ssl_pretrain.functional.losses import cell_errors, cell_statistics, masked_mean
from ssl_pretrain.functional.masking import count_masked, repeat_to, sample_masks
from ssl_pretrain.functional.patches import from_cells, to_cells
from ssl_pretrain.methods.base import Batch, MethodSetup, Output, first_of
from ssl_pretrain.methods.dense import freeze_all_but
from ssl_pretrain.methods.light_decoder import DecoderKind, Norm
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.methods.sparse_method import SparseConfig, SparseMethod
from ssl_pretrain.networks.base import Backbone, Family
from ssl_pretrain.networks.tokens import TokenBackbone

SMALLEST_BATCH_FOR_BATCH_NORM = 4

PUBLISHED_WARMUP = 20.0
"""Epochs, of runs of 1000; at most a tenth of a run."""


@dataclass(frozen=True, kw_only=True)
class SparKConfig(SparseConfig):
    """Settings of SparK.

    Attributes:
        mask_ratio: share of the cells that is masked.
        mask_cell: voxels per axis of a cell; None for about 16 per axis, as patch and strides allow.
        stages: encoder stages to pretrain, from the finest; None for all (published with STU-Net: 5 of 6).
        decoder: ``spark`` (published), or ``slim`` with about a third of its multiply-adds.
        decoder_norm: ``batch`` (published) or ``instance``; ``auto`` takes instance below 4 samples per device.
        decoder_width: channels of the decoder at the coarsest map; None for that map's own.
    """

    optimizer: Literal["auto", "adamw", "sgd"] = "adamw"
    schedule: Literal["auto", "cosine", "poly"] = "cosine"
    lr: float | None = 2e-4
    betas: tuple[float, float] | None = (0.9, 0.999)
    weight_decay: float | None = 1e-5
    clip: float | None = 12.0
    mask_ratio: float = 0.6
    mask_cell: Triple | None = None
    stages: int | None = None
    decoder: DecoderKind = "spark"
    decoder_norm: Literal["auto", "batch", "instance"] = "auto"
    decoder_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {self.mask_ratio}.")
        if self.decoder_width is not None and self.decoder_width < 1:
            raise ValueError(f"decoder_width must be at least 1, got {self.decoder_width}.")

    def warmup(self, family: Family, epochs: int) -> float:
        """The published 20 epochs, at most a tenth of the run."""
        short = min(PUBLISHED_WARMUP, epochs / 10)
        return short if self.warmup_epochs is None else super().warmup(family, epochs)


class Hidden(NamedTuple):
    """Which cells a forward pass hides.

    Attributes:
        mask: boolean (B, *grid), True where masked.
        difficulty: (B, *grid) rating that led to the mask, ``-inf`` where nobody rated; None for a random mask.
        hard: boolean (B, *grid), masked for being hard; None for a random mask.
    """

    mask: Tensor
    difficulty: Tensor | None = None
    hard: Tensor | None = None


class SparK(SparseMethod):
    """SparK in 3-D: random masks, one student."""

    Config: ClassVar[type[SparKConfig]] = SparKConfig
    config: SparKConfig
    citations: ClassVar[tuple[str, ...]] = (
        "Tian, K. et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling. "
        "ICLR 2023, arXiv:2301.03580.",
    )

    def __init__(self, config: SparKConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        refuse_tokens(type(self).__name__, setup.backbone)
        encoder, maps = setup.backbone.truncated(config.stages)
        strides = [m.stride for m in maps]
        check_patch(self.patch, setup.backbone.feature_maps[-1].stride)
        self.cell = config.mask_cell or default_cell(self.patch, strides)
        check_cell(self.cell, self.patch, strides)
        if prod(self.cell) * setup.backbone.input_channels < 2:
            raise ValueError(
                f"Mask cell {self.cell} is a single number, which has no variance. Choose a larger -mask_cell."
            )
        self.grid = grid_of(self.patch, self.cell)
        self.masked = count_masked(prod(self.grid), config.mask_ratio)
        self.decoder_norm = _decoder_norm(config, setup)
        self.student = SparKNetwork(
            encoder,
            maps,
            self.cell,
            setup.backbone.input_channels,
            width=config.decoder_width,
            norm=self.decoder_norm,
            kind=config.decoder,
            checkpointing=config.checkpointing,
        )
        freeze_all_but({id(p) for p in self.student.parameters()}, setup.backbone.network)

    def networks(self) -> tuple[SparKNetwork, ...]:
        """Every network that reconstructs images."""
        return (self.student,)

    @property
    def trained(self) -> nn.Module:
        """The student: encoder, densification and decoder."""
        return self.student

    def choose(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """Which cells to hide from the student: a random mask."""
        generators = self.sample_generators(batch, generator)
        return Hidden(sample_masks(generators, self.grid, self.masked, batch["image"].device))

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Reconstruction error of the masked cells, in each cell's normalised space."""
        image, counted = batch["image"], self.counted(batch)
        hidden = self.choose(batch, generator)
        errors = cell_errors(self._reconstruct(self.student, image, hidden.mask), to_cells(image, self.cell), counted)
        return Output(masked_mean(errors, hidden.mask.flatten(1), counted), self.log_values())

    def counted(self, batch: Batch) -> Tensor | None:
        """(B, L, V): 1 for the voxels of each cell that count, 0 for those to be ignored; None where all count."""
        ignored = batch.get("ignored")
        return None if ignored is None else to_cells((~ignored).float().expand_as(batch["image"]), self.cell)

    def log_values(self) -> dict[str, float]:
        """Scalars to show beside the loss."""
        return {"masked_fraction": self.masked / prod(self.grid)}

    def choose_for_picture(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """Which cells to hide in a picture, and the reason where there is one."""
        return self.choose(batch, generator)

    def pictures(self, batch: Batch, generator: torch.Generator) -> Mapping[str, Any]:
        """Input, masked input and reconstruction (back in intensities) of the batch's first crop."""
        first = first_of(batch)
        image = first["image"]
        hidden = self.choose_for_picture(first, generator)
        mean, std = cell_statistics(to_cells(image, self.cell), self.counted(first))
        predicted = self._reconstruct(self.student, image, hidden.mask) * std + mean
        visible = ~repeat_to(hidden.mask, self.patch).unsqueeze(1)
        arrays: dict[str, Tensor | None] = {
            "image": image,
            "masked_input": image * visible,
            "reconstruction": from_cells(predicted, self.cell, self.grid),
            "mask": hidden.mask,
            "difficulty": None if hidden.difficulty is None else _unrated_to_nan(hidden.difficulty),
            "hard": hidden.hard,
        }
        shown = {name: None if a is None else a[0].detach().cpu() for name, a in arrays.items()}
        return {**shown, "cell": self.cell}

    def describe(self) -> str:
        """Mask grid, masked cells and decoder widths as text."""
        cells = prod(self.grid)
        return (
            f"mask: cells of {self.cell} voxels, grid {self.grid}, {self.masked} of {cells} masked "
            f"({self.masked / cells:.1%})\n"
            f"decoder: {len(self.student.decoder.blocks)} blocks, widths {self.student.decoder.widths}, "
            f"{len(self.student.densify)} feature maps densified"
        )

    def _reconstruct(self, network: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        """Predicted cells (B, L, V), float32, in the normalised space."""
        return to_cells(network(image, mask, prod(self.grid) - self.masked).float(), self.cell)


def refuse_tokens(method: str, backbone: Backbone) -> None:
    """Refuse a transformer, in which there is nothing to convolve sparsely.

    Raises:
        ValueError: names the methods that go with it.
    """
    if isinstance(backbone, TokenBackbone):
        raise ValueError(
            f"{method} needs a convolutional network (plans, ResEncM, ResEncL, ResEncXL, STUNet_*, or your own). With "
            "a transformer use -m MAE (Primus), SimMIM, ModelsGenesis or VolumeFusion."
        )


def _decoder_norm(config: SparKConfig, setup: MethodSetup) -> Norm:
    if config.decoder_norm != "auto":
        return config.decoder_norm
    return "batch" if setup.length.batch_size >= SMALLEST_BATCH_FOR_BATCH_NORM else "instance"


def _unrated_to_nan(difficulty: Tensor) -> Tensor:
    return difficulty.masked_fill(difficulty.isinf(), float("nan"))
