"""Small networks in the form that plans files name them."""

from __future__ import annotations

from typing import Any

from ssl_pretrain.networks import Backbone, build_backbone

STRIDES = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "anisotropic": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}


def architecture(kind: str = "plain", strides: list[list[int]] | None = None) -> dict[str, Any]:
    """The ``architecture`` entry of a plans file for a network of at most five stages; three by default."""
    strides = strides or STRIDES["isotropic"]
    stages = len(strides)
    blocks = {"n_conv_per_stage": [2] * stages} if kind == "plain" else {"n_blocks_per_stage": [1, 2, 2, 1, 1][:stages]}
    name = "PlainConvUNet" if kind == "plain" else "ResidualEncoderUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 8, 16, 16, 16][:stages],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3] if max(s) != min(s) else [3, 3, 3] for s in strides],
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def backbone(
    name: str = "plans", kind: str = "plain", strides: str = "isotropic", input_channels: int = 1, classes: int = 3
) -> Backbone:
    """A backbone for patches of 16³."""
    return build_backbone(
        name,
        architecture=architecture(kind, STRIDES[strides]),
        input_channels=input_channels,
        num_classes=classes,
        patch=(16, 16, 16),
    )
