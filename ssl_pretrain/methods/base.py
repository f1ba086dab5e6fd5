"""What every pretraining method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.seeding import derive_seed, host_twin
from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods.recipe import OptimizerConfig, build_optimizer, build_schedule, family_of
from ssl_pretrain.methods.teacher import Teacher
from ssl_pretrain.networks.base import Backbone, Need
from ssl_pretrain.networks.registry import NETWORKS, shown_names

TRAIN_STREAM, VALIDATION_STREAM = 1, 2
"""First element of the path from which seeds are derived."""

SAMPLES = 2**31
"""Second element of the path to the seeds of samples: no number of a step, to which those of batches lead."""


Needs = tuple[frozenset[Need], ...]
"""What a method asks of a network: all of one of these sets."""

Exports = Literal["encoder", "network"]


class Batch(TypedDict, total=False):
    """What a loader yields: the crops of its samples, those of one sample one after the other.

    Keys:
        image: (B, C, D, H, W) float32, normalised by nnU-Net.
        case: identifiers of the cases the crops come from.
        row: numbers of the cases among those that are drawn from, known to the host.
        index: numbers of the crops, known to the host: that of the sample times its crops, plus that of the view.
        start: (B, 3) int64, first voxel of each crop in its case, before the transform.
        affine: (B, 3, 4) float32, from a voxel's offset from the crop's centre to voxels of the case; mirroring and
            zoom are in it.
        spacing: (B, 3) float32, mm per voxel of the case.
        modality: (B, C) int64, what each channel shows: numbers of the names in ``CropData.modalities``.
        ignored: (B, 1, D, H, W) boolean, voxels to leave out of the loss; absent where all count.
        seeds: what is random in each sample, a function of its number; absent outside of a run.
    """

    image: Tensor
    case: list[str]
    row: list[int]
    index: list[int]
    start: Tensor
    affine: Tensor
    spacing: Tensor
    modality: Tensor
    ignored: Tensor
    seeds: list[int]


class Output(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: scalar to minimise.
        log: numbers worth showing: those that the host knows, as they are in the last step of an epoch; and scalars on
            the device, without gradient, as their mean over the epoch, so that no step waits for the GPU.
    """

    loss: Tensor
    log: Mapping[str, float | Tensor]


class Column(NamedTuple):
    """One column of a picture: slices through one crop.

    Attributes:
        heading: written above it.
        kind: ``image``: intensities; ``error``: absolute differences; ``classes``: whole numbers from 0; ``rating``:
            any numbers, as colours over the first image. Errors and ratings are NaN where there is none.
        values: (C, D, H, W), or (1, D, H, W) where all channels have the same.
        classes: number of classes, in a column of that kind.
        tinted: boolean (gd, gh, gw), cells under a coloured veil; the crop is a whole number of cells.
        dimmed: boolean (gd, gh, gw), cells that are drawn darker.
        outlined: boolean (gd, gh, gw), cells with a line around them.
    """

    heading: str
    kind: Literal["image", "error", "classes", "rating"]
    values: Tensor
    classes: int = 0
    tinted: Tensor | None = None
    dimmed: Tensor | None = None
    outlined: Tensor | None = None


@dataclass(frozen=True)
class RunLength:
    """How long a run is; methods with a schedule over the run need it.

    Attributes:
        epochs: epochs of the whole run.
        iterations: optimiser steps per epoch.
        batch_size: samples per step and device.
    """

    epochs: int = 1000
    iterations: int = 250
    batch_size: int = 2


@dataclass(frozen=True, kw_only=True)
class MethodSetup:
    """Everything a method is built from besides its own config.

    Attributes:
        backbone: the network.
        patch: voxels of the crops per axis.
        length: how long the run is.
        seed: seed of the run.
        case_shape: voxels per axis of the cases to train on, the median of each axis; None where there are none to
            look at.
    """

    backbone: Backbone
    patch: Triple
    length: RunLength = field(default_factory=RunLength)
    seed: int = 0
    case_shape: Triple | None = None


class Method(LightningModule, ABC):
    """A pretext task around a Backbone.

    A subclass builds its heads in the constructor, and computes a loss in :meth:`forward`. It never reads files and
    never knows nnU-Net. Compulsory are :attr:`Config`,
    :meth:`forward` and :attr:`trained`; the rest has defaults. Tests, documentation, benchmarks,
    help and messages read what is declared here.

    Attributes:
        Config: its settings.
        citations: what to cite.
        needs: what it asks of a network.
        exports: what of the network it trains: the encoder, or the decoder as well.
        masks: whether it hides cells of the image.
        fewest_cases: cases without which the pretext task makes no sense.
        fewest_samples: samples per step, over all devices, without which it makes none.
        sample_views: crops of a sample: :meth:`views`, unless the constructor decides on more than that knows.
    """

    Config: ClassVar[type[OptimizerConfig]]
    citations: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Needs] = (frozenset({"decoder"}),)
    exports: Exports = "network"
    masks: ClassVar[bool] = False
    fewest_cases: ClassVar[int] = 1
    fewest_samples: ClassVar[int] = 1

    def __init__(self, config: OptimizerConfig, setup: MethodSetup) -> None:
        super().__init__()
        if not self.goes_with(setup.backbone.offers):
            raise ValueError(self.refusal(setup.backbone))
        self.config = config
        self.recipe = config.recipe(family_of(setup.backbone), setup.length.epochs)
        self.backbone = setup.backbone
        self.patch = setup.patch
        self.length = setup.length
        self.seed = setup.seed
        self.sample_views = self.views(config, setup.patch)

    @classmethod
    def views(cls, config: OptimizerConfig, patch: Triple) -> Views:  # noqa: ARG003 - for those that depend on them
        """Crops that the loader makes for each sample; one of the network's patch where a method does not say."""
        return Views()

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Loss of a batch.

        What is random in a sample comes from its own generator (:meth:`sample_generators`), so that it does not depend
        on what else is in the batch, nor on how many processes share the work. ``generator`` (on the batch's device)
        is for what a whole batch has in common: in a run it is the same on all processes.
        """

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The module whose parameters the optimiser updates."""

    @classmethod
    def goes_with(cls, offers: frozenset[Need]) -> bool:
        """Whether it can pretrain a network that offers so much."""
        return any(needed <= offers for needed in cls.needs)

    @classmethod
    def refusal(cls, backbone: Backbone) -> str:
        """Why it cannot pretrain a network: what it needs, what there is, and the networks that have it."""
        wanted = ", or ".join(" and ".join(sorted(needed)) for needed in cls.needs)
        networks = [name for name, row in NETWORKS.items() if cls.goes_with(row.offers)]
        return (
            f"{cls.__name__} needs a network with {wanted}; {type(backbone.network).__name__} has "
            f"{' and '.join(sorted(backbone.offers))}. Use -network {shown_names(networks)}."
        )

    @property
    def judged(self) -> nn.Module | None:
        """The module whose answers say whether the network looks at the image; its output may be nested tensors.

        At the end of a run each answer is replaced by the mean of its batch: where that costs nothing, nothing was
        learned. None: the method cannot be judged so.
        """
        return self.trained

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:  # noqa: ARG002
        """Columns of a picture of the first sample of a batch; its crops, where a method has nothing else to show."""
        crops = batch["image"][: self.sample_views.count]
        return tuple(Column(f"crop {number}", "image", crop) for number, crop in enumerate(crops, 1))

    def describe(self) -> str:
        """The pretext task in a few lines of text: mask grid, masked cells, views, widths."""
        views = self.sample_views
        of = "one case" if views.together else "a case of its own each"
        common = f", at least {views.overlap:.0%} of each axis in common" if views.overlap else ""
        return f"views: {views.count} of {of}{common}" if views.count > 1 else "views: 1"

    def probe(self, image: Tensor) -> None:
        """A forward pass like that of a training step, of which ``--dry_run`` measures memory and multiply-adds.

        Args:
            image: (B, C, D, H, W) of a batch, perhaps on the ``meta`` device, where nothing can be drawn.
        """
        self.trained(image)

    def embed(self, image: Tensor) -> Tensor | None:  # noqa: ARG002 - for those that do
        """Embeddings (B, E) that the method compares, of crops (B, C, D, H, W); None where it has none.

        They are watched for collapse, and the nearest neighbours of crops are drawn at the end.
        """
        return None

    def teachers(self) -> Iterable[tuple[Teacher, nn.Module, float]]:
        """Running averages, each with the network that it follows after every step, and its decay then."""
        return ()

    @staticmethod
    def gather(x: Tensor) -> tuple[Tensor, int]:
        """Rows of all processes, with gradient: (N, …) -> (W·N, …), and the place where those of this one begin.

        Nothing of the method is in it: a layer that holds it can be copied without the method.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return x, 0
        everyone = cast("tuple[Tensor, ...]", all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
        return torch.cat(everyone), distributed.get_rank() * len(x)

    def multiply_adds(self) -> dict[str, int]:
        """Multiply-adds of the forward pass of one batch by part of the method; empty where nobody counted."""
        return {}

    def generator_for(self, *path: int) -> torch.Generator:
        """A generator on the module's device whose seed is a pure function of the run's seed and ``path``."""
        generator = torch.Generator(self.device)
        generator.manual_seed(derive_seed(self.seed, *path))
        return generator

    def sample_generators(self, batch: Batch, generator: torch.Generator) -> list[np.random.Generator]:
        """Owners of the randomness of each sample, on the host: of its seed, else derived from ``generator``."""
        count = len(batch["image"]) // self.sample_views.count
        seeds = batch.get("seeds") or host_twin(generator).integers(2**62, size=count).tolist()
        return [np.random.default_rng(seed) for seed in seeds]

    def seeded(self, batch: Batch, *path: int) -> Batch:
        """The batch with a seed for each sample: a function of the run's seed, ``path`` and the sample's number."""
        numbers = batch["index"][:: self.sample_views.count]
        return {**batch, "seeds": [derive_seed(self.seed, *path, SAMPLES, int(number)) for number in numbers]}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One batch: the loss, and what to show of it, for Lightning."""
        accumulate = self.config.accumulate
        number = self.global_step * accumulate + batch_idx % accumulate
        output = self(self.seeded(batch, TRAIN_STREAM), self.generator_for(TRAIN_STREAM, number))
        return {"loss": output.loss, "log": output.log}

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a validation batch; what is random in it is the same in every epoch."""
        generator = self.generator_for(VALIDATION_STREAM, batch_idx)
        output: Output = self(self.seeded(batch, VALIDATION_STREAM), generator)
        return output.loss

    def update_teachers(self) -> None:
        """Called after every optimiser step."""
        for teacher, network, decay in self.teachers():
            teacher.follow(network, decay)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's step, then the teachers': a checkpoint taken after a batch holds both."""
        super().optimizer_step(*args, **kwargs)
        self.update_teachers()

    def configure_optimizers(self) -> Any:
        """The optimiser of the recipe, and its schedule per step."""
        # The fused kernel is several times faster on the CPU. It can unscale gradients itself, so Lightning does
        # not clip them in mixed precision.
        mixed = self._trainer is not None and self.trainer.precision != "32-true"
        fused = self.device.type == "cpu" and not mixed
        optimizer = build_optimizer(self.recipe, self.trained.parameters(), fused=fused)
        schedule = build_schedule(self.recipe, optimizer, self.length.epochs, self.length.iterations)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def first_of(batch: Batch, crops: int = 1) -> Batch:
    """What concerns a method of the batch's first sample alone.

    Args:
        batch: whole samples.
        crops: of a sample.
    """
    first: Batch = {"image": batch["image"][:crops]}
    if "ignored" in batch:
        first["ignored"] = batch["ignored"][:crops]
    if "affine" in batch:
        first["affine"] = batch["affine"][:crops]
    if "seeds" in batch:
        first["seeds"] = batch["seeds"][:1]
    return first


def one_per_channel(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B·C, 1, D, H, W): every channel as a sample of its own."""
    return volume.flatten(0, 1).unsqueeze(1)
