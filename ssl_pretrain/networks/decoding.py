"""What the decoders of networks have in common: features before the head, and heads for other channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

PARTS = ("decode_features", "decoder_modules", "segmentation_head")
"""What a network with a decoder has, see :class:`Decoding`."""


class Decoding(Protocol):
    """A decoder that can be asked for its features; a network of one's own may have these three itself.

    Attributes:
        decoder_modules: hold all tensors of the decoder and nothing else; no segmentation head is in them.
        segmentation_head: from the features to the logits of the finest level.
    """

    @property
    def decoder_modules(self) -> Sequence[nn.Module]: ...  # noqa: D102 - described above

    @property
    def segmentation_head(self) -> nn.Module: ...  # noqa: D102

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps, fine to coarse -> what the segmentation head of the finest level gets."""
        ...


class UNetDecoding:
    """A U-Net's decoder in dynamic-network-architectures, with plain or residual blocks.

    Args:
        decoder: holds, from coarse to fine, ``transpconvs``, ``stages`` and ``seg_layers``.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder = cast("Any", decoder)

    @property
    def decoder_modules(self) -> Sequence[nn.Module]:
        """Upsampling and blocks; the decoder holds the encoder as well, which is left out."""
        return [self.decoder.transpconvs, self.decoder.stages]

    @property
    def segmentation_head(self) -> nn.Module:
        """The head of the finest level."""
        return cast("nn.Module", self.decoder.seg_layers[-1])

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps, fine to coarse -> features of the finest level, for which nnU-Net has no name of its own."""
        *skips, x = maps
        for upsample, stage, skip in zip(self.decoder.transpconvs, self.decoder.stages, reversed(skips), strict=True):
            x = stage(torch.cat((upsample(x), skip), 1))
        return x


class PatchDecoding:
    """The decoder of a Primus: transposed convolutions from the map of the tokens, the last of which makes the logits.

    Args:
        steps: of the decoder. How wide they are depends on the number of classes.
    """

    def __init__(self, steps: nn.Sequential) -> None:
        self.steps = steps

    @property
    def decoder_modules(self) -> Sequence[nn.Module]:
        """All steps but the last."""
        return list(self.steps)[:-1]

    @property
    def segmentation_head(self) -> nn.Module:
        """The last step: from half the resolution to the whole."""
        return self.steps[-1]

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """The map of the tokens -> features at half the resolution of the image."""
        (x,) = maps
        for step in self.decoder_modules:
            x = step(x)
        return x


def head_like(head: nn.Module, channels: int) -> nn.Module:
    """A fresh head of the geometry of a network's own, for another number of channels.

    It is initialised as nnU-Net initialises convolutions: Kaiming's normal distribution, biases 0.

    Args:
        head: holds one convolution, transposed or not.
        channels: that come out.
    """
    (own,) = (m for m in head.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d)))
    kernel, stride, padding = own.kernel_size, own.stride, cast("tuple[int, ...]", own.padding)
    fresh = type(own)(own.in_channels, channels, kernel, stride, padding)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(fresh.weight, a=1e-2)
    assert fresh.bias is not None
    nn.init.zeros_(fresh.bias)
    return fresh
