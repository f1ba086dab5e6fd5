"""Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266) of MONAI's parts: attention in shifted windows, and a U-Net.

Names, tensors and results are those of MONAI's ``SwinUNETR``, so that the weights published for it fit. The decoder
sees the image itself, at full resolution, and the hidden states of the transformer, at 1/2 to 1/32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssl_pretrain.functional.geometry import Triple, check_patch
from ssl_pretrain.networks.base import Backbone, Family, FeatureMap, Need
from ssl_pretrain.networks.monai_parts import monai_parts
from ssl_pretrain.networks.request import Downsample, NetworkRequest, check_counts, with_settings
from ssl_pretrain.networks.tokens import DropPath, drop_path_rates, untyped

TOKEN: Triple = (2, 2, 2)
"""Voxels of a token of the embedding; each stage then halves the resolution."""

STAGES = 4
STRIDE: Triple = (32, 32, 32)
"""Of the last stage."""

CORNERS: dict[str, tuple[Triple, ...]] = {
    "merging": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "mergingv2": tuple(cast("Triple", corner) for corner in product(range(2), repeat=3)),
}
"""Neighbours along (D, H, W) in the order in which they are merged. MONAI's ``merging`` was as here when the published
weights were trained; from 1.6 on it takes each neighbour once, in another order than ``mergingv2``."""

SWIN = "swinViT"
DECODER = (
    *(f"encoder{number}" for number in (1, 2, 3, 4, 10)),
    *(f"decoder{number}" for number in (5, 4, 3, 2, 1)),
)
"""MONAI's names of the convolutional parts; what it calls encoders there refines the image and the hidden states."""


@dataclass(frozen=True)
class SwinSize:
    """Scale of a Swin UNETR. The defaults are those of the published weights.

    Attributes:
        feature_size: channels of the embedding, a multiple of the heads; each stage doubles them.
        depths: blocks of each stage; one number for all four.
        heads: of the attention of the first stage; each further one has twice as many.
        window: tokens per axis of a window of attention.
        downsample: how a stage merges eight neighbours: ``merging`` as the published weights were trained, which takes
            two of them twice and two never, or ``mergingv2``, which takes each once.
        normalize: bring each hidden state to mean 0 and variance 1 over the channels before the decoder sees it, in
            pretraining and in fine-tuning alike.
    """

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: int = 3
    window: int = 7
    downsample: Downsample = "merging"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_counts(feature_size=self.feature_size, heads=self.heads, window=self.window)
        depths = [self.depths] * STAGES if isinstance(self.depths, int) else list(self.depths)
        if len(depths) != STAGES:
            raise ValueError(
                f"depths of a Swin UNETR are one number, or one for each of its {STAGES} stages, got {self.depths!r}."
            )
        for depth in depths:
            check_counts(depths=depth)
        object.__setattr__(self, "depths", tuple(depths))
        if self.feature_size % self.heads:
            raise ValueError(
                f"feature_size {self.feature_size} of a Swin UNETR must be a multiple of its {self.heads} heads."
            )
        if self.downsample not in get_args(Downsample):
            raise ValueError(f"downsample must be one of {', '.join(get_args(Downsample))}, got {self.downsample!r}.")
        if not isinstance(self.normalize, bool):
            raise ValueError(f"normalize must be true or false, got {self.normalize!r}.")


class PatchMerging(nn.Module):
    """Merging of 2³ tokens to one of twice the channels, with the arguments and tensors of MONAI's.

    Args:
        dim: channels of a token.
        norm_layer: of the merged channels.
        spatial_dims: 3.
        corners: of the eight tokens, see :data:`CORNERS`.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int, corners: Sequence[Triple]) -> None:
        super().__init__()
        assert spatial_dims == len(TOKEN)
        self.corners = tuple(corners)
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) with even axes -> (B, D/2, H/2, W/2, 2C)."""
        merged = torch.cat([x[:, d::2, h::2, w::2] for d, h, w in self.corners], -1)
        return cast("Tensor", self.reduction(self.norm(merged)))


class _HostNumbers(TorchFunctionMode):
    """MONAI's constructor reads rates of dropping from a tensor, which the ``meta`` device could not give."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*args, **(kwargs or {}), **({"device": "cpu"} if function is torch.linspace else {}))


class SwinUNETR(nn.Module):
    """Swin UNETR for images of any size that is a multiple of 32.

    Args:
        input_channels: of the image.
        num_classes: channels of the output.
        size: fields of :class:`SwinSize`.

    Attributes:
        normalize: see :class:`SwinSize`.

    Raises:
        ValueError: MONAI is not installed, or a size that there cannot be.
    """

    key_to_encoder = SWIN
    key_to_stem = f"{SWIN}.patch_embed"

    def __init__(self, input_channels: int, num_classes: int, **size: Any) -> None:
        super().__init__()
        made = SwinSize(**size)
        nets, blocks = monai_parts("SwinUNETR")
        self.normalize = made.normalize
        width, heads = made.feature_size, [made.heads * 2**stage for stage in range(STAGES)]
        with _HostNumbers():
            self.swinViT = nets.swin_unetr.SwinTransformer(
                input_channels,
                width,
                (made.window,) * 3,
                TOKEN,
                made.depths,
                heads,
                downsample=partial(PatchMerging, corners=CORNERS[made.downsample]),
            )
        common = {"spatial_dims": 3, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        widths = {1: (input_channels, width), **{2 + i: (width << i, width << i) for i in range(3)}}
        for number, (before, after) in (widths | {10: (width << 4, width << 4)}).items():
            self.add_module(
                f"encoder{number}", blocks.UnetrBasicBlock(in_channels=before, out_channels=after, stride=1, **common)
            )
        for number in (5, 4, 3, 2, 1):
            before, after = width << (number - 1), width << max(number - 2, 0)
            self.add_module(
                f"decoder{number}",
                blocks.UnetrUpBlock(in_channels=before, out_channels=after, upsample_kernel_size=2, **common),
            )
        self.out = blocks.UnetOutBlock(spatial_dims=3, in_channels=width, out_channels=num_classes)
        # The projection of a skip is missing where the channels that come in are as many as those that go out.
        own = (f"encoder1.layer.{name}.conv" for name in ("conv1", "conv3"))
        there = dict(self.named_modules())
        self.keys_to_in_proj = (f"{self.key_to_stem}.proj", *(name for name in own if name in there))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W), each axis a multiple of 32 -> logits (B, num_classes, D, H, W)."""
        check_image(x)
        return cast("Tensor", self.out(self.decode_features([x, *self.swinViT(x, self.normalize)])))

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """The image and the five hidden states, fine to coarse -> features (B, F, D, H, W)."""
        parts = untyped(self)
        image, half, quarter, eighth, sixteenth, x = maps
        x = parts.decoder5(parts.encoder10(x), sixteenth)
        x = parts.decoder4(x, parts.encoder4(eighth))
        x = parts.decoder3(x, parts.encoder3(quarter))
        x = parts.decoder2(x, parts.encoder2(half))
        return cast("Tensor", parts.decoder1(x, parts.encoder1(image)))

    @property
    def decoder_modules(self) -> Sequence[nn.Module]:
        """Everything but the transformer and the head."""
        return [self.get_submodule(name) for name in DECODER]

    @property
    def segmentation_head(self) -> nn.Module:
        """From features to logits."""
        return cast("nn.Module", self.out)


class SwinEncoder(nn.Module):
    """The transformer of a Swin UNETR; a view."""

    def __init__(self, network: SwinUNETR) -> None:
        super().__init__()
        self.vit = network.swinViT
        self.normalize = network.normalize

    @property
    def stages(self) -> list[nn.Module]:
        """The four stages, each with its merging of neighbours."""
        vit = untyped(self.vit)
        return [stage for (stage,) in (vit.layers1, vit.layers2, vit.layers3, vit.layers4)]

    def embed(self, x: Tensor) -> Tensor:
        """See :meth:`SwinBackbone.embed`."""
        check_image(x)
        return cast("Tensor", untyped(self.vit).patch_embed(x))

    def hidden_states(self, embedded: Tensor) -> list[Tensor]:
        """See :meth:`SwinBackbone.hidden_states`."""
        vit = untyped(self.vit)
        states = [vit.pos_drop(embedded)]
        for stage in self.stages:
            states.append(stage(states[-1].contiguous()))
        return [vit.proj_out(state, self.normalize) for state in states]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> the image itself, which the decoder sees, and the five hidden states."""
        return [x, *self.hidden_states(self.embed(x))]


class SwinBackbone(Backbone):
    """A Swin UNETR.

    Args:
        network: of ours.
        size: of it.
        input_channels: of the image.

    Attributes:
        token: voxels of a token of the embedding per axis.
        width: channels of the embedding.
    """

    encoder: SwinEncoder
    family: Family = "transformer"
    encoder_offers: frozenset[Need] = frozenset({"windows"})
    decodes_image = True
    token = TOKEN

    def __init__(self, network: SwinUNETR, size: SwinSize, input_channels: int) -> None:
        self.width = size.feature_size
        hidden = [FeatureMap(self.width << i, (2 << i,) * 3) for i in range(STAGES + 1)]
        super().__init__(
            network, SwinEncoder(network), [FeatureMap(input_channels, (1, 1, 1)), *hidden], input_channels
        )
        self.architecture = SWIN_PATH
        self.architecture_kwargs = {**asdict(size), "depths": list(size.depths)}

    def embed(self, x: Tensor) -> Tensor:
        """Image (B, C, D, H, W) -> tokens (B, E, D/2, H/2, W/2), each of its own voxels alone.

        Raises:
            ValueError: an axis is no multiple of 32; names the nearest sizes that are.
        """
        return self.encoder.embed(x)

    def hidden_states(self, embedded: Tensor) -> list[Tensor]:
        """Tokens of :meth:`embed`, some of them perhaps replaced -> the maps of :meth:`encode` but for the image."""
        return self.encoder.hidden_states(embedded)

    def set_drop_path(self, rate: float) -> None:
        """Drop residual branches in training, at a rate that rises linearly from 0 in the first block to ``rate``."""
        blocks = [block for stage in self.encoder.stages for block in untyped(stage).blocks]
        for block, share in zip(blocks, drop_path_rates(rate, len(blocks)), strict=True):
            block.drop_path = DropPath(share).train(self.training)


def check_image(x: Tensor) -> None:
    """Refuse an image that cannot be halved five times.

    Raises:
        ValueError: names the axis and the nearest sizes.
    """
    check_patch((x.shape[2], x.shape[3], x.shape[4]), STRIDE)


def build_swin(request: NetworkRequest) -> SwinBackbone:
    """Swin UNETR of the published size, with the fields in ``request.settings`` changed."""
    return _backbone(with_settings(SwinSize(), request.settings, "SwinUNETR"), request)


def build_planned_swin(request: NetworkRequest) -> SwinBackbone:
    """The Swin UNETR that the plans name."""
    return _backbone(SwinSize(**request.architecture["arch_kwargs"]), request)


def _backbone(size: SwinSize, request: NetworkRequest) -> SwinBackbone:
    check_patch(request.patch, STRIDE)
    network = SwinUNETR(request.input_channels, request.num_classes, **asdict(size))
    return SwinBackbone(network, size, request.input_channels)


SWIN_PATH = f"{SwinUNETR.__module__}.{SwinUNETR.__qualname__}"
"""What a plans file calls the network."""
