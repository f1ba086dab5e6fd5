"""Building a Backbone by the name a user types after ``-network``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.custom import build_custom_backbone
from ssl_pretrain.networks.primus import PRIMUS_SIZES, build_planned_primus, build_primus, primus_size
from ssl_pretrain.networks.request import NetworkRequest, check_settings
from ssl_pretrain.networks.resenc import build_resenc
from ssl_pretrain.networks.stunet import STUNET_SIZES, STUNet, stunet_kwargs
from ssl_pretrain.networks.trust import refuse_foreign_code
from ssl_pretrain.networks.vit import UNETR_PATH, build_planned_vit, build_vit
from ssl_pretrain.networks.wrap import wrap_network


def build_stunet(size: str, request: NetworkRequest) -> Backbone:
    """STU-Net of a published size with the strides of the plans."""
    check_settings(request.settings, [], f"STUNet_{size}")
    kwargs = stunet_kwargs(size, request.architecture["arch_kwargs"].get("strides", ()))
    network = STUNet(request.input_channels, request.num_classes, deep_supervision=True, **kwargs)
    backbone = wrap_network(network, request.input_channels)
    backbone.architecture = f"{STUNet.__module__}.{STUNet.__name__}"
    backbone.architecture_kwargs = kwargs
    return backbone


def _build_plans(request: NetworkRequest) -> Backbone:
    """The network of the plans; a transformer is told the patch as well, which nnU-Net does not pass to networks."""
    check_settings(request.settings, [], "plans")
    if primus_size(request.architecture) is not None:
        return build_planned_primus(request)
    if request.architecture["network_class_name"] == UNETR_PATH:
        return build_planned_vit(request)
    refuse_foreign_code(request.architecture, trust_plans=request.trust_plans)
    # nnU-Net is imported only where its own network is asked for: the step benchmark runs without it.
    from ssl_pretrain.networks.plans import build_plans_backbone

    return build_plans_backbone(request.architecture, request.input_channels, request.num_classes)


NETWORKS: dict[str, Callable[[NetworkRequest], Backbone]] = {
    "plans": _build_plans,
    **{f"STUNet_{size}": partial(build_stunet, size) for size in STUNET_SIZES},
    **{preset: partial(build_resenc, preset) for preset in ("ResEncM", "ResEncL", "ResEncXL")},
    **{f"Primus{letter}": partial(build_primus, letter) for letter in PRIMUS_SIZES},
    "ViT_B16": build_vit,
}


def build_backbone(
    name: str,
    *,
    architecture: Mapping[str, Any],
    input_channels: int,
    num_classes: int,
    patch: Triple,
    settings: Mapping[str, Any] | None = None,
    trust_plans: bool = False,
) -> Backbone:
    """Build the segmentation network that fine-tuning will build, as a Backbone.

    Args:
        name: a key of :data:`NETWORKS`, or ``package.module:Class``.
        architecture: ``architecture`` entry of the plans' configuration.
        input_channels: channels of the image.
        num_classes: segmentation heads of the dataset.
        patch: voxels of the patch per axis (D, H, W).
        settings: fields of the network's size that are to differ from the published one: ``width``, ``depth`` and
            ``heads`` of a transformer, ``width``, ``widest`` and ``depth`` of a ResEnc.
        trust_plans: whether the architecture may name code of packages other than
            :data:`~ssl_pretrain.networks.trust.TRUSTED`, which is then imported and called.

    Raises:
        ValueError: unknown name, a class or patch that does not fit, a setting that there is not, or plans that name
            code of other packages; says what is allowed.
    """
    if ":" in name:
        check_settings(settings or {}, [], name)
        return build_custom_backbone(name, input_channels, num_classes, patch)
    if name not in NETWORKS:
        raise ValueError(f"Unknown network {name!r}. Choose from {', '.join(NETWORKS)}, or package.module:Class.")
    request = NetworkRequest(architecture, input_channels, num_classes, patch, settings or {}, trust_plans)
    return NETWORKS[name](request)
