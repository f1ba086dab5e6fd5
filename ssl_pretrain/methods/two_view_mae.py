"""TwoViewMAE: MAE on two overlapping crops that must agree, first on Primus in the SSL3D challenge of 2025.

After "Consistent View Alignment" (arXiv 2509.13846): a student reconstructs both masked crops; what it predicts of
places in the one must be what a running average of it sees of the same places in the other, whole one; and the crops of
a case must be told from those of other cases. Meant as a short second stage after MAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ssl_pretrain.functional.contrast import nt_xent, partners
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, common_boxes, moved_onto, shared_points
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, Column, MethodSetup, Output, first_of
from ssl_pretrain.methods.mae import MAE, MAEConfig, TokenMAENetwork
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.methods.teacher import Teacher
from ssl_pretrain.methods.two_view_network import TwoViewNetwork


@dataclass(frozen=True, kw_only=True)
class TwoViewMAEConfig(MAEConfig):
    """Settings of TwoViewMAE: those of MAE, and

    Attributes:
        overlap: least share of each axis that the two crops of a sample have in common.
        reconstruction: weight of MAE's loss.
        consistency: weight of the disagreement between places that both crops show.
        contrast: weight of NT-Xent between whole crops; crops of one case are no negatives of each other.
        temperature: of its softmax over cosines.
        points: places per axis of what both crops show.
        teacher: ``ema``: a running average sees the whole crops and gives the targets; ``none``: the student itself
            does, of what it sees, without gradient.
        teacher_decay: how much of the running average is kept in a step.
        projector: channels of the projector's layers.
        predictor: channels between the predictor's two layers; the targets have no predictor.
        projector_norm: between these: ``batch``, over all vectors of all processes, or ``layer``; ``auto`` is batch
            with a convolutional network and layer with a transformer, as published.
    """

    overlap: float = 0.5
    reconstruction: float = 5.0
    consistency: float = 1.0
    contrast: float = 0.1
    temperature: float = 0.5
    points: int = 7
    teacher: Literal["ema", "none"] = "ema"
    teacher_decay: float = 0.995
    projector: int = 2048
    predictor: int = 512
    projector_norm: Literal["auto", "batch", "layer"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.overlap <= 1:
            raise ValueError(f"overlap must be greater than 0 and at most 1, got {self.overlap}.")
        for name in ("reconstruction", "consistency", "contrast"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must not be negative, and finite, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")
        if not 0 <= self.teacher_decay <= 1:
            raise ValueError(f"teacher_decay must lie between 0 and 1, got {self.teacher_decay}.")
        for name in ("points", "projector", "predictor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


class TwoViewMAE(MAE):
    """MAE whose features of two overlapping crops agree where they show the same."""

    Config: ClassVar[type[TwoViewMAEConfig]] = TwoViewMAEConfig
    config: TwoViewMAEConfig
    fewest_cases: ClassVar[int] = 2
    fewest_samples: ClassVar[int] = 2
    citations: ClassVar[tuple[str, ...]] = (
        "Consistent View Alignment Improves Foundation Models for 3D Medical Image Segmentation. 2025, "
        "arXiv:2509.13846.",
        *MAE.citations,
    )

    def __init__(self, config: TwoViewMAEConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        norm = config.projector_norm
        if norm == "auto":
            norm = "layer" if isinstance(self.network, TokenMAENetwork) else "batch"
        self.student = TwoViewNetwork(self.network, config.projector, config.predictor, norm, self.gather)
        self.teacher = Teacher(self.student) if config.teacher == "ema" else None

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003
        """Two crops of one case that overlap."""
        return Views(count=2, together=True, overlap=cast("TwoViewMAEConfig", config).overlap)

    @property
    def trained(self) -> nn.Module:
        """MAE's network, projector and predictor."""
        return self.student

    def teachers(self) -> tuple[tuple[Teacher, nn.Module, float], ...]:
        """The running average, if there is one."""
        return () if self.teacher is None else ((self.teacher, self.student, self.config.teacher_decay),)

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Weighted sum of reconstruction, disagreement of places, and contrast of crops; each is logged by itself."""
        config, image, hidden = self.config, batch["image"], self.choose(batch, generator)
        places = self.places(batch)
        seen = self.student(image, hidden.mask, places)
        local, whole = self.targets(image, hidden.mask, places)
        reconstruction = self.loss_of(self.split(seen.image.float()), batch, hidden)
        consistency = disagreement(seen.local, local).mean()
        own, (everyone, first) = normalize(seen.whole, dim=1), self.gather(normalize(whole, dim=1))
        rows, _ = self.gather(hand_over(torch.tensor(batch["row"]), image.device))
        partner = partners(first, len(own), image.device)
        contrast = nt_xent(own, everyone, first, partner, config.temperature, rows)
        parts = {"reconstruction": reconstruction, "consistency": consistency, "contrast": contrast}
        loss = torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
        return Output(loss, {**self.log_values(hidden), **{name: part.detach() for name, part in parts.items()}})

    def places(self, batch: Batch) -> Tensor:
        """Places that both crops of a sample show, as each crop sees them, (B, *points, 3)."""
        return shared_points(batch["affine"].view(-1, 2, 3, 4), self.patch, self.config.points).flatten(0, 1)

    @torch.no_grad()
    def targets(self, image: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of places and of whole crops to predict: the teacher's of the whole image, or the student's own."""
        if self.teacher is None:
            return self.student.project(self.network.features(image, mask), places)
        network = cast("TwoViewNetwork", self.teacher.eval().module)
        # Its norms take the statistics of the batch, as the student's do: those of the average lag behind.
        for projector in (network.projector, network.whole_projector):
            projector.train(self.training)
        return network.project(network.autoencoder.features(image, None), places)

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E) of whole crops, the teacher's if there is one: the student's norms know masked crops."""
        network = cast("TwoViewNetwork", self.teacher.module) if self.teacher else self.student
        return normalize(network.project_whole(network.autoencoder.features(image, None)), dim=1)

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """MAE's of the first crop, the second one moved to where they overlap, and how much they disagree there."""
        first = first_of(batch, 2)
        hidden, places = self.choose_for_picture(first, generator), self.places(first)
        seen, known = (
            self.student(first["image"], hidden.mask, places),
            self.targets(first["image"], hidden.mask, places),
        )
        values = torch.full_like(first["image"][0, :1], torch.nan)
        box = values[(slice(None), *(slice(a, b) for a, b in common_boxes(first["affine"][None], self.patch)[0, 0, 1]))]
        if box.numel():
            by_place = disagreement(seen.local, known[0])[:1].view(1, 1, *[self.config.points] * 3)
            box.copy_(interpolate(by_place, box.shape[1:])[0])
        moved = moved_onto(first["image"][1], first["affine"])
        return (
            *super().panels(batch, generator),
            Column("second crop, where they overlap", "image", moved),
            Column("disagreement of places", "rating", values),
        )

    def probe(self, image: Tensor) -> None:
        """A forward pass of the student on masked crops, and of the targets."""
        mask = torch.ones(len(image) * self.groups, *self.grid, dtype=torch.bool, device=image.device)
        nowhere = image.new_zeros(len(image), *[self.config.points] * 3, 3)
        self.student(image, mask, nowhere)
        self.targets(image, mask, nowhere)


def disagreement(predicted: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, of each crop's places from what the other crop's target is.

    Args:
        predicted: (B, P, E), crops of a sample one after the other.
        targets: (B, P, E).

    Returns:
        (B, P), between 0 and 4.
    """
    other = targets.view(-1, 2, *targets.shape[1:]).flip(1).flatten(0, 1)
    return 2 - 2 * (normalize(predicted, dim=2) * normalize(other, dim=2)).sum(2)
