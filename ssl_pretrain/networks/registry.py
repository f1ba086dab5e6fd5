"""Networks that can be pretrained, by the name a user types after ``-network``: one row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from os.path import commonprefix
from typing import Any

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks import primus, resenc, swin, vit
from ssl_pretrain.networks.base import Backbone, Family, Need
from ssl_pretrain.networks.custom import build_custom_backbone
from ssl_pretrain.networks.primus import PRIMUS_SIZES, PrimusBackbone, build_planned_primus, build_primus, primus_size
from ssl_pretrain.networks.request import NetworkRequest, check_settings
from ssl_pretrain.networks.resenc import RESENC_PRESETS, build_resenc
from ssl_pretrain.networks.stunet import STUNET_PATH, STUNET_SIZES, STUNet, stunet_kwargs
from ssl_pretrain.networks.swin import SWIN_PATH, SwinBackbone, build_planned_swin, build_swin
from ssl_pretrain.networks.tokens import TokenBackbone
from ssl_pretrain.networks.trust import refuse_foreign_code
from ssl_pretrain.networks.vit import UNETR_PATH, build_planned_vit, build_vit
from ssl_pretrain.networks.wrap import wrap_network

PLANNED = "plans"
"""Name of the network that the plans name."""


@dataclass(frozen=True)
class NetworkRow:
    """What is known of a network before it is built.

    Attributes:
        build: makes it.
        kind: what optimises it; the network of the plans is taken for the U-Net that nnU-Net plans.
        offers: what methods may ask of it.
        paths: dotted paths of classes by which plans name it; the first is the one that we write, with all published
            sizes.
        trainer: of ours, which fine-tunes it by nnU-Net whatever the plans say; empty where nnU-Net's own trainer is
            the only one.
        divisor: voxels that the patch must be a multiple of per axis; None for a U-Net, whose plans say it.
        tiny: ``-network_settings`` that make it small, for trials and tests.
    """

    build: Callable[[NetworkRequest], Backbone]
    kind: Family
    offers: frozenset[Need]
    paths: tuple[str, ...]
    trainer: str = ""
    divisor: Triple | None = None
    tiny: Mapping[str, int] = field(default_factory=dict)


def build_stunet(size: str, request: NetworkRequest) -> Backbone:
    """STU-Net of a published size with the strides of the plans."""
    check_settings(request.settings, [], f"STUNet_{size}")
    kwargs = stunet_kwargs(size, request.architecture["arch_kwargs"].get("strides", ()))
    network = STUNet(request.input_channels, request.num_classes, deep_supervision=True, **kwargs)
    backbone = wrap_network(network, request.input_channels)
    backbone.architecture = STUNET_PATH
    backbone.architecture_kwargs = kwargs
    return backbone


def _build_plans(request: NetworkRequest) -> Backbone:
    """The network of the plans; a transformer is told the patch as well, which nnU-Net does not pass to networks."""
    check_settings(request.settings, [], "plans")
    if primus_size(request.architecture) is not None:
        return build_planned_primus(request)
    if request.architecture["network_class_name"] == UNETR_PATH:
        return build_planned_vit(request)
    if request.architecture["network_class_name"] == SWIN_PATH:
        return build_planned_swin(request)
    refuse_foreign_code(request.architecture, trust_plans=request.trust_plans)
    # nnU-Net is imported only where its own network is asked for: the step benchmark runs without it.
    from ssl_pretrain.networks.plans import build_plans_backbone

    return build_plans_backbone(request.architecture, request.input_channels, request.num_classes)


_UNET = frozenset[Need](["convolutions", "decoder"])

NETWORKS: dict[str, NetworkRow] = {
    PLANNED: NetworkRow(_build_plans, "convolutional", _UNET, resenc.UNETS),
    **{
        f"STUNet_{size}": NetworkRow(
            partial(build_stunet, size), "convolutional", _UNET, (STUNET_PATH,), f"STUNetTrainer_{size}_ft"
        )
        for size in STUNET_SIZES
    },
    **{
        preset: NetworkRow(
            partial(build_resenc, preset),
            "convolutional",
            _UNET,
            (resenc.CLASS,),
            tiny={"width": 4, "widest": 16, "depth": 1},
        )
        for preset in RESENC_PRESETS
    },
    **{
        f"Primus{letter}": NetworkRow(
            partial(build_primus, letter),
            "transformer",
            PrimusBackbone.encoder_offers | {"decoder"},
            (f"{primus.MODULE}.Primus{letter}", f"{primus.MODULE}.Primus"),
            "PrimusTrainer_ft",
            primus.TOKEN,
            {"width": 36, "depth": 2, "heads": 2},
        )
        for letter in PRIMUS_SIZES
    },
    "ViT_B16": NetworkRow(
        build_vit,
        "transformer",
        TokenBackbone.encoder_offers | {"decoder"},
        (UNETR_PATH,),
        "UNETRTrainer_ft",
        vit.TOKEN,
        {"width": 32, "depth": 4, "heads": 4},
    ),
    "SwinUNETR": NetworkRow(
        build_swin,
        "transformer",
        SwinBackbone.encoder_offers | {"decoder"},
        (SWIN_PATH,),
        "SwinUNETRTrainer_ft",
        swin.STRIDE,
        {"feature_size": 4, "depths": 1, "heads": 1, "window": 4},
    ),
}
"""Name after ``-network`` -> the network."""


def rows_of(name: str, path: str = "") -> list[NetworkRow]:
    """Rows of a network, of which there are several where the path does not tell its size.

    Args:
        name: as after ``-network``.
        path: dotted path of its class, or the class alone, for a network that plans name.
    """
    if name in NETWORKS and (name != PLANNED or not path):
        return [NETWORKS[name]]
    return [row for row in NETWORKS.values() if path and path in (*row.paths, *(p.split(".")[-1] for p in row.paths))]


def trainer_of(name: str, path: str = "", *, planned: bool = False) -> str:
    """The trainer that fine-tunes a network; empty for nnU-Net's own.

    Args:
        name: as after ``-network``.
        path: dotted path of its class, for a network that plans name.
        planned: whether the plans that are fine-tuned with name the network. nnU-Net's own trainer builds a
            convolutional one of these; a transformer has to be told the patch.

    Raises:
        ValueError: no network of this name or class is known.
    """
    rows = rows_of(name, path)
    if not rows:
        raise ValueError(
            f"No trainer is known for the network {path or name}. Known are {shown_names()}. Name the trainer that "
            "builds it (-tr), or pretrain one of these."
        )
    trainers = {"" if planned and row.kind == "convolutional" else row.trainer for row in rows}
    # Of a network whose trainers need its size, the plans know it and nnU-Net's own trainer builds it.
    return trainers.pop() if len(trainers) == 1 else ""


def kin(names: Iterable[str] | None = None) -> list[list[str]]:
    """Names of networks, those together that are built in one way and differ in numbers only.

    Args:
        names: of :data:`NETWORKS`; all of them if left out.
    """
    return [
        list(group)
        for _, group in groupby(NETWORKS if names is None else names, lambda name: _way(NETWORKS[name].build))
    ]


def shown_names(names: Iterable[str] | None = None) -> str:
    """Names of networks for people: ``PrimusS|B|M|L`` for kin, which differ in the ends of their names.

    Args:
        names: of :data:`NETWORKS`; all of them if left out.
    """
    shown = []
    for first, *others in kin(names):
        start = len(commonprefix([first, *others])) if others else 0  # noqa: RUF071 - letters are meant
        shown.append("|".join((first, *(other[start:] for other in others))))
    return ", ".join(shown)


def _way(build: Callable[[NetworkRequest], Backbone]) -> object:
    return build.func if isinstance(build, partial) else build


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
            ``heads`` of a transformer, ``width``, ``widest`` and ``depth`` of a ResEnc, the fields of a SwinSize.
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
    return NETWORKS[name].build(request)
