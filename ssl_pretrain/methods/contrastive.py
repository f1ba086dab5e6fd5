"""What the methods share that compare embeddings of augmented crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_pretrain.functional.augment import AugmentConfig, apply_augmentation_, draw_augmentation
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods.base import Batch, Exports, Method, MethodSetup, Needs
from ssl_pretrain.methods.heads import PROJECTOR_LAYERS, ProjectedEncoder, ProjectorNorm
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.networks.base import Backbone


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(OptimizerConfig, AugmentConfig):
    """Settings of contrastive methods: those of the optimiser, those of the augmentation of each crop, and

    Attributes:
        crop: voxels of a crop per axis; None leaves it to the method.
        quarter_turns: rotate each crop by a multiple of 90° in the plane of the first two axes, where these are equally
            long.
        projector: channels of the projector's layers.
        projector_norm: between these: ``batch``, over the crops of all processes, or ``layer``, as OpenMind's code has
            it.
        drop_path: rate in the blocks of a transformer while it is pretrained.
    """

    blur_p: float = 0.2
    low_resolution_p: float = 0.1
    crop: Triple | None = None
    quarter_turns: bool = True
    projector: int = 2048
    projector_norm: ProjectorNorm = "batch"
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        AugmentConfig.__post_init__(self)
        if self.projector < 1:
            raise ValueError(f"projector must be at least 1, got {self.projector}.")


class ContrastiveMethod(Method):
    """A method that compares embeddings of crops of a case, each with intensities of its own."""

    config: ContrastiveConfig
    needs: ClassVar[Needs] = (frozenset(),)
    exports: Exports = "encoder"

    def __init__(self, config: ContrastiveConfig, setup: MethodSetup) -> None:
        super().__init__(config, setup)
        if config.crop is not None:
            check_crop(config.crop, setup.backbone, setup.patch)
        widths = [config.projector] * PROJECTOR_LAYERS
        self.network = ProjectedEncoder(setup.backbone, widths, config.projector_norm, self.gather, config.drop_path)

    @property
    def trained(self) -> nn.Module:
        """Encoder and projector."""
        return self.network

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, E)."""
        return normalize(self.network(image)[0], dim=1)

    def augmented(self, batch: Batch, generators: Sequence[np.random.Generator]) -> Tensor:
        """The crops turned and with other intensities, each channel of each crop its own.

        Args:
            batch: whole samples.
            generators: owners of the randomness, one for each sample.
        """
        image, count = batch["image"].clone(), self.sample_views.count
        turns = self.config.quarter_turns and image.shape[2] == image.shape[3]
        for sample, own in enumerate(generators):
            crops = image[sample * count : (sample + 1) * count]
            for crop, turn in zip(crops, own.integers(4, size=count).tolist(), strict=True):
                if turns and turn:
                    crop.copy_(crop.rot90(turn, (1, 2)))
            apply_augmentation_(crops, draw_augmentation(count, image.shape[1], own, self.config))
        return image


def lacks_statistics(crop: Triple, backbone: Backbone) -> bool:
    """Whether the coarsest map of a crop is a single voxel, of which a convolutional network's norms make nothing."""
    return backbone.family == "convolutional" and crop == backbone.feature_maps[-1].stride


def check_crop(crop: Triple, backbone: Backbone, patch: Triple) -> None:
    """Refuse crops of a size that the network cannot take.

    Raises:
        ValueError: names the sizes that it can.
    """
    stride = backbone.feature_maps[-1].stride
    if crop == patch:
        return
    if "tokens" in backbone.offers:
        raise ValueError(
            f"crop {crop}: a transformer sees its whole patch {patch}. Use that as -patch_size, or -set crop=None."
        )
    if lacks_statistics(crop, backbone) or any(size % step for size, step in zip(crop, stride, strict=True)):
        longer = ", and at least one of them twice as long" if backbone.family == "convolutional" else ""
        raise ValueError(
            f"crop {crop}: every axis must be a multiple of the network's total stride {stride}{longer} "
            "(-set crop=D,H,W)."
        )
