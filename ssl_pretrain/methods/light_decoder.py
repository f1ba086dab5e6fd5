"""SparK's light decoder and the densification of its inputs, for any strides per axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, is_maskable
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import SparseMap, whole
from ssl_pretrain.networks.recompute import checkpointed
from ssl_pretrain.sparse import SparseMask
from ssl_pretrain.sparse.layers import MaskedInstanceNorm3d

Norm = Literal["batch", "instance"]
DecoderKind = Literal["spark", "slim"]

TOKEN_STD = 0.02
DENSIFY_EPS = 1e-6


class Densify(nn.Module):
    """Fills the masked voxels of one feature map and projects it to the decoder's width.

    Norm over the visible voxels -> mask token where masked -> projection. A map that is coarser than the mask's grid is
    all visible and has no token.

    Args:
        source: the map.
        width: channels that come out.
        pointwise: the projection is 1×1×1, or nothing where the width is right already (SparK's coarsest map, S3D's
            finest); otherwise 3×3×3.
        cell: voxels of a mask cell per axis.
        mask: of the network.
        affine: whether the norm has weights.
    """

    def __init__(
        self, source: FeatureMap, width: int, pointwise: bool, cell: Triple, mask: SparseMask, affine: bool = True
    ) -> None:
        super().__init__()
        self.norm = MaskedInstanceNorm3d(source.channels, eps=DENSIFY_EPS, affine=affine)
        self.norm.sparse_mask = self.mask = mask
        self.token: nn.Parameter | None = None
        if is_maskable(source.stride, cell):
            self.token = nn.Parameter(torch.zeros(source.channels))
            nn.init.trunc_normal_(self.token, std=TOKEN_STD, a=-TOKEN_STD, b=TOKEN_STD)
        if not pointwise:
            self.projection: nn.Module = nn.Conv3d(source.channels, width, 3, padding=1)
        elif source.channels != width:
            self.projection = nn.Conv3d(source.channels, width, 1)
        else:
            self.projection = nn.Identity()

    def forward(self, feature_map: SparseMap) -> Tensor:
        """A map of C channels -> (B, width, D, H, W), dense. Runs inside the mask's context."""
        with self.mask.packed_layout(feature_map.packed):
            x = self.norm(feature_map.values)
        x = whole(SparseMap(x, feature_map.packed), self.mask)
        level = self.norm.level_of(x)
        if self.token is not None and level is not None:
            # Masked voxels are 0 here, so adding the token to them alone fills them.
            x = x + self.token.to(x.dtype).view(1, -1, 1, 1, 1) * (1.0 - level.visible)
        return cast("Tensor", self.projection(x))


class DecoderBlock(nn.Module):
    """Up by one level's stride, then conv-norm-ReLU6-conv-norm.

    ``spark`` (published) goes up and convolves once at the width that comes in. ``slim`` changes the width while it
    goes up, so both 3×3×3 convolutions run at the width that goes out.
    """

    def __init__(self, width: int, out_width: int, stride: Triple, norm: Norm, kind: DecoderKind = "spark") -> None:
        super().__init__()
        goes_up = max(stride) > 1
        inner = out_width if kind == "slim" else width
        self.up_sample = _up_sample(width, inner, stride) if goes_up else nn.Identity()
        self.conv = nn.Sequential(
            nn.Conv3d(inner if goes_up else width, inner, 3, padding=1, bias=False),
            _norm(norm, inner),
            nn.ReLU6(inplace=True),
            nn.Conv3d(inner, out_width, 3, padding=1, bias=False),
            _norm(norm, out_width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, d, h, w) -> (B, out_width, d·s, h·s, w·s)."""
        return cast("Tensor", self.conv(self.up_sample(x)))


class LightDecoder(nn.Module):
    """One block per level: the coarsest map goes in, each finer one is added, the image comes out.

    Widths halve with every block that raises the resolution. Source: SparK (arXiv 2301.03580), in the 3-D form of
    AnatoMask; there every level doubles every axis, here each has its own stride per axis.

    Args:
        width: channels of the coarsest map that comes in.
        strides: of each block, coarse to fine.
        out_channels: of the image.
        norm: of every block.
        kind: of every block.
        finest: most channels at the resolution of the image; None for no limit.
        coarse: blocks after which a second head makes a coarse image; None for none.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is inside them.
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[Triple],
        out_channels: int,
        norm: Norm,
        kind: DecoderKind = "spark",
        finest: int | None = None,
        coarse: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.coarse, self.checkpointing = coarse, checkpointing
        self.widths = decoder_widths(width, strides, finest)
        widths = zip(self.widths[:-1], self.widths[1:], strides, strict=True)
        self.blocks = nn.ModuleList(DecoderBlock(a, b, stride, norm, kind) for a, b, stride in widths)
        self.head: nn.Module | None = nn.Conv3d(self.widths[-1], out_channels, 1)
        self.coarse_head = None if coarse is None else nn.Conv3d(self.widths[coarse], out_channels, 1)
        self.apply(_initialize)

    def cut(self) -> None:
        """Leave out the blocks and the head that come after the coarse image."""
        self.blocks, self.head = self.blocks[: self.coarse], None

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Densified maps, coarse to fine, at most one per block -> the finest image (B, C, D, H, W), and the coarse."""
        x, coarse = maps[0], None
        for i, block in enumerate(self.blocks):
            x = self._run(block, x if i == 0 or i >= len(maps) else x + maps[i])
            if self.coarse_head is not None and i + 1 == self.coarse:
                coarse = self.coarse_head(x)
        return cast("Tensor", coarse if self.head is None else self.head(x)), coarse

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return cast("Tensor", checkpointed(block, x) if self.checkpointing else block(x))


def decoder_strides(strides: Sequence[Triple]) -> list[Triple]:
    """Stride of each decoder block, coarse to fine, for maps of these cumulative strides (fine to coarse).

    Where the finest map is coarser than the image, blocks of stride 2 per axis follow until the image is reached.
    """
    steps: list[Triple] = []
    for coarse, fine in zip(strides[:0:-1], strides[-2::-1], strict=True):
        if any(c % f for c, f in zip(coarse, fine, strict=True)):
            raise ValueError(f"Strides of feature maps must divide one another; {fine} does not divide {coarse}.")
        steps.append(cast("Triple", tuple(c // f for c, f in zip(coarse, fine, strict=True))))
    rest = list(strides[0])
    while max(rest) > 1:
        step = tuple(2 if r % 2 == 0 else r for r in rest)
        steps.append(cast("Triple", step))
        rest = [r // s for r, s in zip(rest, step, strict=True)]
    return steps


def decoder_widths(width: int, strides: Sequence[Triple], finest: int | None = None) -> list[int]:
    """Channels before each decoder block and after the last one.

    Args:
        width: channels before the first block.
        strides: of each block, coarse to fine.
        finest: most channels where the resolution of the image is reached; a channel costs most there.
    """
    widths = [width]
    for i, stride in enumerate(strides):
        halved = max(widths[-1] // 2, 1) if max(stride) > 1 else widths[-1]
        is_full_resolution = all(max(later) == 1 for later in strides[i + 1 :])
        widths.append(min(halved, finest) if finest is not None and is_full_resolution else halved)
    return widths


def _up_sample(width: int, out_width: int, stride: Triple) -> nn.Module:
    """Transposed convolution; along an axis that does not grow it has no extent (published: kernel 4, stride 2)."""
    kernel: Any = tuple(1 if s == 1 else s + 2 * ((s + 1) // 2) for s in stride)
    padding: Any = tuple(0 if s == 1 else (s + 1) // 2 for s in stride)
    return nn.ConvTranspose3d(width, out_width, kernel, stride, padding)


def _norm(kind: Norm, width: int) -> nn.Module:
    return nn.BatchNorm3d(width) if kind == "batch" else nn.InstanceNorm3d(width, affine=True)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
