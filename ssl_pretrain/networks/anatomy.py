"""Where the parts of a segmentation network lie: the one place that knows how networks name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.decoding import PARTS, Decoding, PatchDecoding, UNetDecoding

HEADS = frozenset({"seg_layers", "seg_outputs"})
"""Modules that end in the classes of a dataset: in nnU-Net's own networks, and in STU-Net."""

ROTARY = "rope"
"""Module whose buffers are tables of rotary positions: a function of the patch, computed by the constructor."""

MONAI_POSITIONS = "vit.patch_embedding.position_embeddings"
"""Learned positions of MONAI's UNETR, which does not say itself where they are."""

STAGED = ("stages", "output_channels", "strides")
"""What the encoder of a U-Net of dynamic-network-architectures has."""


class Positions(NamedTuple):
    """Layout of a learned embedding of positions.

    Attributes:
        grid: tokens per axis, numbered in C-order.
        token: voxels of a token per axis; None where the network does not tell.
    """

    grid: Triple
    token: Triple | None

    def belong_to(self, embedding: Tensor) -> bool:
        """Whether an embedding has one entry per token; one with more has entries for something else as well."""
        return embedding.dim() == 3 and embedding.shape[1] == prod(self.grid)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a network lie.

    Attributes:
        network: the network, without wrappers.
        encoder_key: name of the submodule that holds the encoder; empty where the network does not say.
        stem_key: name of the submodule that first touches the image; empty likewise.
        is_declared: whether the network itself says where encoder and stem are.
        staged: encoder of a U-Net with ``stages``, ``output_channels`` and ``strides``; None in other networks.
        input_projection_keys: modules that the network declares to see the image's channels, those that there are.
        position_key: name of the learned embedding of positions, of which there is one in a transformer.
        positions: its layout, where it is known.
        decoding: how to ask the decoder for its features; None where there is none that we know.
        heads: modules whose outputs are the classes of a dataset.
    """

    network: nn.Module
    encoder_key: str
    stem_key: str
    is_declared: bool
    staged: nn.Module | None
    input_projection_keys: tuple[str, ...]
    position_key: str | None
    positions: Positions | None
    decoding: Decoding | None
    heads: tuple[nn.Module, ...]

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """What may be missing in front of names that are relative to the encoder, shortest first, nothing included."""
        key = self.encoder_key or ("encoder" if hasattr(self.network, "encoder") else "")
        parts = key.split(".") if key else []
        return ("", *(".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1)))

    @property
    def input_projections(self) -> list[nn.Module]:
        """Modules whose weight sees the image: the declared ones, else the first convolution and those like it.

        These have as many input channels as the first one has.
        """
        if self.input_projection_keys:
            return [self.network.get_submodule(key) for key in self.input_projection_keys]
        convolutions = [module for module in self.network.modules() if isinstance(module, _ConvNd)]
        whole = [module for module in convolutions if module.groups == 1]
        return [module for module in whole if module.in_channels == whole[0].in_channels]


def anatomy_of(network: nn.Module) -> Anatomy:
    """Look at a network, wrapped or not.

    A network is taken at its word where it keeps the conventions of dynamic-network-architectures: ``key_to_encoder``,
    ``key_to_stem``, ``keys_to_in_proj`` and ``key_to_lpe``, and the three parts of
    :class:`~ssl_pretrain.networks.decoding.Decoding`. Else it is looked at as a U-Net or a Primus of that package, or
    as a network of MONAI's.
    """
    inner = unwrap(network)
    said = [getattr(inner, name, None) for name in ("key_to_encoder", "key_to_stem")]
    encoder = getattr(inner, "encoder", None)
    staged = encoder if all(hasattr(encoder, name) for name in STAGED) else None
    there = dict(inner.named_modules(remove_duplicate=False))
    places = ("encoder.stages", "encoder.stem" if "encoder.stem" in there else "encoder.stages.0")
    keys = [str(key or (place if staged is not None else "")) for key, place in zip(said, places, strict=True)]
    projections = tuple(key for key in getattr(inner, "keys_to_in_proj", None) or () if key in there)
    is_unetr = hasattr(inner, "feat_size") and hasattr(getattr(inner, "vit", None), "patch_embedding")

    position, grid = getattr(inner, "key_to_lpe", None), getattr(inner, "token_grid", None)
    if grid is None:
        grid = getattr(getattr(getattr(inner, "eva", None), "rope", None), "feat_shape", None)
    if position is None and is_unetr:
        position, grid = MONAI_POSITIONS, inner.feat_size
    positions = None
    if position is not None and grid is not None:
        stem = inner.get_submodule(keys[1] or str(position).rpartition(".")[0])
        sizes = (module.kernel_size for module in stem.modules() if isinstance(module, nn.Conv3d))
        triple = cast("Triple", tuple(int(n) for n in cast("Sequence[int]", grid)))
        positions = Positions(triple, cast("Triple | None", next(sizes, None)))

    decoder, steps = getattr(inner, "decoder", None), getattr(getattr(inner, "up_projection", None), "decode", None)
    decoding: Decoding | None = None
    if all(hasattr(inner, part) for part in PARTS):
        decoding = cast("Decoding", inner)
    elif all(hasattr(decoder, part) for part in ("transpconvs", "stages", "seg_layers")):
        decoding = UNetDecoding(cast("nn.Module", decoder))
    elif isinstance(steps, nn.Sequential):
        decoding = PatchDecoding(steps)
    heads = [module for name, module in there.items() if name.rpartition(".")[2] in HEADS]
    if decoding is not None:
        heads.append(decoding.segmentation_head)
    elif (hasattr(inner, "swinViT") or is_unetr) and isinstance(getattr(inner, "out", None), nn.Module):
        heads.append(inner.get_submodule("out"))
    return Anatomy(
        network=inner,
        encoder_key=keys[0],
        stem_key=keys[1],
        is_declared=all(isinstance(key, str) for key in said),
        staged=staged,
        input_projection_keys=projections,
        position_key=str(position) if position is not None else None,
        positions=positions,
        decoding=decoding,
        heads=tuple(heads),
    )


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel and torch.compile, in whatever order."""
    while True:
        if isinstance(network, (DistributedDataParallel, DataParallel)):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network.get_submodule("_orig_mod")
        else:
            return network


def is_rotary(name: str) -> bool:
    """Whether a tensor of this name is a table of rotary positions."""
    return ROTARY in name.split(".")[:-1]
