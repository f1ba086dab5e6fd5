"""The pretraining of Swin UNETR: rotation, contrast and reconstruction at once (Tang et al. 2022, arXiv 2111.14791).

For any network: two views of a crop are rotated in the last two axes and cut out. The network says by how much each was
rotated, finds the other view among all, and restores what was cut out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_pretrain.functional.contrast import nt_xent, partners
from ssl_pretrain.functional.cutout import draw_boxes, fill_, noise_like
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views
from ssl_pretrain.functional.windows import hand_over
from ssl_pretrain.methods.base import Batch, Column, Method, MethodSetup, Needs, Output, first_of
from ssl_pretrain.methods.heads import TURNS, Answers, PretrainingHeads
from ssl_pretrain.methods.recipe import OptimizerConfig

VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class SwinUNETRPretrainingConfig(OptimizerConfig):
    """Settings of SwinUNETRPretraining: those of the optimiser, and

    Attributes:
        rotation_weight: of the cross-entropy of the rotation.
        contrast_weight: of NT-Xent.
        reconstruction_weight: of the mean absolute error of all voxels.
        temperature: of the softmax over cosines.
        embedding: channels of the embeddings that are compared.
        cutout: greatest share of a view's voxels that becomes noise of the range of its crop; of another such share
            comes what the other crop has there. Each share is drawn between 0 and this.
        cutout_sides: shortest and longest side of a box, as shares of the axis.
        other_p: probability of the second cut-out, with the content of the other crop.
        decoder: that reconstructs: ``own``, the network's; ``light``, the published one, on the bottleneck alone;
            ``auto``: own where there is one.
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    published: ClassVar[Mapping[str, Any]] = {"rotation_p": 0.0, "scale_p": 0.0, "mirror_p": 0.0, "decoder": "light"}

    rotation_weight: float = 1.0
    contrast_weight: float = 1.0
    reconstruction_weight: float = 1.0
    temperature: float = 0.5
    embedding: int = 512
    cutout: float = 0.3
    cutout_sides: tuple[float, float] = (0.05, 0.25)
    other_p: float = 0.5
    decoder: Literal["auto", "own", "light"] = "auto"
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rotation_weight", "contrast_weight", "reconstruction_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, and finite, got {getattr(self, name)}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}.")
        if self.embedding < 1:
            raise ValueError(f"embedding must be at least 1, got {self.embedding}.")
        for name in ("cutout", "other_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        low, high = self.cutout_sides
        if not 0 < low <= high <= 1:
            raise ValueError(f"cutout_sides must be two numbers, 0 < shortest <= longest <= 1, got {low} and {high}.")


class Drawn(NamedTuple):
    """Views of crops.

    Attributes:
        views: (2B, C, D, H, W), rotated and cut out; the two of a crop come one after the other.
        target: (2B, C, D, H, W), rotated alone.
        turns: (2B,) int64, rotations in multiples of 90° from the second last axis to the last.
        counted: (2B, 1, D, H, W) boolean, voxels to reconstruct; None where all are.
    """

    views: Tensor
    target: Tensor
    turns: Tensor
    counted: Tensor | None


class SwinUNETRPretraining(Method):
    """Rotation, contrast and reconstruction of cut-out views of a crop."""

    Config: ClassVar[type[SwinUNETRPretrainingConfig]] = SwinUNETRPretrainingConfig
    config: SwinUNETRPretrainingConfig
    needs: ClassVar[Needs] = (frozenset(),)
    square: ClassVar[bool] = True
    fewest_cases: ClassVar[int] = 2
    citations: ClassVar[tuple[str, ...]] = (
        "Tang, Y. et al. Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis. CVPR 2022, "
        "arXiv:2111.14791.",
        "Wald, T. et al. An OpenMind for 3D medical vision self-supervised learning. ICCV 2025, arXiv:2412.17041.",
    )

    def __init__(self, config: SwinUNETRPretrainingConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        own = setup.backbone.has_decoder if config.decoder == "auto" else config.decoder == "own"
        self.exports = "network" if own else "encoder"
        self.network = PretrainingHeads(setup.backbone, config.embedding, config.drop_path, self.gather, own=own)

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003
        """Two crops, each of a case of its own: each gives content to the other's cut-out."""
        return Views(count=2)

    @property
    def trained(self) -> nn.Module:
        """Encoder, heads and the decoder that reconstructs."""
        return self.network

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """The three losses, weighted; each is logged by itself."""
        drawn, config = self.draw(batch, generator), self.config
        said: Answers = self.network(drawn.views)
        rotation = F.cross_entropy(said.rotation.float(), drawn.turns)
        errors = (said.reconstruction.float() - drawn.target).abs()
        weight = torch.ones_like(errors) if drawn.counted is None else drawn.counted.expand_as(errors).float()
        reconstruction = (errors * weight).sum() / weight.sum().clamp_min(1.0)
        own = F.normalize(said.embedding, dim=1)
        everyone, first = self.gather(own)
        contrast = nt_xent(own, everyone, first, partners(first, len(own), own.device), config.temperature)
        loss = config.rotation_weight * rotation + config.contrast_weight * contrast
        loss = loss + config.reconstruction_weight * reconstruction
        right = (said.rotation.argmax(1) == drawn.turns).float().mean()
        log = {"rotation": rotation, "contrast": contrast, "reconstruction": reconstruction, "rotation_right": right}
        return Output(loss, {name: value.detach() for name, value in log.items()})

    def draw(self, batch: Batch, generator: torch.Generator) -> Drawn:
        """Two views of each crop, by the generator of its sample."""
        image, ignored, config = unmirrored(batch["image"], batch), batch.get("ignored"), self.config
        ignored = None if ignored is None else unmirrored(ignored, batch)
        count = self.sample_views.count
        views, targets, turns, counted = [], [], [], []
        for sample, own in enumerate(self.sample_generators(batch, generator)):
            for crop in range(count):
                here, other = image[sample * count + crop], image[sample * count + (crop + 1) % count]
                for turn in own.integers(TURNS, size=VIEWS).tolist():
                    target = here.rot90(turn, (-2, -1))
                    view = target.clone()
                    for filler, happens in ((noise_like(here, int(own.integers(2**62))), 1.0), (other, config.other_p)):
                        share = config.cutout * own.random() * (own.random() < happens)
                        fill_(view, draw_boxes(self.patch, share, config.cutout_sides, own), filler)
                    views.append(view)
                    targets.append(target)
                    turns.append(turn)
                    if ignored is not None:
                        counted.append(~ignored[sample * count + crop].rot90(turn, (-2, -1)))
        numbers = hand_over(torch.tensor(turns), image.device)
        return Drawn(torch.stack(views), torch.stack(targets), numbers, torch.stack(counted) if counted else None)

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E)."""
        said: Answers = self.network(image)
        return F.normalize(said.embedding.float(), dim=1)

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """The first crop, its first view, what the network makes of it, the error, and the second view."""
        drawn = self.draw(first_of(batch, self.sample_views.count), generator)
        said: Answers = self.network(drawn.views[:VIEWS])
        pairs = zip(drawn.turns[:VIEWS].tolist(), said.rotation.argmax(1).tolist(), strict=True)
        first, second = (f"{90 * turn}°, predicted {90 * guess}°" for turn, guess in pairs)
        made = said.reconstruction[0].float()
        return (
            Column("crop", "image", unmirrored(batch["image"], batch)[0]),
            Column(f"view at {first}", "image", drawn.views[0]),
            Column("reconstruction", "image", made),
            Column("absolute error", "error", (made - drawn.target[0]).abs()),
            Column(f"view at {second}", "image", drawn.views[1]),
        )

    def probe(self, image: Tensor) -> None:
        """A forward pass of two views of each crop."""
        self.network(torch.cat([image, image]))


def unmirrored(volume: Tensor, batch: Batch) -> Tensor:
    """Crops (B, C, D, H, W) as they were before the loader mirrored H or W: both at once would be a turn by 180°."""
    for axis in (1, 2) if "affine" in batch else ():
        # Which ones is not asked: that would wait for the GPU.
        mirrored = (batch["affine"][:, axis, axis] < 0).view(-1, 1, 1, 1, 1)
        volume = torch.where(mirrored, volume.flip(axis + 2), volume)
    return volume
