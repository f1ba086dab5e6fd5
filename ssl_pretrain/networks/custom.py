"""A user's own encoder, by dotted path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.networks.base import Backbone, FeatureMap

SPARK_METHODS = ("get_downsample_ratio", "get_feature_map_channels", "forward")


def import_class(path: str) -> type[nn.Module]:
    """``package.module:Class`` -> the class.

    Raises:
        ValueError: no colon, a module that does not import, a name that is not in it, or not an ``nn.Module``.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"A network of your own is given as package.module:Class, got {path!r}.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"-network {path}: module {module_name!r} cannot be imported ({error}). Is it installed, or its folder on "
            "PYTHONPATH?"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        names = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
        raise ValueError(
            f"-network {path}: {module_name} has no nn.Module {class_name!r}. It has: {', '.join(names) or 'none'}."
        )
    return found


class SparKEncoder(nn.Module):
    """Calls an encoder that keeps SparK's convention (``forward(x, hierarchical=True)``)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> a fresh list of feature maps, fine to coarse."""
        return list(self.network(x, hierarchical=True))


def build_custom_backbone(path: str, input_channels: int, num_classes: int, patch: Triple) -> Backbone:
    """Build a user's network and see it as a Backbone.

    The class is called with those of ``input_channels``, ``num_classes`` and ``patch_size`` that its constructor takes.
    It is either a :class:`Backbone`, or an encoder with SparK's three methods.

    Raises:
        ValueError: the class does not resolve, cannot be built from these arguments, or lacks the interface.
    """
    cls = import_class(path)
    offered = {"input_channels": input_channels, "num_classes": num_classes, "patch_size": patch}
    network = _construct(cls, path, offered)
    if isinstance(network, Backbone):
        return network
    missing = [name for name in SPARK_METHODS if not callable(getattr(network, name, None))]
    if missing or "hierarchical" not in inspect.signature(network.forward).parameters:
        raise ValueError(
            f"-network {path}: {cls.__name__} is neither a ssl_pretrain.networks.Backbone nor has SparK's methods: "
            "get_downsample_ratio() -> int or (D, H, W), get_feature_map_channels() -> list of int, "
            f"forward(x, hierarchical=True) -> list of maps, fine to coarse. Missing: "
            f"{', '.join(missing) or 'the `hierarchical` argument of forward'}."
        )
    backbone = Backbone(network, SparKEncoder(network), _measure_maps(network, path, input_channels), input_channels)
    backbone.architecture = path.replace(":", ".")
    first = next(((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv3d)), None)
    if not backbone.input_projection_keys and first is not None and first[1].in_channels == input_channels:
        backbone.input_projection_keys = (first[0],)
    return backbone


def _construct(cls: type[nn.Module], path: str, offered: dict[str, Any]) -> nn.Module:
    # A class without a constructor of its own shows nn.Module's, which names nothing and accepts nothing.
    parameters = {} if cls.__init__ is nn.Module.__init__ else dict(inspect.signature(cls).parameters)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {name: value for name, value in offered.items() if takes_any or name in parameters}
    required = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in known
    ]
    if required:
        raise ValueError(
            f"-network {path}: {cls.__name__} needs arguments nobody can give: {', '.join(required)}. It is called "
            f"with those of {', '.join(offered)} that its constructor takes; give the others a default."
        )
    return cls(**known)


def _measure_maps(network: nn.Module, path: str, input_channels: int) -> list[FeatureMap]:
    """Run the encoder once on a small input: its maps say their strides, whatever it declares."""
    ratio = as_triple(cast("Any", network).get_downsample_ratio(), f"{path}.get_downsample_ratio()")
    declared = [int(c) for c in cast("Any", network).get_feature_map_channels()]
    size = tuple(2 * r for r in ratio)
    was_training = network.training
    network.eval()
    maps: Sequence[Tensor] = network(torch.zeros(1, input_channels, *size), hierarchical=True)
    _freeze_bystanders(network, maps)
    network.train(was_training)
    found = [int(m.shape[1]) for m in maps]
    if found != declared:
        raise ValueError(f"-network {path}: declares feature maps of {declared} channels, but returns {found}.")
    if any(s % n for m in maps for s, n in zip(size, m.shape[2:], strict=True)):
        shapes = [tuple(m.shape[2:]) for m in maps]
        raise ValueError(f"-network {path}: maps of {shapes} voxels do not divide an input of {size} voxels.")
    strides = [as_triple([s // n for s, n in zip(size, m.shape[2:], strict=True)], "stride") for m in maps]
    if strides[-1] != ratio or sorted(strides) != strides:
        raise ValueError(
            f"-network {path}: maps must come fine to coarse and end at the declared ratio {ratio}; their strides are "
            f"{strides}."
        )
    return [FeatureMap(c, s) for c, s in zip(found, strides, strict=True)]


def _freeze_bystanders(network: nn.Module, maps: Sequence[Tensor]) -> None:
    """Parameters that no feature map depends on (a classifier's head) are not trained and not called pretrained."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad([m.sum() for m in maps], parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
