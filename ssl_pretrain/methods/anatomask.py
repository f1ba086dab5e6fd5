"""AnatoMask: reconstruction-guided masking (Li et al. 2024, arXiv 2407.06468).

A teacher, the running average of the student, reconstructs the image under a random mask. The cells it finds hardest
are masked for certain in the student's input, more of them as training goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssl_pretrain.functional.losses import Difficulty, cell_difficulty
from ssl_pretrain.functional.masking import count_hard, guided_mask, repeat_to, sample_masks
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.functional.schedules import ema_decay
from ssl_pretrain.methods.base import Batch, MethodSetup, Output
from ssl_pretrain.methods.cost import count_multiply_adds
from ssl_pretrain.methods.masking import Hidden
from ssl_pretrain.methods.spark import SparK, SparKConfig
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.methods.teacher import Teacher

COARSE_WEIGHT = 0.1
"""Of the coarse image's loss beside that of the fine one."""


@dataclass(frozen=True, kw_only=True)
class AnatoMaskConfig(SparKConfig):
    """Settings of AnatoMask.

    Attributes:
        difficulty: what "hard" means: ``intensity`` (error after undoing the cell's normalisation), ``normalized`` (the
            training loss itself) or ``reference`` (what the published code computes).
        teacher: what the teacher reconstructs: the image at ``full`` resolution (published), or a ``coarse`` one, which
            the decoder's finest blocks are not needed for. ``auto`` is coarse where that ranks cells as the full one
            does, with ``difficulty=intensity``.
        teacher_masks: random masks over which the teacher's difficulty is averaged.
        hard_share: share of the masked cells that are hard ones at the end of the run.
        ema_start: decay of the teacher at the start.
        ema_end: decay of the teacher from a quarter of the run on.
    """

    published: ClassVar[Mapping[str, Any]] = {**SparKConfig.published, "difficulty": "reference", "teacher": "full"}
    older: ClassVar[Mapping[str, Any]] = {"teacher": "full"}

    lr: float | None = 1e-4
    difficulty: Difficulty = "intensity"
    teacher: Literal["auto", "full", "coarse"] = "auto"
    teacher_masks: int = 1
    hard_share: float = 0.5
    ema_start: float = 0.999
    ema_end: float = 0.9999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_masks < 1:
            raise ValueError(f"teacher_masks must be at least 1, got {self.teacher_masks}.")
        for name in ("hard_share", "ema_start", "ema_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")

    @property
    def has_coarse_teacher(self) -> bool:
        """Whether the teacher reconstructs a coarse image; one that ranks as the full one does, by default."""
        return self.teacher == "coarse" or (self.teacher == "auto" and self.difficulty == "intensity")


class AnatoMask(SparK):
    """SparK with masks that hide what a teacher finds hardest."""

    Config: ClassVar[type[AnatoMaskConfig]] = AnatoMaskConfig
    config: AnatoMaskConfig
    citations: ClassVar[tuple[str, ...]] = (
        "Li, Y. et al. AnatoMask: Enhancing Medical Image Segmentation with Reconstruction-guided Self-masking. "
        "ECCV 2024, arXiv:2407.06468.",
        *SparK.citations,
    )

    def __init__(self, config: AnatoMaskConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup, coarse=config.has_coarse_teacher)
        self.teacher = Teacher(self.student)
        self.networks()[1].cut()

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """As SparK's. In training the head of the coarse image, if the teacher has one, learns beside the fine one's.

        The loss has the value of the fine image's alone.
        """
        if self.student.decoder.coarse is None or not self.training:
            return super().forward(batch, generator)
        hidden = self.choose(batch, generator)
        both = self.student.both(batch["image"], hidden.mask, prod(self.grid) - hidden.masked, hidden.decoded)
        # The coarse image is whole, so that its head learns from all masked cells.
        asked = (hidden, hidden._replace(decoded=None))
        fine, coarse = (
            self.loss_of(self.cells_of(cast("Tensor", image)), batch, cells)
            for image, cells in zip(both, asked, strict=True)
        )
        return Output(fine + COARSE_WEIGHT * (coarse - coarse.detach()), self.log_values(hidden))

    def cells_of(self, reconstruction: Tensor) -> Tensor:
        """Cells (B, L, V), float32; each voxel of a coarse image stands for all that it covers.

        A coarse image's error is that against the means of the true one over what its voxels cover, plus what the true
        one varies there: the first is all that it can learn, the second is known without a network.
        """
        whole = repeat_to(reconstruction.flatten(0, 1), self.patch)
        return super().cells_of(whole.view(*reconstruction.shape[:2], *self.patch))

    def hard_cells(self) -> int:
        """How many masked cells of a sample are chosen for their difficulty in the current epoch."""
        return count_hard(self.masked, self.current_epoch, self.length.epochs, self.config.hard_share)

    def choose(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """Which cells to hide from the student: a mask guided by the teacher.

        In validation the mask is random, so that the loss of different epochs is comparable.
        """
        if not self.training:
            return super().choose(batch, generator)
        return self.thinned(self.choose_guided(batch, generator), batch, generator)

    def choose_guided(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """The hardest cells of the teacher for certain, the rest at random: mask and its reason."""
        generators = self.sample_generators(batch, generator)
        difficulty = self.rate(batch, generators)
        mask, hard = guided_mask(difficulty, self.masked, self.hard_cells(), generators)
        return Hidden(mask, self.masked, difficulty, hard)

    def multiply_adds(self) -> dict[str, int]:
        """As SparK's, and the teacher's forward pass over all of its masks."""
        batch = self.config.teacher_masks * self.length.batch_size
        teacher = count_multiply_adds(self.networks()[1], self.config.sparse, batch, self.patch, self.masked)
        del teacher["encoder, all voxels"]
        return {**super().multiply_adds(), "teacher": sum(teacher.values())}

    def networks(self) -> tuple[SparKNetwork, ...]:
        """Student and teacher."""
        return (self.student, cast("SparKNetwork", self.teacher.module))

    def rate(self, batch: Batch, generators: Sequence[np.random.Generator]) -> Tensor:
        """The teacher's difficulty of every cell it had to reconstruct.

        Args:
            batch: images, and which of their voxels do not count.
            generators: owners of the random masks, one for each sample.

        Returns:
            (B, *grid); ``-inf`` for cells that no random mask hid, or that have no voxel that counts.
        """
        self.teacher.eval()
        with torch.inference_mode():
            difficulty = self._rate(batch, generators)
        # Outside: what inference mode makes cannot take part in the student's pass.
        return difficulty.clone().view(-1, *self.grid)

    def _rate(self, batch: Batch, generators: Sequence[np.random.Generator]) -> Tensor:
        """(B, L); all masks of all samples are one batch."""
        masks, image, counted = self.config.teacher_masks, batch["image"], self.counted(batch)
        images = image.repeat(masks, 1, 1, 1, 1)
        # Those of a sample come one after the other; of the images, those of a mask do.
        mask = sample_masks(generators, self.grid, self.masked, image.device, masks)
        mask = mask.view(-1, masks, *self.grid).transpose(0, 1).flatten(0, 1)
        predicted = self.cells_by(self.teacher, images, Hidden(mask, self.masked))
        hidden = mask.flatten(1)
        if counted is not None:
            counted = counted.repeat(masks, 1, 1)
            hidden = hidden & counted.any(dim=2)
        found = cell_difficulty(predicted, to_cells(images, self.cell), self.config.difficulty, counted) * hidden
        total, rated = (t.view(masks, image.shape[0], -1).sum(0) for t in (found, hidden))
        return torch.where(rated > 0, total / rated.clamp_min(1), -torch.inf)

    def teachers(self) -> tuple[tuple[Teacher, nn.Module, float], ...]:
        """The teacher, which follows the student."""
        decay = ema_decay(self.current_epoch, self.length.epochs, self.config.ema_start, self.config.ema_end)
        return ((self.teacher, self.student, decay),)

    def log_values(self, hidden: Hidden) -> dict[str, float]:
        """As SparK's, with the share of the masked cells that were chosen for being hard."""
        return {**super().log_values(hidden), "hard_fraction": self.hard_cells() / self.masked}

    def choose_for_picture(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """A guided mask also outside training, so that a picture shows the difficulty."""
        return self.choose_guided(batch, generator)
