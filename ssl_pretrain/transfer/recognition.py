"""Which network of ours a built one is, so that a file of its weights can say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.anatomy import anatomy_of
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.registry import NETWORKS, build_backbone


class Built(NamedTuple):
    """A network, and what nnU-Net built it from.

    Attributes:
        network: as nnU-Net has it when a training from scratch begins; on the CPU.
        architecture: the plans' entry, which a trainer need not heed.
        input_channels: channels of the image.
        num_classes: segmentation heads.
        patch: voxels of the plans' patch per axis.
        trust_plans: whether the architecture may name code of any package.
    """

    network: nn.Module
    architecture: Mapping[str, Any]
    input_channels: int
    num_classes: int
    patch: Triple
    trust_plans: bool = False


class Recognised(NamedTuple):
    """A built network, seen as pretraining sees it.

    Attributes:
        name: what ``-network`` of pretraining calls it with these plans; None for a network that is none of ours.
        backbone: holds the network and says where its parts are. It has no feature maps: it is there to be exported.
    """

    name: str | None
    backbone: Backbone


def recognise(built: Built) -> Recognised:
    """Find the name by which pretraining would build this very network: its class, names and shapes of its tensors."""
    network = built.network
    twins = ((name, _twin(name, built)) for name in NETWORKS)
    name, twin = next(((name, twin) for name, twin in twins if twin and _alike(twin.network, network)), (None, None))
    anatomy = anatomy_of(network)
    parts = nn.ModuleList(network.get_submodule(part) for part in (anatomy.encoder_key, anatomy.stem_key) if part)
    backbone = Backbone(network, parts, (), built.input_channels)
    backbone.architecture = f"{type(network).__module__}.{type(network).__qualname__}"
    if twin is not None:
        backbone.architecture, backbone.architecture_kwargs = twin.architecture, twin.architecture_kwargs
        backbone.architecture_imports = twin.architecture_imports
    return Recognised(name, backbone)


def _twin(name: str, built: Built) -> Backbone | None:
    """A network of ours without numbers, or None where these plans do not allow it."""
    try:
        # Shapes are all that is looked at: nothing is allocated, however large the network.
        with torch.device("meta"):
            return build_backbone(
                name,
                architecture=built.architecture,
                input_channels=built.input_channels,
                num_classes=built.num_classes,
                patch=built.patch,
                trust_plans=built.trust_plans,
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _alike(ours: nn.Module, theirs: nn.Module) -> bool:
    mine, others = ({name: tensor.shape for name, tensor in network.state_dict().items()} for network in (ours, theirs))
    return type(ours) is type(theirs) and mine == others
