"""VoCo: where a crop lies is told from base crops (Wu et al. 2024, arXiv 2402.17300; second version: 2410.09890)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_pretrain.functional.contrast import likeness, located, overlap_loss
from ssl_pretrain.functional.drawing import draw_uniform
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, field_of, mosaic, overlaps
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, Column, MethodSetup, Output
from ssl_pretrain.methods.base_crops import choose_crops
from ssl_pretrain.methods.contrastive import ContrastiveConfig, ContrastiveMethod
from ssl_pretrain.methods.heads import projected
from ssl_pretrain.methods.teacher import Teacher
from ssl_pretrain.networks.base import Family

RECIPE = {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-4, "weight_decay": 1e-2}
PUBLISHED_GRID: Mapping[str, Triple] = {"v1": (1, 4, 4), "v2": (1, 3, 3)}


@dataclass(frozen=True, kw_only=True)
class VoCoConfig(ContrastiveConfig):
    """Settings of VoCo: those of contrastive methods, where a crop is None for up to 64 voxels per axis, and

    Attributes:
        variant: ``v2`` has a teacher, dropout and a comparison with another case; ``v1`` none of these.
        grid: base crops per axis; None for 1,3,3 (``v2``) or 1,4,4 (``v1``), or as many as the cases have room for.
        targets: crops of a sample whose place is to be found.
        dropout: share of the projector's first hidden features that the student of ``v2`` does without.
        teacher_decay: how much of the teacher of ``v2`` is kept in a step.
    """

    defaults: ClassVar[Mapping[Family, Mapping[str, Any]]] = {
        "convolutional": {**RECIPE, "clip": 12.0},
        "transformer": {**RECIPE, "clip": 1.0},
    }

    published: ClassVar[Mapping[str, Any]] = {
        "crop": (64, 64, 64),
        "grid": (1, 3, 3),
        "targets": 2,
        "projector": 1024,
        "rotation_p": 0.0,
        "scale_p": 0.0,
    }

    variant: Literal["v2", "v1"] = "v2"
    grid: Triple | None = None
    targets: int = 4
    dropout: float = 0.2
    teacher_decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is not None and prod(self.grid) < 2:
            raise ValueError(f"grid must have at least two base crops, got {self.grid} (-set grid=D,H,W).")
        if self.targets < 1:
            raise ValueError(f"targets must be at least 1, got {self.targets}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie between 0 and 1 (excluded), got {self.dropout}.")
        if not 0.0 <= self.teacher_decay <= 1.0:
            raise ValueError(f"teacher_decay must lie between 0 and 1, got {self.teacher_decay}.")

    def warmup(self, family: Family, epochs: int) -> float:  # noqa: ARG002 - the same for all
        """OpenMind's for transformers, for every kind of network."""
        return super().warmup("transformer", epochs)


class Embedded(NamedTuple):
    """Unit vectors of the crops of samples: (B, N, E) of the base crops, (B, T, E) of the others."""

    bases: Tensor
    targets: Tensor


class VoCo(ContrastiveMethod):
    """Finding where a crop lies by its likeness to base crops of the case."""

    Config: ClassVar[type[VoCoConfig]] = VoCoConfig
    config: VoCoConfig
    citations: ClassVar[tuple[str, ...]] = (
        "Wu, L. et al. VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image "
        "Analysis. CVPR 2024, arXiv:2402.17300.",
        "Wu, L. et al. Large-Scale 3D Medical Image Pre-training with Geometric Context Priors. 2024, "
        "arXiv:2410.09890.",
    )

    def __init__(self, config: VoCoConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        self.case_shape = setup.case_shape
        self.grid, self.crop = choose_crops(setup, PUBLISHED_GRID[config.variant], config.grid, config.crop)
        self.field = field_of(self.grid, self.crop)
        self.sample_views = Views(count=prod(self.grid) + config.targets, together=True, size=self.crop, grid=self.grid)
        self.teacher = Teacher(self.network.projector) if config.variant == "v2" else None

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Distance of found from true overlaps, likeness of base crops and, in ``v2``, agreement on another case."""
        owners = self.sample_generators(batch, generator)
        seen = self.augmented(batch, owners) if self.training else batch["image"]
        vectors, pooled = self.network(seen, self.kept(owners) if self.training else None)
        own, true = self.by_sample(vectors), self.true_overlaps(batch)
        if self.teacher is None:
            found = located(own.targets, own.bases.detach())
            return Output(overlap_loss(true, found, squared=True) + likeness(own.bases, squared=False), {})
        with torch.no_grad():
            taught = self.by_sample(projected(self.teacher, pooled))
        loss = overlap_loss(true, located(own.targets, taught.bases), squared=False)
        loss = loss + likeness(own.bases, squared=True)
        bases, first = self.gather(own.bases)
        if len(bases) > 1:
            # The sample after each one, over all processes.
            other = torch.arange(first + 1, first + 1 + len(own.bases), device=bases.device) % len(bases)
            expected = located(taught.targets, self.gather(taught.bases)[0][other])
            loss = loss + overlap_loss(expected, located(own.targets, bases[other]), squared=False)
        return Output(loss, {})

    def by_sample(self, vectors: Tensor) -> Embedded:
        """Embeddings of a batch's crops (B·V, E) as unit vectors by sample."""
        whole = normalize(vectors, dim=1).view(-1, self.sample_views.count, vectors.shape[1])
        return Embedded(whole[:, : prod(self.grid)], whole[:, prod(self.grid) :])

    def true_overlaps(self, batch: Batch) -> Tensor:
        """Shares of each target crop that lie in each base crop, (B, T, N)."""
        bases = prod(self.grid)
        shares = overlaps(batch["affine"].view(-1, self.sample_views.count, 3, 4), self.crop)
        return shares[:, bases:, :bases]

    def kept(self, owners: list[np.random.Generator]) -> Tensor | None:
        """Factors (B·V, projector) on the first hidden features of the student; None where it keeps all.

        Not on the pooled features, as published: of networks with instance norm these are much the same for all crops,
        and to drop some would add more than what tells crops apart.
        """
        share = self.config.dropout
        if self.teacher is None or not share:
            return None
        shape = self.sample_views.count, self.config.projector
        drawn = torch.cat([draw_uniform(*shape, generator=own) for own in owners])
        return hand_over((drawn >= share).float() / (1 - share), self.device)

    def teachers(self) -> tuple[tuple[Teacher, nn.Module, float], ...]:
        """The teacher, a projector that follows the student's."""
        return () if self.teacher is None else ((self.teacher, self.network.projector, self.config.teacher_decay),)

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:  # noqa: ARG002
        """The field of base crops, a target crop in it, and how much of it lies in each, truly and as found."""
        count, bases = self.sample_views.count, prod(self.grid)
        image, affine = batch["image"][:count], batch["affine"][:count]
        own = self.by_sample(self.network(image)[0])
        true = self.true_overlaps({**batch, "affine": affine})[0, 0]
        target = torch.cat([torch.full_like(image[:bases], torch.nan), image[bases : bases + 1]])

        def by_cell(values: Tensor) -> Tensor:
            """A value for each base crop as a volume."""
            cells = values.view(-1, 1, 1, 1, 1).expand(-1, 1, *self.crop)
            return mosaic(cells.float(), affine[:bases], self.field)

        def rated(heading: str, values: Tensor) -> Column:
            d, h, w = self.crop
            best = by_cell(torch.arange(bases, device=values.device) == values.argmax())[0, ::d, ::h, ::w] > 0
            return Column(heading, "rating", by_cell(values), outlined=best)

        return (
            Column("base crops", "image", mosaic(image[:bases], affine[:bases], self.field)),
            Column("target crop", "image", mosaic(target, affine[: bases + 1], self.field)),
            rated("true overlap, most outlined", true),
            rated("found overlap, most outlined", located(own.targets, own.bases)[0, 0]),
        )

    def describe(self) -> str:
        """Grid, field and size of the crops as text, and why the grid is not the published one."""
        wanted = self.config.grid or PUBLISHED_GRID[self.config.variant]
        said = f"crops: {self.grid} base crops side by side and {self.config.targets} to find, of {self.crop} voxels"
        cases = f", in cases of {self.case_shape} (median)" if self.case_shape else ""
        fewer = f"; {wanted} do not fit" if self.grid != wanted else ""
        return f"{said}, in a field of {self.field}{cases}{fewer}"
