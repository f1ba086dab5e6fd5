"""A network that sees visible cells only: what SparK, AnatoMask and S3D train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import Cells
from ssl_pretrain.networks.backends import packable_stages
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import SparseMap, encode_masked
from ssl_pretrain.sparse import SparseMask, convert


class MaskedNetwork(nn.Module, ABC):
    """An encoder with sparse layers, and what reconstructs the image from its feature maps.

    The encoder's parameters are those of the segmentation network it was taken from; its layers are made mask-aware in
    place. A deep copy is a network of its own, with its own mask.

    Args:
        encoder: of a segmentation network.
        maps: channels and strides of its feature maps, fine to coarse.
        cell: voxels of a mask cell per axis.
        image_channels: of the image, in and out.
        checkpointing: compute encoder stages again in the backward pass.

    Attributes:
        packed_stages: encoder stages, from the finest, that compute visible cells only; 0 to ``packable``.
        packable: most stages that can, and why no more.
        memory_format: of the decoder's maps. Weights stay as they are: a checkpoint may be continued with another
            format, and the optimiser's moments must lie in memory as their weights do.
    """

    def __init__(
        self, encoder: nn.Module, maps: tuple[FeatureMap, ...], cell: Triple, image_channels: int, checkpointing: bool
    ) -> None:
        super().__init__()
        self.mask = SparseMask()
        self.encoder = encoder
        self.maps, self.cell, self.checkpointing = maps, cell, checkpointing
        self.image_channels = image_channels
        convert(encoder, self.mask)
        self.packed_stages = 0
        self.packable = packable_stages(encoder, maps, cell)
        self.memory_format = torch.contiguous_format

    @abstractmethod
    def fill(self, maps: Sequence[SparseMap]) -> list[Tensor]:
        """The encoder's maps, fine to coarse -> the decoder's inputs. Runs inside the contexts of mask and decoding."""

    @abstractmethod
    def reconstruct(self, filled: list[Tensor]) -> Tensor:
        """The decoder's inputs -> (B, C, D, H, W). Runs inside the context of :meth:`decoding`."""

    def decoding(self, cells: Cells) -> AbstractContextManager[None]:  # noqa: ARG002 - for those that leave cells out
        """Context in which these cells are decoded; the loss does not look at what comes out elsewhere."""
        return nullcontext()

    @abstractmethod
    def compile_decoder(self) -> None:
        """Let ``torch.compile`` make the decoder faster."""

    def forward(self, image: Tensor, mask: Tensor, visible: int | None = None, decoded: Cells | None = None) -> Tensor:
        """Reconstruct an image from its visible cells.

        Args:
            image: (B, C, D, H, W).
            mask: boolean (B, *grid), True where masked.
            visible: visible cells of every sample, where the caller knows it: counting them waits for the GPU.
            decoded: masked cells that are wanted; None for all of them.

        Returns:
            (B, C, D, H, W).
        """
        with self.decoding(decoded or hidden_cells(mask, visible)):
            return self.reconstruct(self.densified(image, mask, visible))

    def densified(self, image: Tensor, mask: Tensor, visible: int | None = None) -> list[Tensor]:
        """The decoder's inputs. Runs inside the context of :meth:`decoding`."""
        with self.mask.visible(~mask, visible):
            maps = encode_masked(self.encoder, image, self.mask, self.packed_stages, self.checkpointing)
            filled = self.fill(maps)
        return [x.contiguous(memory_format=self.memory_format) for x in filled]


def hidden_cells(mask: Tensor, visible: int | None) -> Cells:
    """All masked cells of a mask (B, *grid) with so many visible ones in every sample, None where it is not known."""
    return Cells(mask, None if visible is None else mask[0].numel() - visible)
