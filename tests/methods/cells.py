"""Every method on every network, small: what the matrix of tests runs over. It grows with METHODS and NETWORKS."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from architectures import STRIDES, architecture
from torch import Tensor

from ssl_pretrain.methods import METHODS, Batch, Method, MethodSetup, RunLength, build_method
from ssl_pretrain.networks import NETWORKS, Backbone, build_backbone
from ssl_pretrain.networks.registry import kin

CONVOLUTIONAL, TRANSFORMER = (16, 24, 32), (16, 32, 48)
"""Patches, in voxels: multiples of the cells of each kind, and no cubes."""

CHANNELS = 2


def families() -> list[str]:
    """One name for each way of building a network: sizes of one family differ in numbers only."""
    return [first for first, *_ in kin()]


def patch_of(network: str) -> tuple[int, int, int]:
    """The patch of a network in these tests."""
    return CONVOLUTIONAL if NETWORKS[network].token is None else TRANSFORMER


def build(
    method: str, network: str, *, channels: int = CHANNELS, strides: str = "anisotropic", **config: Any
) -> Method:
    """A method on a small network, with plans of anisotropic strides."""
    torch.manual_seed(0)
    depth, height, width = patch_of(network)
    setup = MethodSetup(
        backbone=backbone_of(network, channels, strides),
        patch=(depth, height, width),
        length=RunLength(10, 5, 2),
        seed=1,
        case_shape=(depth, 2 * height, width),
    )
    return build_method(method, METHODS[method].Config(**config), setup)


def backbone_of(network: str, channels: int = CHANNELS, strides: str = "anisotropic") -> Backbone:
    """A small network."""
    return build_backbone(
        network,
        architecture=architecture("plain", STRIDES[strides]),
        input_channels=channels,
        num_classes=3,
        patch=patch_of(network),
        settings=NETWORKS[network].tiny,
    )


def batch_for(method: Method, size: int = 2, seed: int = 0) -> Batch:
    """Smooth images with some noise, as many as a batch of this method has."""
    count = size * method.sample_views.count
    generator = torch.Generator().manual_seed(seed)
    channels = method.backbone.input_channels
    voxels = method.sample_views.size or method.patch
    coarse = torch.randn(count, channels, *(p // 4 for p in voxels), generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=voxels, mode="trilinear")
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    rows = [number // method.sample_views.count for number in range(count)]
    return {
        "image": image,
        "case": [str(row) for row in rows],
        "row": rows,
        "index": list(range(count)),
        "affine": affine_of_views(method).repeat(size, 1, 1),
    }


def affine_of_views(method: Method) -> Tensor:
    """Where the crops of a sample lie, (V, 3, 4): base crops side by side, all others at one place off the grid."""
    views = method.sample_views
    affine = torch.eye(3, 4).repeat(views.count, 1, 1)
    if views.grid is not None:
        steps = torch.tensor(views.size)
        bases = torch.tensor(list(np.ndindex(views.grid))) * steps
        affine[:, :, 3] = (bases.amax(0) // 3).float()
        affine[: len(bases), :, 3] = bases.float()
    return affine


def generator(seed: int = 0) -> torch.Generator:
    """The owner of a method's random choices."""
    return torch.Generator().manual_seed(seed)


def cells() -> list[tuple[str, str]]:
    """The pairs that go together."""
    return [(method, network) for method in METHODS for network in families() if goes_together(method, network)]


def goes_together(method: str, network: str) -> bool:
    """As method and network declare; a test compares it with what the methods accept."""
    return METHODS[method].goes_with(NETWORKS[network].offers)


def network_for(method: str) -> str:
    """The first network that a method can pretrain."""
    return next(network for network in families() if goes_together(method, network))
