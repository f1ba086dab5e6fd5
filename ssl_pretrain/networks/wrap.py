"""Seeing a built segmentation network as a Backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ssl_pretrain.functional.geometry import as_triple, cumulative_strides
from ssl_pretrain.networks.base import Backbone, FeatureMap, StagedEncoder
from ssl_pretrain.networks.stunet import STUNet


def wrap_network(network: nn.Module, input_channels: int) -> Backbone:
    """A U-Net of dynamic-network-architectures, one that keeps its conventions, or an STU-Net, as a Backbone.

    Raises:
        ValueError: the network keeps its encoder elsewhere; says what was looked for.
    """
    if isinstance(network, STUNet):
        staged = StagedEncoder(list(network.conv_blocks_context))
        maps = _feature_maps(network.features_per_stage, network.strides)
        return _with_keys(Backbone(network, staged, maps, input_channels))
    encoder = getattr(network, "encoder", None)
    if encoder is None or not all(hasattr(encoder, name) for name in ("stages", "output_channels", "strides")):
        raise ValueError(
            f"{type(network).__name__} cannot be pretrained: it has no `encoder` with `stages`, `output_channels` and "
            "`strides` (PlainConvUNet and ResidualEncoderUNet have). Pass your own network as "
            "-network package.module:Class instead."
        )
    staged = StagedEncoder(list(encoder.stages), getattr(encoder, "stem", None))
    maps = _feature_maps(encoder.output_channels, encoder.strides)
    return _with_keys(Backbone(network, staged, maps, input_channels))


def _feature_maps(channels: Sequence[int], strides: Sequence[Sequence[int]]) -> list[FeatureMap]:
    totals = cumulative_strides([as_triple(stride, "stride") for stride in strides])
    return [FeatureMap(int(c), total) for c, total in zip(channels, totals, strict=True)]


def _with_keys(backbone: Backbone) -> Backbone:
    """Take over where the network says its parts live (a convention of dynamic-network-architectures)."""
    network = backbone.network
    backbone.encoder_key = str(getattr(network, "key_to_encoder", "encoder.stages"))
    backbone.stem_key = str(getattr(network, "key_to_stem", "encoder.stem"))
    backbone.input_projection_keys = tuple(getattr(network, "keys_to_in_proj", ()))
    return backbone
