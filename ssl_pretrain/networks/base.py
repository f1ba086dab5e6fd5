"""What a method needs to know of a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, cast

from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.anatomy import Anatomy, anatomy_of
from ssl_pretrain.networks.decoding import PARTS, Decoding, head_like

Family = Literal["convolutional", "transformer"]
"""Kinds of networks, which are optimised differently."""

Need = Literal["convolutions", "windows", "tokens", "kept tokens", "decoder"]
"""What methods ask of a network: an encoder of convolutions; or one of windows of tokens, which sees images of any
size; or one of tokens of one patch, that it can run on the tokens it is told to keep; a decoder of its own."""


class FeatureMap(NamedTuple):
    """One map of an encoder.

    Attributes:
        channels: its channels.
        stride: voxels of the input per voxel of the map, along (D, H, W).
    """

    channels: int
    stride: Triple


class StagedEncoder(nn.Module):
    """The encoder side of a U-Net: a stem, if there is one, and stages that each yield a feature map.

    A view: the modules belong to the segmentation network, and so do their parameters.
    """

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem if stem is not None else nn.Identity()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> feature maps, fine to coarse."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def first(self, count: int) -> StagedEncoder:
        """The encoder up to its ``count``-th stage, sharing the modules."""
        return StagedEncoder(list(self.stages)[:count], self.stem)


class Backbone(nn.Module):
    """A whole segmentation network, built exactly as fine-tuning will build it, seen through its encoder.

    Export is ``network.state_dict()``: nothing is renamed.

    Attributes:
        network: the network that fine-tuning builds; for an encoder of the user's own, that encoder.
        encoder: image (B, C, D, H, W) -> list of feature maps, fine to coarse; its parameters are the network's.
        feature_maps: channels and cumulative stride of each of these maps.
        architecture: dotted path of the network's class, and its keyword arguments where they are known.
        family: what optimises it.
        encoder_offers: what methods may ask of the encoder.
        decodes_image: whether the first map is the image itself, which the decoder sees: it is none of the features.
        normalises_over_space: whether a map of a single voxel has no statistics to normalise by.
    """

    architecture: str = ""
    architecture_kwargs: dict[str, object] | None = None
    architecture_imports: tuple[str, ...] = ()
    family: Family = "convolutional"
    encoder_offers: frozenset[Need] = frozenset({"convolutions"})
    decodes_image: bool = False
    normalises_over_space: bool = True

    def __init__(
        self, network: nn.Module, encoder: nn.Module, feature_maps: Sequence[FeatureMap], input_channels: int
    ) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder
        self.feature_maps = tuple(feature_maps)
        self.input_channels = input_channels

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> feature maps, fine to coarse."""
        return cast("list[Tensor]", self.encoder(x))

    @property
    def features(self) -> tuple[FeatureMap, ...]:
        """Channels and strides of the maps that the encoder computes; :meth:`encode` gives them last."""
        return self.feature_maps[self.decodes_image :]

    def set_drop_path(self, rate: float) -> None:
        """Drop residual branches of a transformer in training; a convolutional network has none."""

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of the network lie."""
        return anatomy_of(self.network)

    # A network of the user's own may say these four itself, on its class or on an instance.
    @cached_property
    def encoder_key(self) -> str:
        """Name of the submodule that holds the encoder, as nnU-Net's loaders want it."""
        return self.anatomy.encoder_key

    @cached_property
    def stem_key(self) -> str:
        """Name of the submodule that first touches the image."""
        return self.anatomy.stem_key

    @cached_property
    def input_projection_keys(self) -> tuple[str, ...]:
        """Modules whose weight depends on the number of input channels."""
        return self.anatomy.input_projection_keys

    @cached_property
    def position_keys(self) -> tuple[str, ...]:
        """Tensors that depend on the patch size (position embeddings); none in a convolutional network."""
        return tuple(filter(None, [self.anatomy.position_key]))

    @property
    def has_decoder(self) -> bool:
        """Whether :meth:`decode_features`, :meth:`new_head` and :attr:`segmentation_head` work."""
        return self.anatomy.decoding is not None

    @property
    def offers(self) -> frozenset[Need]:
        """What methods may ask of this network."""
        return self.encoder_offers | (frozenset[Need](["decoder"]) if self.has_decoder else frozenset())

    def decode_features(self, maps: Sequence[Tensor]) -> Tensor:
        """What the network's own decoder makes of the feature maps, just before its segmentation head.

        Args:
            maps: of :meth:`encode`, fine to coarse; not changed.

        Returns:
            (B, F, D, H, W) of the finest level, which need not have the resolution of the image.

        Raises:
            ValueError: the network has no decoder of its own.
        """
        return self._decoding().decode_features(maps)

    def dense(self, x: Tensor) -> Tensor:
        """Image (B, C, D, H, W) -> the decoder's features: all of the network but its segmentation head."""
        return self.decode_features(self.encode(x))

    def new_head(self, channels: int) -> nn.Module:
        """A fresh module from the decoder's features to (B, ``channels``, D, H, W) at the resolution of the image.

        Raises:
            ValueError: the network has no decoder of its own.
        """
        return head_like(self.segmentation_head, channels)

    @property
    def segmentation_head(self) -> nn.Module:
        """The network's own head of the finest level; raises ValueError where it has no decoder."""
        return self._decoding().segmentation_head

    @property
    def encoder_keys(self) -> tuple[str, ...]:
        """Names in ``network.state_dict()`` of all tensors of the encoder, every alias included."""
        return self._names_of([self.encoder])

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        """Names in ``network.state_dict()`` of all tensors of the decoder but its heads; none without a decoder."""
        return self._names_of(self._decoding().decoder_modules) if self.has_decoder else ()

    def _names_of(self, modules: Sequence[nn.Module]) -> tuple[str, ...]:
        ids = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
        named = (
            *self.network.named_parameters(remove_duplicate=False),
            *self.network.named_buffers(remove_duplicate=False),
        )
        # A buffer that is not saved (a table that the constructor computes) is no key.
        saved = self.network.state_dict().keys()
        return tuple(name for name, tensor in named if id(tensor) in ids and name in saved)

    def _decoding(self) -> Decoding:
        decoding = self.anatomy.decoding
        if decoding is None:
            raise ValueError(
                f"{type(self.network).__name__} has no decoder to pretrain. Use a method that trains the encoder "
                f"alone, a network of -network's list, or give your own {', '.join(PARTS)} "
                "(ssl_pretrain.networks.decoding.Decoding)."
            )
        return decoding

    def truncated(self, stages: int | None) -> tuple[nn.Module, tuple[FeatureMap, ...]]:
        """The encoder and its maps up to a number of stages.

        Args:
            stages: how many stages to keep, from the finest; None for all.

        Raises:
            ValueError: more stages than there are, fewer than two, or an encoder that cannot be cut.
        """
        total = len(self.feature_maps)
        if stages is None or stages == total:
            return self.encoder, self.feature_maps
        if not isinstance(self.encoder, StagedEncoder) or not 2 <= stages < total:
            raise ValueError(
                f"stages={stages} is not possible with this network of {total} feature maps. Use 2 to {total}, or "
                "leave it out for all; an encoder of your own can only be used whole."
            )
        return self.encoder.first(stages), self.feature_maps[:stages]
