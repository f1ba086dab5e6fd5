"""What the methods share that hide cells of an image and predict them: masks, errors of masked cells, pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, check_cell, default_cell, grid_of
from ssl_pretrain.functional.losses import cell_errors, cell_statistics, masked_mean, squared_errors
from ssl_pretrain.functional.masking import Cells, count_masked, repeat_to, sample_masks
from ssl_pretrain.functional.patches import from_cells, to_cells
from ssl_pretrain.methods.base import Batch, Column, Method, Output, first_of, one_per_channel
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.swin import SwinBackbone
from ssl_pretrain.networks.tokens import TokenBackbone

FINEST: tuple[Triple, ...] = ((1, 1, 1),)
"""A mask that is applied to the image alone need not fit any feature map."""


class Hidden(NamedTuple):
    """Cells that a forward pass hides.

    Attributes:
        mask: boolean (B·G, *grid), True where masked; G as in :class:`MaskedMethod`.
        masked: masked cells of each row of the mask, known to the host.
        difficulty: (B, *grid) rating that led to the mask, ``-inf`` where nobody rated; None for a random mask.
        hard: boolean (B, *grid), masked for being hard; None for a random mask.
        decoded: masked cells that are predicted and that the loss looks at; None for all of them.
    """

    mask: Tensor
    masked: int
    difficulty: Tensor | None = None
    hard: Tensor | None = None
    decoded: Cells | None = None


class MaskedMethod(Method):
    """A method that hides cells of each crop and predicts their voxels.

    A subclass calls :meth:`set_cells` in its constructor and says in :meth:`predict` what its network makes of a masked
    image.

    Attributes:
        cell: voxels of a cell per axis.
        grid: cells per axis.
        masked: masked cells of a sample; where that changes from batch to batch, the fewest.
        drawn: how many of the masked cells a training step predicts; None where it predicts all.
        groups: masks of a sample, G: 1, or one for each channel.
        errors: error of each cell: predictions, voxels of the image, and which of them count -> (B·G, L).
    """

    masks: ClassVar[bool] = True
    drawn: int | None = None
    groups: int = 1
    errors: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(squared_errors)

    def set_cells(self, cell: Triple, mask_ratio: float) -> None:
        """Decide on cells, their grid on the patch, and how many are masked."""
        self.cell, self.grid = cell, grid_of(self.patch, cell)
        self.masked = count_masked(prod(self.grid), mask_ratio)

    @abstractmethod
    def predict(self, image: Tensor, hidden: Hidden) -> Tensor:
        """What the network makes of the visible cells of an image (B, C, D, H, W): all cells, (B·G, L, V), float32."""

    def draw_count(self, generator: torch.Generator) -> int:  # noqa: ARG002 - for those that draw it
        """Masked cells of every sample of a batch."""
        return self.masked

    def choose(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """Cells to hide from the network: random ones."""
        count = self.draw_count(generator)
        generators = self.sample_generators(batch, generator)
        each = self.groups * self.sample_views.count
        return Hidden(sample_masks(generators, self.grid, count, batch["image"].device, each), count)

    def choose_for_picture(self, batch: Batch, generator: torch.Generator) -> Hidden:
        """Cells to hide in a picture, and the reason where there is one."""
        return self.choose(batch, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Mean error of the masked voxels that count."""
        hidden = self.choose(batch, generator)
        return Output(self.loss_of(self.predict(batch["image"], hidden), batch, hidden), self.log_values(hidden))

    def loss_of(self, predicted: Tensor, batch: Batch, hidden: Hidden) -> Tensor:
        """Mean error of the masked voxels that count, of predicted cells (B·G, L, V)."""
        counted = self.counted(batch)
        errors = self.errors(predicted, self.split(batch["image"]), counted)
        asked = hidden.mask if hidden.decoded is None else hidden.decoded.chosen
        return masked_mean(errors, asked.flatten(1), counted)

    def log_values(self, hidden: Hidden) -> dict[str, float]:
        """Scalars to show beside the loss."""
        return {"masked_fraction": hidden.masked / prod(self.grid)}

    def split(self, volume: Tensor) -> Tensor:
        """Cells of a volume that have a place in the mask: (B, C, D, H, W) -> (B·G, L, V)."""
        return to_cells(one_per_channel(volume) if self.groups > 1 else volume, self.cell)

    def counted(self, batch: Batch) -> Tensor | None:
        """Voxels of each cell: 1 for those that count, 0 for those to be ignored; None where all count."""
        ignored = batch.get("ignored")
        return None if ignored is None else self.split((~ignored).float().expand_as(batch["image"]))

    def panels(self, batch: Batch, generator: torch.Generator) -> tuple[Column, ...]:
        """The first crop, its masked copy, its reconstruction in intensities, and the error; with masks for each
        channel, of the first channel.
        """
        first = first_of(batch, self.sample_views.count)
        image, hidden = first["image"], self.choose_for_picture(first, generator)
        predicted = self.predict(image, hidden)
        if self.errors is cell_errors:
            mean, std = cell_statistics(self.split(image), self.counted(first))
            predicted = predicted * std + mean
        reconstruction = from_cells(predicted, self.cell, self.grid)[0]
        shown, mask = image[0, : len(reconstruction)], hidden.mask[0]
        masked = repeat_to(hidden.mask[:1], self.patch)
        columns = (
            Column("input", "image", shown),
            Column("masked input", "image", shown.masked_fill(masked, 0.0), tinted=mask),
            Column("reconstruction", "image", torch.where(masked, reconstruction, shown), dimmed=~mask),
            Column("absolute error", "error", (reconstruction - shown).abs().masked_fill(~masked, torch.nan)),
        )
        if hidden.difficulty is None or hidden.hard is None:
            return columns
        rated = hidden.difficulty.masked_fill(hidden.difficulty.isinf(), torch.nan)
        rating = repeat_to(rated[:1], self.patch)
        return (*columns, Column("difficulty, hard cells outlined", "rating", rating, outlined=hidden.hard[0]))

    def describe(self) -> str:
        """Mask grid and masked cells as text."""
        cells = prod(self.grid)
        return (
            f"mask: cells of {self.cell} voxels, grid {self.grid}, {self.masked} of {cells} masked "
            f"({self.masked / cells:.1%})"
        )

    def probe(self, image: Tensor) -> None:
        """A forward pass with all of the mask's work, whatever the mask is."""
        mask = torch.ones(len(image) * self.groups, *self.grid, dtype=torch.bool, device=image.device)
        decoded = None if self.drawn is None else Cells(mask, self.drawn)
        self.predict(image, Hidden(mask, self.masked, decoded=decoded))


def check_ratio(ratio: float | None) -> None:
    """Refuse a share of masked cells that leaves nothing to see or to predict; None is left open.

    Raises:
        ValueError: names it.
    """
    if ratio is not None and not 0.0 < ratio < 1.0:
        raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {ratio}.")


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """Set masked cells to 0: image (B, C, D, H, W), mask (B·G, *grid) with G masks for each image, 1 or C."""
    voxels = repeat_to(mask, (image.shape[2], image.shape[3], image.shape[4]))
    return image.masked_fill(voxels.view(len(image), -1, *image.shape[2:]), 0.0)


def cell_of(wanted: Triple | None, patch: Triple, backbone: Backbone) -> Triple:
    """The mask cell of a method that masks the image: a token of a transformer, else about 16 voxels per axis.

    In a Swin UNETR a cell is of whole tokens: what is masked in a token would hide what is not.

    Raises:
        ValueError: it does not divide the patch, or is no token.
    """
    if isinstance(backbone, TokenBackbone):
        if wanted is not None and wanted != backbone.token:
            raise ValueError(f"mask_cell {wanted}: in this network a cell is a token of {backbone.token} voxels.")
        return backbone.token
    # Any cell that divides the patch will do, as the mask is applied to the image alone; the default is SparK's.
    cell = wanted or default_cell(patch, [m.stride for m in backbone.feature_maps])
    check_cell(cell, patch, [backbone.token] if isinstance(backbone, SwinBackbone) else FINEST)
    return cell
