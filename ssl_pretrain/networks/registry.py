"""Building a Backbone by the name a user types after ``-network``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.custom import build_custom_backbone
from ssl_pretrain.networks.stunet import STUNET_SIZES, STUNet, stunet_kwargs
from ssl_pretrain.networks.wrap import wrap_network


@dataclass(frozen=True)
class NetworkRequest:
    """What a network is built from.

    Attributes:
        architecture: ``architecture`` entry of the plans' configuration.
        input_channels: channels of the image.
        num_classes: segmentation heads of the dataset.
        patch: voxels of the patch per axis.
    """

    architecture: Mapping[str, Any]
    input_channels: int
    num_classes: int
    patch: Triple


def build_stunet(size: str, request: NetworkRequest) -> Backbone:
    """STU-Net of a published size with the strides of the plans."""
    kwargs = stunet_kwargs(size, request.architecture["arch_kwargs"].get("strides", ()))
    network = STUNet(request.input_channels, request.num_classes, deep_supervision=True, **kwargs)
    backbone = wrap_network(network, request.input_channels)
    backbone.architecture = f"{STUNet.__module__}.{STUNet.__name__}"
    backbone.architecture_kwargs = kwargs
    return backbone


def _build_plans(request: NetworkRequest) -> Backbone:
    # nnU-Net is imported only where its own network is asked for: the step benchmark runs without it.
    from ssl_pretrain.networks.plans import build_plans_backbone

    return build_plans_backbone(request.architecture, request.input_channels, request.num_classes)


NETWORKS: dict[str, Callable[[NetworkRequest], Backbone]] = {
    "plans": _build_plans,
    **{f"STUNet_{size}": partial(build_stunet, size) for size in STUNET_SIZES},
}


def build_backbone(
    name: str,
    *,
    architecture: Mapping[str, Any],
    input_channels: int,
    num_classes: int,
    patch: Triple,
) -> Backbone:
    """Build the segmentation network that fine-tuning will build, as a Backbone.

    Args:
        name: a key of :data:`NETWORKS`, or ``package.module:Class``.
        architecture: ``architecture`` entry of the plans' configuration.
        input_channels: channels of the image.
        num_classes: segmentation heads of the dataset.
        patch: voxels of the patch per axis (D, H, W).

    Raises:
        ValueError: unknown name, or a class that does not fit; says what is allowed.
    """
    if ":" in name:
        return build_custom_backbone(name, input_channels, num_classes, patch)
    if name not in NETWORKS:
        raise ValueError(f"Unknown network {name!r}. Choose from {', '.join(NETWORKS)}, or package.module:Class.")
    return NETWORKS[name](NetworkRequest(architecture, input_channels, num_classes, patch))
