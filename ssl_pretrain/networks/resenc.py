"""Residual encoder U-Nets as nnU-Net plans them (Isensee et al. 2024, arXiv 2404.09556), without nnU-Net.

nnU-Net's presets M, L and XL have the same blocks, widths and decoder. They differ in the GPU memory that the planner
fills (8, 24 and 40 GB), and so in patch and batch size, which the plans say and no network can. Only the number of
poolings follows the patch: from 128 to 224 voxels per axis at isotropic spacing it is five in all three presets. Hence
here

- ``ResEncL`` is the network of the OpenMind benchmark, the same for every dataset: six stages, 3³ kernels, 2³ strides;
- ``ResEncM`` and ``ResEncXL`` take stages, kernels and strides from the plans. For plans that nnU-Net made with the
  planner of that name this is the planned network; for other plans it is theirs with nnU-Net's residual blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ssl_pretrain.functional.geometry import as_triple
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.request import NetworkRequest, check_counts, with_settings
from ssl_pretrain.networks.wrap import wrap_network

MODULE = "dynamic_network_architectures.architectures.unet"
CLASS = f"{MODULE}.ResidualEncoderUNet"
UNETS = (f"{MODULE}.PlainConvUNet", CLASS)
"""Networks that nnU-Net plans."""

OPENMIND = "ResEncL"
RESENC_PRESETS = ("ResEncM", OPENMIND, "ResEncXL")

BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first stages; every later one has as many as the last of these."""

OPENMIND_STRIDES = ((1, 1, 1), *((2, 2, 2),) * 5)
OPENMIND_KERNELS = ((3, 3, 3),) * 6

CLASSES: dict[str, type[nn.Module] | None] = {
    "conv_op": nn.Conv3d,
    "norm_op": nn.InstanceNorm3d,
    "dropout_op": None,
    "nonlin": nn.LeakyReLU,
}
"""Arguments that are classes; a plans file has their dotted names."""


@dataclass(frozen=True)
class ResEncSize:
    """Scale of a residual encoder U-Net; the defaults are nnU-Net's.

    Attributes:
        width: channels of the finest stage; each further stage has twice as many.
        widest: most channels of a stage.
        depth: residual blocks of the deeper stages, 6 in nnU-Net; the first stages have at most 1, 3 and 4.
    """

    width: int = 32
    widest: int = 320
    depth: int = 6

    def __post_init__(self) -> None:
        check_counts(width=self.width, widest=self.widest, depth=self.depth)


def resenc_kwargs(
    strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], size: ResEncSize | None = None
) -> dict[str, Any]:
    """The constructor's arguments as nnU-Net's planners write them, in a form that JSON can hold.

    Args:
        strides: voxels per axis that each stage steps, the first (1, 1, 1).
        kernels: voxels per axis of each stage's convolutions.
        size: None for nnU-Net's.

    Raises:
        ValueError: not 3-D, or not one kernel per stride.
    """
    size = size or ResEncSize()
    steps = [list(as_triple(stride, "ResEnc is 3-D: each of its strides")) for stride in strides]
    if len(steps) < 2 or len(kernels) != len(steps):
        raise ValueError(
            f"ResEncM and ResEncXL need the strides and as many kernels of a plan, two at least, but got {steps} and "
            f"{list(kernels)}. Use plans of a U-Net, or -network ResEncL, which needs none."
        )
    stages = range(len(steps))
    return {
        "n_stages": len(steps),
        "features_per_stage": [min(size.widest, size.width * 2**stage) for stage in stages],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(as_triple(kernel, "kernel_sizes")) for kernel in kernels],
        "strides": steps,
        "n_blocks_per_stage": [min(size.depth, BLOCKS[min(stage, len(BLOCKS) - 1)]) for stage in stages],
        "n_conv_per_stage_decoder": [1] * (len(steps) - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def build_resenc(preset: str, request: NetworkRequest) -> Backbone:
    """A preset, ``ResEncM``, ``ResEncL`` or ``ResEncXL``, initialised as nnU-Net does.

    Raises:
        ValueError: M or XL without plans of a 3-D U-Net, or a setting that there is not.
    """
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    size = with_settings(ResEncSize(), request.settings, preset)
    if preset == OPENMIND:
        kwargs = resenc_kwargs(OPENMIND_STRIDES, OPENMIND_KERNELS, size)
    else:
        planned = request.architecture.get("arch_kwargs", {})
        kwargs = resenc_kwargs(planned.get("strides", ()), planned.get("kernel_sizes", ()), size)
    network: nn.Module = ResidualEncoderUNet(
        input_channels=request.input_channels,
        num_classes=request.num_classes,
        deep_supervision=True,
        **{**kwargs, **CLASSES},
    )
    # The class leaves PyTorch's initialisation as it is: He's, and identity blocks, are nnU-Net's to apply.
    network.apply(ResidualEncoderUNet.initialize)
    backbone = wrap_network(network, request.input_channels)
    backbone.architecture = CLASS
    backbone.architecture_kwargs = kwargs
    backbone.architecture_imports = tuple(CLASSES)
    return backbone
