"""TwoViewMAE: MAE on two overlapping crops that must agree, as won both tracks of the SSL3D challenge of 2025.

After "Consistent View Alignment" (arXiv 2509.13846): a student reconstructs both masked crops; what it predicts of
places in the one must be what a running average of it sees of the same places in the other, whole one; and the crops of
a case must be told from those of other cases. Meant as a short second stage after MAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize

from ssl_pretrain.functional.contrast import full_precision, nt_xent
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, shared_points
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, MethodSetup, Output
from ssl_pretrain.methods.heads import Gather, build_projector, pooled_width
from ssl_pretrain.methods.mae import MAE, MAEConfig, MaskedDenseNetwork, TokenMAENetwork
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.methods.teacher import Teacher

PROJECTOR_LAYERS = 3


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
        ema: decay of the running average.
        projector: channels of the projector's layers.
        predictor: channels between the predictor's two layers; the targets have no predictor.
        projector_norm: between these: ``batch``, over all vectors of all processes, or ``layer``; ``auto`` is batch
            with a convolutional network and layer with a transformer, as published.
    """

    published: ClassVar[Mapping[str, Any]] = {"rotation_p": 0.0, "scale_p": 0.0}

    overlap: float = 0.5
    reconstruction: float = 5.0
    consistency: float = 1.0
    contrast: float = 0.1
    temperature: float = 0.5
    points: int = 7
    teacher: Literal["ema", "none"] = "ema"
    ema: float = 0.995
    projector: int = 2048
    predictor: int = 512
    projector_norm: Literal["auto", "batch", "layer"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reconstruction", "consistency", "contrast"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")
        if not 0 <= self.ema <= 1:
            raise ValueError(f"ema must lie between 0 and 1, got {self.ema}.")
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
        self.student = TwoViewNetwork(self.network, config, self.gather)
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
        return () if self.teacher is None else ((self.teacher, self.student, self.config.ema),)

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Weighted sum of reconstruction, disagreement of places, and contrast of crops."""
        config, image, hidden = self.config, batch["image"], self.choose(batch, generator)
        places = shared_points(batch["affine"].view(-1, 2, 3, 4), self.patch, config.points).flatten(0, 1)
        seen = self.student(image, hidden.mask, places)
        with torch.no_grad():
            mask = None if self.teacher else hidden.mask
            sight = self.teacher.eval().module if self.teacher else self.student
            local, whole = cast("TwoViewNetwork", sight).project(image, mask, places)
        reconstruction = self.loss_of(self.split(seen.image.float()), batch, hidden)
        # Crop 2k and crop 2k + 1 are of one sample: each is to be what the other one's target is.
        other = local.view(-1, 2, *local.shape[1:]).flip(1).flatten(0, 1)
        consistency = 2 - 2 * (normalize(seen.local, dim=2) * normalize(other, dim=2)).sum(2).mean()
        own, (everyone, first) = normalize(seen.whole, dim=1), self.gather(normalize(whole, dim=1))
        rows, _ = self.gather(hand_over(torch.tensor(batch["row"]), image.device))
        partner = torch.arange(first, first + len(own), device=image.device) ^ 1
        contrast = nt_xent(own, everyone, first, partner, config.temperature, rows)
        weighted = config.reconstruction * reconstruction + config.consistency * consistency
        return Output(weighted + config.contrast * contrast, self.log_values(hidden))

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E) of whole crops."""
        nowhere = image.new_zeros(len(image), 1, 1, 1, 3)
        return normalize(self.student.project(image, None, nowhere)[1], dim=1)


class Seen(NamedTuple):
    """What a student makes of masked crops.

    Attributes:
        image: (B, C, D, H, W), reconstructed.
        local: (B, P, E), predicted of places.
        whole: (B, E), predicted of the whole crop.
    """

    image: Tensor
    local: Tensor
    whole: Tensor


class TwoViewNetwork(nn.Module):
    """MAE's network, with a projector and a predictor on the features of places and of whole crops.

    Features of a convolutional network are those of all its encoder's maps; of a transformer, its filled-in tokens.

    Args:
        autoencoder: MAE's network.
        config: of the method.
        gather: see :class:`~ssl_pretrain.methods.heads.GatheredBatchNorm`.
    """

    def __init__(
        self, autoencoder: MaskedDenseNetwork | TokenMAENetwork, config: TwoViewMAEConfig, gather: Gather
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        norm: Any = config.projector_norm
        if norm == "auto":
            norm = "layer" if isinstance(autoencoder, TokenMAENetwork) else "batch"
        width = config.projector
        self.projector = build_projector(
            [pooled_width(autoencoder.backbone), *[width] * PROJECTOR_LAYERS], norm, gather
        )
        self.predictor = build_projector([width, config.predictor, width], norm, gather)

    def forward(self, image: Tensor, mask: Tensor, places: Tensor) -> Seen:
        """What the student predicts.

        Args:
            image: (B, C, D, H, W).
            mask: (B, *grid), True where masked.
            places: (B, d, h, w, 3), as :func:`~ssl_pretrain.functional.views.shared_points` gives them.
        """
        maps = self.autoencoder.features(image, mask)
        with full_precision(image.device):
            local, whole = (self.predictor(vectors) for vectors in self.vectors(maps, places))
        return Seen(self.autoencoder.reconstruct(maps), local.view(len(image), -1, local.shape[1]), whole)

    def project(self, image: Tensor, mask: Tensor | None, places: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of places (B, P, E) and of whole crops (B, E); arguments as in :meth:`forward`, or no mask."""
        local, whole = self.vectors(self.autoencoder.features(image, mask), places)
        return local.view(len(image), -1, local.shape[1]), whole

    def vectors(self, maps: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """Projected features of places (B·P, E) and of whole crops (B, E), float32 under any precision."""
        with full_precision(places.device):
            at = [grid_sample(m.float(), places, padding_mode="border", align_corners=False) for m in maps]
            whole = torch.cat([m.float().mean((2, 3, 4)) for m in maps], 1)
            return self.projector(torch.cat(at, 1).movedim(1, -1).flatten(0, -2)), self.projector(whole)
