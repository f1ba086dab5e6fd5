"""STU-Net (Huang et al. 2023, arXiv 2304.06716): a residual U-Net that is scaled by width and depth.

The names of parameters are the published ones, so published weights fit as they are. The class follows nnU-Net's
convention for constructors and is importable by dotted path, which is all a plans file needs to name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple, as_triple

PerAxis = int | Sequence[int]

WIDTH_FACTORS = (1, 2, 4, 8, 16, 16)
"""Channels of each of the six stages in units of the base width."""


@dataclass(frozen=True)
class STUNetSize:
    """Scale of one published STU-Net: channels of the finest stage, and residual blocks in every stage."""

    width: int
    depth: int


STUNET_SIZES: dict[str, STUNetSize] = {
    "small": STUNetSize(width=16, depth=1),
    "base": STUNetSize(width=32, depth=1),
    "large": STUNetSize(width=64, depth=2),
    "huge": STUNetSize(width=96, depth=3),
}


class ResidualBlock(nn.Module):
    """Two 3-D convolutions with instance normalisation, and a skip that is a plain convolution where shapes change.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel: voxels per axis of both convolutions, odd.
        stride: voxels per axis; acts in the first convolution and in the skip.
        project_skip: whether the skip is a 1×1×1 convolution (with bias, without normalisation) or the identity.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, *, project_skip: bool
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel, stride, padding)
        self.norm1 = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)
        self.act1 = nn.LeakyReLU(inplace=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, kernel, padding=padding)
        self.norm2 = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)
        self.act2 = nn.LeakyReLU(inplace=True)
        self.conv3 = nn.Conv3d(in_channels, out_channels, 1, stride) if project_skip else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, D, H, W)`` to ``(B, C_out, D/s, H/s, W/s)`` with the block's stride ``s`` per axis."""
        skip = x if self.conv3 is None else self.conv3(x)
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.act2(y + skip)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour upsampling with a 1×1×1 convolution from ``in_channels`` to ``out_channels``."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1)
        self.scale = [float(step) for step in stride]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, D, H, W)`` to ``(B, C_out, s·D, s·H, s·W)``."""
        # The published network repeats voxels first. A pointwise convolution gives the same numbers on either side of
        # that; on the coarse side it has 1/prod(s) of the work.
        y: Tensor = self.conv(x)
        return y if max(self.scale) == 1 else functional.interpolate(y, scale_factor=self.scale, mode="nearest")


class _DecoderSwitch(nn.Module):
    """Holds nnU-Net's ``network.decoder.deep_supervision``; no parameters, so no keys in a ``state_dict``."""

    def __init__(self, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision


class STUNet(nn.Module):
    """STU-Net for 3-D segmentation, any number of stages, strides and kernels per axis (arXiv 2304.06716).

    The initialisation is PyTorch's, as in the published version for nnU-Net v2; there is no ``initialize``.

    Args:
        input_channels: channels of the image.
        num_classes: channels of each output.
        features_per_stage: channels of each stage, fine to coarse.
        n_blocks_per_stage: residual blocks of each stage, or one number for all; the decoder mirrors the encoder.
        strides: voxels per axis that each stage steps, or one number per stage; the first is (1, 1, 1) in nnU-Net.
        kernel_sizes: voxels per axis of each stage's convolutions, or one number per stage; odd.
        n_stages: resolution stages of the encoder, bottleneck included.
        deep_supervision: whether ``forward`` returns every output or the finest one. Like in nnU-Net's own networks
            ``network.decoder.deep_supervision`` switches it later.

    Attributes:
        features_per_stage: channels of each map of :meth:`encode`.
        strides: voxels per axis that each stage steps, relative to the stage before.

    Raises:
        ValueError: fewer than two stages, a list without one entry per stage, or an even kernel.
    """

    key_to_encoder = "conv_blocks_context"
    key_to_stem = "conv_blocks_context.0"
    keys_to_in_proj = ("conv_blocks_context.0.0.conv1", "conv_blocks_context.0.0.conv3")
    key_to_lpe: str | None = None

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int],
        n_blocks_per_stage: int | Sequence[int],
        strides: Sequence[PerAxis],
        kernel_sizes: Sequence[PerAxis],
        n_stages: int = 6,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(n_blocks_per_stage, int):
            n_blocks_per_stage = [n_blocks_per_stage] * n_stages
        _check_stages(
            n_stages,
            features_per_stage=features_per_stage,
            n_blocks_per_stage=n_blocks_per_stage,
            strides=strides,
            kernel_sizes=kernel_sizes,
        )
        widths, blocks = list(features_per_stage), list(n_blocks_per_stage)
        steps = [as_triple(stride, "strides") for stride in strides]
        kernels = [_odd(as_triple(kernel, "kernel_sizes")) for kernel in kernel_sizes]
        self.features_per_stage, self.strides = widths, steps
        coarse_to_fine = range(n_stages - 1, 0, -1)

        self.conv_blocks_context = nn.ModuleList(
            _stage(c_in, c_out, kernel, stride, depth)
            for (c_in, c_out), kernel, stride, depth in zip(
                pairwise([input_channels, *widths]), kernels, steps, blocks, strict=True
            )
        )
        self.upsample_layers = nn.ModuleList(Upsample(widths[s], widths[s - 1], steps[s]) for s in coarse_to_fine)
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * widths[s - 1], widths[s - 1], kernels[s - 1], (1, 1, 1), blocks[s - 1]) for s in coarse_to_fine
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(widths[s - 1], num_classes, 1) for s in coarse_to_fine)
        self.decoder = _DecoderSwitch(deep_supervision)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages, fine to coarse.

        Args:
            x: image ``(B, C, D, H, W)``, each axis divisible by the product of its strides.
        """
        maps = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            maps.append(x)
        return maps

    def decode(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Turn the feature maps of :meth:`encode` into logits.

        Args:
            maps: one map per stage, fine to coarse; not changed.

        Returns:
            ``(B, num_classes, D, H, W)``, or with deep supervision a list of ``n_stages - 1`` of them, fine to coarse.
        """
        levels = self._levels(maps)
        if not self.decoder.deep_supervision:
            return cast("Tensor", self.segmentation_head(levels[-1]))
        return [head(level) for head, level in zip(self.seg_outputs, levels, strict=True)][::-1]

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn the feature maps of :meth:`encode` into what the finest segmentation head gets.

        Args:
            maps: one map per stage, fine to coarse; not changed.

        Returns:
            ``(B, features_per_stage[0], D, H, W)``.
        """
        return self._levels(maps)[-1]

    @property
    def decoder_modules(self) -> Sequence[nn.Module]:
        """The decoder without its segmentation heads."""
        return [self.upsample_layers, self.conv_blocks_localization]

    @property
    def segmentation_head(self) -> nn.Module:
        """The head of the finest level."""
        return self.seg_outputs[-1]

    def _levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of every level of the decoder, coarse to fine."""
        *skips, x = maps
        levels = []
        for upsample, stage, skip in zip(
            self.upsample_layers, self.conv_blocks_localization, reversed(skips), strict=True
        ):
            x = stage(torch.cat((upsample(x), skip), dim=1))
            levels.append(x)
        return levels

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment the image ``(B, C, D, H, W)``: see :meth:`decode` for what comes out."""
        return self.decode(self.encode(x))


STUNET_PATH = f"{STUNet.__module__}.{STUNet.__qualname__}"
"""What a plans file calls the network; nnU-Net imports it by this name."""


def stunet_kwargs(size: str, strides: Sequence[PerAxis]) -> dict[str, Any]:
    """Return the constructor's arguments for a published size, in a form that JSON can hold.

    Args:
        size: ``small``, ``base``, ``large`` or ``huge``.
        strides: the strides of a plan, the first one (1, 1, 1). STU-Net takes its first five poolings, and (1, 1, 1)
            for those that the plan does not have.

    Raises:
        ValueError: another size, or strides that are not those of a 3-D plan.
    """
    if size not in STUNET_SIZES:
        raise ValueError(f"Unknown size of STU-Net: {size!r}. Choose one of {', '.join(STUNET_SIZES)}.")
    steps = [list(as_triple(stride, "STU-Net is 3-D: each of its strides")) for stride in strides]
    if not steps or steps[0] != [1, 1, 1]:
        raise ValueError(
            f"STU-Net needs the strides of a plan, beginning with [1, 1, 1] for full resolution, but got {steps}."
        )
    scale, n_stages = STUNET_SIZES[size], len(WIDTH_FACTORS)
    padded = steps + [[1, 1, 1] for _ in range(n_stages)]
    return {
        "n_stages": n_stages,
        "features_per_stage": [scale.width * factor for factor in WIDTH_FACTORS],
        "n_blocks_per_stage": [scale.depth] * n_stages,
        "strides": padded[:n_stages],
        "kernel_sizes": [[3, 3, 3] for _ in range(n_stages)],
    }


def _stage(c_in: int, c_out: int, kernel: Triple, stride: Triple, depth: int) -> nn.Sequential:
    first = ResidualBlock(c_in, c_out, kernel, stride, project_skip=True)
    rest = (ResidualBlock(c_out, c_out, kernel, (1, 1, 1), project_skip=False) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


def _odd(kernel: Triple) -> Triple:
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"Kernel sizes must be odd, so that padding keeps the shape, but got {list(kernel)}.")
    return kernel


def _check_stages(n_stages: int, **per_stage: Sequence[Any]) -> None:
    if n_stages < 2:
        raise ValueError(f"STU-Net needs at least 2 stages, but n_stages is {n_stages}.")
    for name, entries in per_stage.items():
        if len(entries) != n_stages:
            raise ValueError(f"{name} needs one entry for each of the {n_stages} stages, but has {len(entries)}.")
