"""The network that nnU-Net planned. The only network module that imports nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from pydoc import locate
from typing import Any

from torch import nn

from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.wrap import wrap_network


def build_plans_backbone(architecture: Mapping[str, Any], input_channels: int, num_classes: int) -> Backbone:
    """Build the network of a plans file as nnU-Net builds it, initialisation included.

    Args:
        architecture: the configuration's ``architecture`` entry: ``network_class_name``, ``arch_kwargs``,
            ``_kw_requires_import``.
        input_channels: channels of the image.
        num_classes: segmentation heads.

    Raises:
        ValueError: the network cannot be built, or has no encoder of stages that could be pretrained.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    kwargs = architecture["arch_kwargs"]
    named = {name: str(kwargs[name]) for name in architecture["_kw_requires_import"] if kwargs.get(name)}
    # nnU-Net builds the network without what it does not find.
    if absent := [f"{name} {path}" for name, path in named.items() if locate(path) is None]:
        raise ValueError(
            f"The plans name {', '.join(absent)}, which Python does not find. Correct the name, or install the package "
            "that has it."
        )
    try:
        network: nn.Module = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            input_channels,
            num_classes,
            allow_init=True,
            deep_supervision=True,
        )
    # Whatever a constructor makes of arguments that it does not like.
    except (
        *(ImportError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
        *(TypeError, ValueError),
    ) as error:
        raise ValueError(
            f"The plans' network {architecture['network_class_name']} cannot be built the way nnU-Net builds a U-Net: "
            f"{error}. Use plans of a PlainConvUNet, ResidualEncoderUNet or STU-Net, or -network package.module:Class."
        ) from error
    backbone = wrap_network(network, input_channels)
    backbone.architecture = architecture["network_class_name"]
    backbone.architecture_kwargs = dict(architecture["arch_kwargs"])
    backbone.architecture_imports = tuple(architecture["_kw_requires_import"])
    return backbone
