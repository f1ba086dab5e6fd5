"""What the methods with a sparse encoder share: skipping masked voxels by the fastest way that the device has."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_pretrain.methods.base import Needs
from ssl_pretrain.methods.cost import count_multiply_adds
from ssl_pretrain.methods.light_decoder import Norm
from ssl_pretrain.methods.masked_network import MaskedNetwork
from ssl_pretrain.methods.masking import Hidden, MaskedMethod
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.methods.tuning import (
    Context,
    MemoryFormat,
    choose_backend,
    expected_packed_stages,
    memory_format_of,
    use_backend,
)
from ssl_pretrain.networks.backends import Backend, Choice

log = logging.getLogger("ssl_pretrain")


@dataclass(frozen=True, kw_only=True)
class SparseConfig(OptimizerConfig):
    """What makes a step with a sparse encoder faster or smaller, and does not change what it computes.

    Attributes:
        sparse: how the encoder leaves masked voxels out. ``masked`` computes them and multiplies with the mask,
            ``blocks`` computes visible cells only, ``spconv`` does so with that library on a GPU; ``auto`` takes what
            is fastest.
        memory_format: of the decoder's feature maps; ``auto`` is channels last with batch norm,
            contiguous with instance norm.
        compile: compile the decoder with ``torch.compile``.
        checkpointing: compute feature maps again in the backward pass instead of keeping them: less memory, a third
            more time.
    """

    sparse: Backend = "auto"
    memory_format: MemoryFormat = "auto"
    compile: bool = False
    checkpointing: bool = False


class SparseMethod(MaskedMethod):
    """A method whose encoder sees visible cells only.

    Attributes:
        decoder_norm: of the decoder.
    """

    config: SparseConfig
    needs: ClassVar[Needs] = (frozenset({"convolutions"}),)
    decoder_norm: Norm

    @abstractmethod
    def networks(self) -> Sequence[MaskedNetwork]:
        """Every network that reconstructs images, the trained one first."""

    def cells_by(self, network: nn.Module, image: Tensor, hidden: Hidden) -> Tensor:
        """Predicted cells (B, L, V), float32, of one of the networks."""
        return self.cells_of(network(image, hidden.mask, prod(self.grid) - hidden.masked, hidden.decoded))

    def cells_of(self, reconstruction: Tensor) -> Tensor:
        """Cells (B, L, V), float32, of what a network makes of an image."""
        return self.split(reconstruction.float())

    def predict(self, image: Tensor, hidden: Hidden) -> Tensor:
        """See :meth:`MaskedMethod.predict`."""
        return self.cells_by(self.networks()[0], image, hidden)

    def probe(self, image: Tensor) -> None:
        """As it will probably run: which stages leave masked voxels out is decided on the device."""
        student = self.networks()[0]
        student.packed_stages = expected_packed_stages(student, self.config.sparse, image, self.masked)
        super().probe(image)

    def on_fit_start(self) -> None:
        """Lightning calls this when the module is on its device."""
        self.tune(self.trainer.precision_plugin.forward_context, self.trainer.strategy.broadcast)

    def tune(self, precision: Context = nullcontext, agree: Callable[[Choice], Choice] = lambda choice: choice) -> None:
        """Set up everything that makes a step faster on the module's device and does not change what it computes.

        Args:
            precision: context in which a forward pass runs.
            agree: brings the choices of several processes together.
        """
        config, student = self.config, self.networks()[0]
        image = torch.zeros(self.length.batch_size, self.backbone.input_channels, *self.patch, device=self.device)
        choice = agree(choose_backend(student, config.sparse, image, self.masked, precision))
        memory_format = memory_format_of(config.memory_format, self.decoder_norm)
        for network in self.networks():
            use_backend(network, choice)
            network.memory_format = memory_format
            if config.compile:
                network.compile_decoder()
        packable, reason = student.packable
        total = len(student.maps)
        log.info("sparse=%s, %d encoder stages: %s", config.sparse, total, choice)
        if config.sparse != "masked" and packable < total:
            log.info("stages from %d on cannot leave masked voxels out: %s", packable, reason)

    def multiply_adds(self) -> dict[str, int]:
        """Of encoder (dense, and with visible cells only), densification and decoder, for a batch."""
        return count_multiply_adds(
            self.networks()[0], self.config.sparse, self.length.batch_size, self.patch, self.masked, self.drawn
        )
