"""Seeing a built segmentation network as a Backbone."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ssl_pretrain.functional.geometry import as_triple, cumulative_strides
from ssl_pretrain.networks.anatomy import anatomy_of
from ssl_pretrain.networks.base import Backbone, FeatureMap, StagedEncoder
from ssl_pretrain.networks.stunet import STUNet


def wrap_network(network: nn.Module, input_channels: int) -> Backbone:
    """A U-Net of dynamic-network-architectures, one that keeps its conventions, or an STU-Net, as a Backbone.

    Raises:
        ValueError: the network keeps its encoder elsewhere; says what was looked for.
    """
    encoder = anatomy_of(network).staged
    if isinstance(network, STUNet):
        stages, stem = network.conv_blocks_context, None
        channels, strides = network.features_per_stage, network.strides
    elif encoder is not None:
        unet = cast("Any", encoder)
        stages, stem = unet.stages, getattr(unet, "stem", None)
        channels, strides = unet.output_channels, unet.strides
    else:
        raise ValueError(
            f"{type(network).__name__} cannot be pretrained: it has no `encoder` with `stages`, `output_channels` and "
            "`strides` (PlainConvUNet and ResidualEncoderUNet have). Pass your own network as "
            "-network package.module:Class instead."
        )
    totals = cumulative_strides([as_triple(stride, "stride") for stride in strides])
    maps = [FeatureMap(int(c), total) for c, total in zip(channels, totals, strict=True)]
    return Backbone(network, StagedEncoder(list(stages), stem), maps, input_channels)
