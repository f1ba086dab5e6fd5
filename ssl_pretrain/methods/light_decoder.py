"""SparK's light decoder and the densification of its inputs, for any strides per axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, is_maskable
from ssl_pretrain.networks.base import FeatureMap
from ssl_pretrain.networks.masked import SparseMap, whole
from ssl_pretrain.networks.recompute import checkpointed
from ssl_pretrain.sparse import SparseMask, convert
from ssl_pretrain.sparse.block_conv import conv_at, conv_geometry, conv_transpose_at
from ssl_pretrain.sparse.layers import MaskedInstanceNorm3d
from ssl_pretrain.sparse.packing import Packing

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

    def forward(self, feature_map: SparseMap, at: Packing | None = None) -> Tensor:
        """A map of C channels -> (B, width, D, H, W), dense. Runs inside the mask's context.

        Args:
            feature_map: of the source.
            at: cells that are projected alone, from the whole filled map: then (B, width, n·d, h, w), packed.
        """
        with self.mask.packed_layout(feature_map.packed):
            x = self.norm(feature_map.values)
        x = whole(SparseMap(x, feature_map.packed), self.mask)
        level = self.norm.level_of(x)
        if self.token is not None and level is not None:
            # Masked voxels are 0 here, so adding the token to them alone fills them.
            x = x + self.token.to(x.dtype).view(1, -1, 1, 1, 1) * (1.0 - level.visible)
        if at is not None:
            return conv_at(self.projection, x, at) if isinstance(self.projection, nn.Conv3d) else at.pack(x)
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

    The finest blocks may compute some cells alone, packed as in :mod:`ssl_pretrain.sparse.packing`. The first of them
    goes up from the whole map. From there on a convolution reads 0 where its neighbour is not one of these cells, and
    norms have the statistics of these cells. The image is 0 elsewhere.

    Args:
        width: channels of the coarsest map that comes in.
        strides: of each block, coarse to fine.
        out_channels: of the image.
        norm: of every block.
        kind: of every block.
        finest: most channels at the resolution of the image; None for no limit.
        coarse: blocks after which a second head makes a coarse image; None for none.
        alone: blocks after which the others compute decoded cells alone; None for none.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is inside them.

    Attributes:
        decoded: the cells that are decoded, "visible" to the finest blocks.
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
        alone: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.coarse, self.alone, self.checkpointing = coarse, alone, checkpointing
        self.decoded = SparseMask()
        self.widths = decoder_widths(width, strides, finest)
        widths = zip(self.widths[:-1], self.widths[1:], strides, strict=True)
        self.blocks = nn.ModuleList(DecoderBlock(a, b, stride, norm, kind) for a, b, stride in widths)
        self.head: nn.Module | None = nn.Conv3d(self.widths[-1], out_channels, 1)
        self.coarse_head = None if coarse is None else nn.Conv3d(self.widths[coarse], out_channels, 1)
        self.apply(_initialize)
        if alone is not None:
            for module in (self.blocks[alone].conv, *self.blocks[alone + 1 :], self.head):
                convert(module, self.decoded)

    def cut(self) -> None:
        """Leave out the blocks and the head that come after the coarse image."""
        self.blocks, self.head = self.blocks[: self.coarse], None

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Densified maps, coarse to fine, at most one per block -> the finest image (B, C, D, H, W), and the coarse.

        Where blocks compute cells alone, it runs inside the context of :attr:`decoded`, and the maps that :meth:`packs`
        names are packed.
        """
        x, coarse = maps[0], None
        for i, block in enumerate(list(self.blocks)[: self.alone]):
            x = self._run(block, x if i == 0 or i >= len(maps) else x + maps[i])
            if self.coarse_head is not None and i + 1 == self.coarse:
                coarse = self.coarse_head(x)
        if self.head is None:
            return cast("Tensor", coarse), coarse
        return self.head(x) if self.alone is None else self._decode_alone(x, maps, self.alone), coarse

    def packs(self, level: int) -> bool:
        """Whether the map before a block, counted from the coarsest, holds decoded cells alone."""
        return self.alone is not None and level > self.alone

    # Its autograd functions, and what is kept per mask, would break the compiler's graph at every layer.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _decode_alone(self, x: Tensor, maps: Sequence[Tensor], first: int) -> Tensor:
        """The finest blocks, for the decoded cells alone, from the map that comes before them."""
        packing = self.decoded.packing
        blocks = cast("list[DecoderBlock]", list(self.blocks))
        for i, block in enumerate(blocks[first:], first):
            if i < len(maps):
                x = x + maps[i]
            if i == first:
                up = block.up_sample
                x = conv_transpose_at(up, x, packing) if isinstance(up, nn.ConvTranspose3d) else packing.pack(x)
            with self.decoded.packed_layout():
                x = self._run(block.conv if i == first else block, x)
        with self.decoded.packed_layout():
            x = cast("nn.Module", self.head)(x)
        return packing.unpack(x)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return cast("Tensor", checkpointed(block, x, self.decoded.replay()) if self.checkpointing else block(x))


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


def goes_up_alone(stride: Triple) -> bool:
    """Whether the step of a block can be computed for some cells alone, with a halo of one voxel."""
    return conv_geometry(*_window(stride)) is not None


def _up_sample(width: int, out_width: int, stride: Triple) -> nn.ConvTranspose3d:
    """Transposed convolution; along an axis that does not grow it has no extent (published: kernel 4, stride 2)."""
    return nn.ConvTranspose3d(width, out_width, *_window(stride))


def _window(stride: Triple) -> tuple[Triple, Triple, Triple]:
    """Kernel, stride and padding of a step upwards."""
    kernel = tuple(1 if s == 1 else s + 2 * ((s + 1) // 2) for s in stride)
    padding = tuple(0 if s == 1 else (s + 1) // 2 for s in stride)
    return cast("Triple", kernel), stride, cast("Triple", padding)


def _norm(kind: Norm, width: int) -> nn.Module:
    return nn.BatchNorm3d(width) if kind == "batch" else nn.InstanceNorm3d(width, affine=True)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
