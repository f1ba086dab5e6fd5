"""The encoder of a file of pretrained weights, for features: classification, retrieval, whatever is not nnU-Net."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.networks.anatomy import is_rotary
from ssl_pretrain.networks.base import Backbone, FeatureMap, StagedEncoder
from ssl_pretrain.networks.swin import SwinEncoder
from ssl_pretrain.networks.tokens import TokenEncoder, resize_positions, untyped
from ssl_pretrain.transfer.blueprint import Blueprint, blueprint_of
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights

Pool = Literal["coarsest", "all"]


class Features(NamedTuple):
    """What an encoder makes of images.

    Attributes:
        maps: feature maps (B, C_i, D_i, H_i, W_i), fine to coarse.
        pooled: (B, E), one vector per image: means over the voxels of a map.
    """

    maps: list[Tensor]
    pooled: Tensor


class PretrainedEncoder(nn.Module):
    """An encoder without its decoder, and what there is to know of it.

    Args:
        encoder: image -> feature maps, fine to coarse.
        feature_maps: channels and cumulative strides of these maps.
        blueprint: of the network.
        pool: see :func:`load_encoder`.

    Attributes:
        embedding_size: length of the pooled vector, E.
        input_channels: channels of the image.
        patch_size: voxels of the patches of pretraining, (D, H, W).
        spacing: mm per voxel along (D, H, W) of the images of pretraining; None where the file does not say.
        normalization: what was done to the intensities of each channel, in nnU-Net's words.
        about: what the file says of the pretraining: the entry ``pretraining``, or nnssl's ``nnssl_adaptation_plan``.
    """

    def __init__(
        self, encoder: nn.Module, feature_maps: Sequence[FeatureMap], blueprint: Blueprint, pool: Pool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature_maps = tuple(feature_maps)
        self.pool = pool
        self.embedding_size = sum(entry.channels for entry in self._pooled(self.feature_maps))
        self.input_channels, self.patch_size = blueprint.input_channels, blueprint.patch
        self.spacing, self.normalization = blueprint.spacing, blueprint.normalization
        self.about = blueprint.about

    def forward(self, image: Tensor) -> Features:
        """Features of images of any size.

        Sizes that the coarsest stride does not divide, or the token of a transformer, are padded with zeros at the far
        ends, as nnU-Net pads images that are smaller than its patch. A transformer's learned positions are interpolated
        to the grid of the image, and its rotary ones computed for it, as for a network that is built for that size.

        Args:
            image: (B, C, D, H, W), with the spacing and the normalisation of pretraining.

        Raises:
            ValueError: another number of axes or channels, or an image too small for the strides.
        """
        maps = cast("list[Tensor]", self.encoder(functional.pad(image, self._margins(image))))
        # The decoder of a UNETR and of a Swin UNETR sees the image as well; it is no feature.
        maps = maps[-len(self.feature_maps) :]
        return Features(maps, torch.cat([one.mean((2, 3, 4)) for one in self._pooled(maps)], 1))

    def _pooled(self, maps: Sequence[Any]) -> Sequence[Any]:
        return maps if self.pool == "all" else maps[-1:]

    def _margins(self, image: Tensor) -> list[int]:
        """Voxels to add, as ``pad`` wants them: the last axis first, for each its beginning and its end."""
        if image.dim() != 5 or image.shape[1] != self.input_channels:
            raise ValueError(
                f"Images must be (B, {self.input_channels}, D, H, W): the network was pretrained with "
                f"{self.input_channels} channels. Got {tuple(image.shape)}."
            )
        sizes, strides = image.shape[2:], self.feature_maps[-1].stride
        if isinstance(self.encoder, StagedEncoder) and all(n <= s for n, s in zip(sizes, strides, strict=True)):
            raise ValueError(
                f"An image of {tuple(sizes)} voxels is too small: the coarsest feature map, of stride {strides}, would "
                "be a single voxel, which cannot be normalised. Pad it, or take a larger crop."
            )
        return [margin for n, s in reversed(list(zip(sizes, strides, strict=True))) for margin in (0, -n % s)]


class AnyGrid(nn.Module):
    """A transformer's encoder on images of other sizes than the patch that it was built for.

    Args:
        encoder: for one patch size.
        positions: its learned embedding of positions.
    """

    def __init__(self, encoder: TokenEncoder, positions: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.positions = _name_of(encoder, positions)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> feature maps, as the network that is built for this size gives them."""
        grid = grid_of(cast("Triple", tuple(image.shape[2:])), self.encoder.token)
        if grid == self.encoder.grid:
            return cast("list[Tensor]", self.encoder(image))
        learned = self.encoder.get_parameter(self.positions)
        replaced = {self.positions: resize_positions(learned, self.encoder.grid, grid), **self._rotary(grid)}
        # The copy shares all modules; only its own attributes are its own.
        resized = copy.copy(self.encoder)
        resized.grid = grid
        return cast("list[Tensor]", functional_call(resized, replaced, (image,)))

    def _rotary(self, grid: Triple) -> dict[str, Tensor]:
        """Tables of rotary positions for another grid, as a network that is built for it has them."""
        tables = {}
        for name, module in self.encoder.named_modules():
            if hasattr(module, "get_embed") and hasattr(module, "feat_shape"):
                table, shape, rotary = untyped(module).pos_embed, list(grid), cast("Any", type(module))
                # The table holds sine and cosine of half as many angles per axis as its argument says, for three axes.
                made = rotary(table.shape[-1] // 3, in_pixels=False, feat_shape=shape, ref_feat_shape=shape)
                tables[f"{name}.pos_embed"] = made.get_embed().to(table)
        return tables


def load_encoder(
    file: str | Path, *, pool: Pool = "coarsest", trust_code: bool = False, fix_nnssl_axes: bool = False
) -> PretrainedEncoder:
    """Build the network that a file was pretrained with, load it, and keep its encoder, in eval mode and on the CPU.

    Everything comes from the file: neither data nor plans are needed on the disk.

    Args:
        file: our ``checkpoint_final.pth``, a checkpoint with nnssl's ``nnssl_adaptation_plan``, or safetensors with our
            metadata; whatever :func:`load_pretrained` opens and says which network it is of.
        pool: which maps the vector comes from: the ``coarsest`` one, or ``all``, whose means are concatenated from fine
            to coarse, as VoCo and SimCLR do in nnssl (Wald et al. 2024, arXiv 2412.17041).
        trust_code: allow importing a network of the user's own, or of a package that we do not know, which the file
            names: that runs code.
        fix_nnssl_axes: see :func:`load_pretrained`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not say which network it is of, names code that is not trusted, holds nothing of the
            encoder, or an unknown ``pool``.
    """
    if pool not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}.")
    weights = read_weights(file, fix_nnssl_axes=fix_nnssl_axes)
    blueprint = blueprint_of(weights.metadata, weights.file, trust_code=trust_code)
    blueprint.check_size(weights.file, weights.tensors)
    backbone = blueprint.build()
    report = load_pretrained(backbone.network, weights)
    names = [entry.name for entry in (*report.loaded, *report.adapted)]
    state = backbone.network.state_dict(keep_vars=True)
    encoder, maps = _pretrained_part(backbone, {id(state[name]) for name in names}, weights.file)
    return PretrainedEncoder(encoder, maps, blueprint, pool).eval()


def _pretrained_part(backbone: Backbone, given: set[int], file: Path) -> tuple[nn.Module, Sequence[FeatureMap]]:
    """What of the encoder the file gives: all of a transformer, the first stages of a U-Net or all of them."""
    encoder, maps = backbone.encoder, backbone.feature_maps
    if isinstance(encoder, TokenEncoder):
        _require(encoder, given, file)
        state = backbone.network.state_dict(keep_vars=True)
        positions = cast("Tensor", state[backbone.position_keys[0]])
        return AnyGrid(encoder, positions), backbone.features
    if isinstance(encoder, SwinEncoder):
        _require(encoder, given, file)
    if not isinstance(encoder, StagedEncoder):
        return encoder, backbone.features
    _require(encoder.first(1), given, file)
    stages = next((n for n, stage in enumerate(encoder.stages) if _missing(stage, given)), len(maps))
    return encoder.first(stages), maps[:stages]


def _require(module: nn.Module, given: set[int], file: Path) -> None:
    missing = _missing(module, given)
    if missing:
        raise ValueError(
            f"{file} does not give the whole encoder: {len(missing)} of its tensors are not in it or not pretrained "
            f"({', '.join(missing[:3])}). Use a checkpoint of a finished pretraining."
        )


def _missing(module: nn.Module, given: set[int]) -> list[str]:
    state = module.state_dict(keep_vars=True)
    return [name for name, tensor in state.items() if id(tensor) not in given and not is_rotary(name)]


def _name_of(module: nn.Module, tensor: Tensor) -> str:
    return next(name for name, parameter in module.named_parameters() if parameter is tensor)
