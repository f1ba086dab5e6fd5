"""Which tensor of a file belongs to which tensor of a network."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.decoding import decoding_of
from ssl_pretrain.networks.tokens import position_grid
from ssl_pretrain.transfer.adapting import kernel_fits, step_fits
from ssl_pretrain.transfer.stages import at_their_resolution, number_of_stages
from ssl_pretrain.transfer.weights_file import plain_name

HEADS = frozenset({"seg_layers", "seg_outputs"})
"""Modules that end in the classes of a dataset: in nnU-Net's own networks, and in STU-Net."""

ROTARY = "rope"
"""Module whose buffers are tables of rotary positions: a function of the patch, computed by the constructor."""

MONAI_POSITIONS = "vit.patch_embedding.position_embeddings"
"""Learned positions of MONAI's UNETR, which does not say itself where they are."""

MAX_PREFIX_PARTS = 4

MIN_SHARE = 0.05
"""Of a file's names. A network in a wrapper is more of a file, and every candidate costs a look at all names."""


class Positions(NamedTuple):
    """Where a learned embedding of positions lies.

    Attributes:
        grid: tokens per axis, numbered in C-order.
        token: voxels of a token per axis; None where the network does not tell.
    """

    grid: Triple
    token: Triple | None


@dataclass(frozen=True)
class Slot:
    """One tensor of a network.

    Attributes:
        names: all names under which the network registers it, wrappers removed; the first is used in reports.
        tensor: the parameter or buffer itself.
        input_projection: whether it is a weight whose second axis is the channels of the image.
        positions: of the tokens, where it is a learned embedding of them; else None.
        is_head: whether it belongs to the layers whose outputs are a dataset's classes.
        convolution: whether it is the weight of a convolution, transposed or not.
        transposed: whether it is that of a transposed one.
    """

    names: tuple[str, ...]
    tensor: Tensor
    input_projection: bool
    positions: Positions | None = None
    is_head: bool = False
    convolution: bool = False
    transposed: bool = False

    @property
    def is_rotary(self) -> bool:
        """Whether it is a table of rotary positions, which belongs to the patch of this network."""
        return is_rotary(self.names[0])

    def adapts(self, value: Tensor) -> bool:
        """Whether ``value``, of another shape, can be made to fit by what is in ``adapting`` or by interpolation."""
        ours, theirs = self.tensor.shape, value.shape
        if len(ours) != len(theirs) or 0 in theirs:
            return False
        if self.positions is not None:
            return ours[-1] == theirs[-1]
        if not self.convolution:
            return False
        fits = step_fits if self.transposed else kernel_fits
        in_channels = ours[1] == theirs[1] or self.input_projection
        return ours[0] == theirs[0] and in_channels and fits(theirs[2:], ours[2:])


class Alignment(NamedTuple):
    """What the tensors of a file are called in a network.

    Attributes:
        names: name in the network by name in the file, for those that have one.
        surplus: names in the file that belong to stages which the network does not have.
        stages: of the file's U-Net; 0 where it is none.
        network_stages: of the network's.
    """

    names: dict[str, str]
    surplus: frozenset[str]
    stages: int
    network_stages: int


def is_rotary(name: str) -> bool:
    """Whether a tensor of this name is a table of rotary positions."""
    return ROTARY in name.split(".")[:-1]


def slots_of(network: nn.Module) -> list[Slot]:
    """List the tensors of a network's ``state_dict``, each once however many names it has.

    nnU-Net's blocks register one convolution under up to three names (``encoder.…conv``, ``encoder.…all_modules.0``,
    ``decoder.encoder.…``); these are one tensor.
    """
    inner = unwrap(network)
    names: dict[int, list[str]] = defaultdict(list)
    tensors: dict[int, Tensor] = {}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names[id(tensor)].append(plain_name(name))
            tensors[id(tensor)] = tensor
    projections, heads = _input_projections(inner), _heads(inner)
    embedding, positions = _positions(inner)
    kernels = {id(module.weight): module for module in inner.modules() if isinstance(module, _ConvNd)}
    return [
        Slot(
            tuple(names[key]),
            tensor,
            key in projections,
            positions if embedding in names[key] and _agrees(tensor, positions) else None,
            key in heads or not HEADS.isdisjoint(names[key][0].split(".")),
            key in kernels,
            isinstance(kernels.get(key), _ConvTransposeNd),
        )
        for key, tensor in tensors.items()
    ]


def _agrees(embedding: Tensor, positions: Positions | None) -> bool:
    """Whether an embedding has one entry per token; one with more has entries for something else as well."""
    return positions is not None and embedding.dim() == 3 and embedding.shape[1] == prod(positions.grid)


def _positions(network: nn.Module) -> tuple[str | None, Positions | None]:
    """Name and layout of a network's learned embedding of positions."""
    embedding, grid = getattr(network, "key_to_lpe", None), position_grid(network)
    if embedding is None and _is_monai_unetr(network):
        embedding, grid = (
            MONAI_POSITIONS,
            cast("Triple", tuple(int(n) for n in cast("Sequence[int]", network.feat_size))),
        )
    if embedding is None or grid is None:
        return None, None
    stem = getattr(network, "key_to_stem", None) or str(embedding).rpartition(".")[0]
    convolutions = (module for module in network.get_submodule(str(stem)).modules() if isinstance(module, nn.Conv3d))
    projection = next(convolutions, None)
    return str(embedding), Positions(grid, cast("Triple", projection.kernel_size) if projection is not None else None)


def _is_monai_unetr(network: nn.Module) -> bool:
    return hasattr(network, "feat_size") and hasattr(getattr(network, "vit", None), "patch_embedding")


def _heads(network: nn.Module) -> set[int]:
    """Ids of the tensors of the segmentation head, where a network has one that we know."""
    decoding = decoding_of(network)
    head = decoding.segmentation_head if decoding is not None else None
    if head is None and (hasattr(network, "swinViT") or _is_monai_unetr(network)):
        head = getattr(network, "out", None)
    return {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile, in whatever order."""
    while True:
        if isinstance(network, (DistributedDataParallel, DataParallel)):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network.get_submodule("_orig_mod")
        else:
            return network


def align(tensors: Mapping[str, Tensor], slots: Sequence[Slot], network: nn.Module) -> Alignment:
    """Find what the tensors of a file are called in a network: there may be a prefix, and other numbers of stages.

    Files name their tensors as the network does, or with the path of a wrapper in front (``backbone.encoder.…``), or
    relative to the encoder (``stages.0.…``), or both. Of all these readings the one that fits most tensors counts;
    another one than the file's own names must fit at least half of what it claims, so that a stranger's file is not
    taken for ours because two layers happen to agree. What would have to be adapted speaks neither for nor against it.
    """
    by_name = {name: slot for slot in slots for name in slot.names}
    stages = number_of_stages(by_name)
    best, best_score = {key: key for key in tensors}, 0
    readings = [(dropped, added) for dropped in _leading_paths(tensors) for added in _encoder_paths(network)]
    for dropped, added in sorted(readings, key=lambda reading: len("".join(reading))):
        mapping = {key: added + key.removeprefix(dropped) for key in tensors if key.startswith(dropped)}
        placed = {key: name for key, name in at_their_resolution(mapping, stages).items() if name is not None}
        found = {key: by_name[name] for key, name in placed.items() if name in by_name}
        exact = {key for key, slot in found.items() if slot.tensor.shape == tensors[key].shape}
        adaptable = {key for key, slot in found.items() if key not in exact and slot.adapts(tensors[key])}
        score = len({found[key].names for key in exact | adaptable})
        as_it_is = not dropped and not added
        if score > best_score and (as_it_is or 2 * len(exact) >= len(placed) - len(adaptable)):
            best, best_score = mapping, score
    names = at_their_resolution(best, stages)
    return Alignment(
        {key: name for key, name in names.items() if name is not None},
        frozenset(key for key, name in names.items() if name is None),
        number_of_stages(best.values()),
        stages,
    )


def beginnings(names: Iterable[str]) -> list[str]:
    """Return the distinct beginnings of dotted names, in order: what tells one kind of file from another."""
    return list(dict.fromkeys(".".join(part for part in name.split(".")[:2] if not part.isdigit()) for name in names))


def _leading_paths(names: Collection[str]) -> list[str]:
    """What may be the path of a wrapper: nothing, and beginnings that enough of the names have in common."""
    paths = Counter(
        "".join(f"{part}." for part in name.split(".")[:depth]) for name in names for depth in _depths(name)
    )
    return ["", *(path for path, count in paths.items() if MIN_SHARE * len(names) <= count)]


def _depths(name: str) -> range:
    return range(1, min(name.count("."), MAX_PREFIX_PARTS) + 1)


def _encoder_paths(network: nn.Module) -> list[str]:
    """Return what may be missing in front of names that are relative to the encoder."""
    inner = unwrap(network)
    key = getattr(inner, "key_to_encoder", None) or ("encoder" if hasattr(inner, "encoder") else "")
    parts = str(key).split(".") if key else []
    return ["", *(".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1))]


def _input_projections(network: nn.Module) -> set[int]:
    """Return the ids of the weights that see the image's channels.

    A network says which they are by ``keys_to_in_proj``, as dynamic-network-architectures does. Else they are the first
    convolution and those with as many input channels.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    declared = [modules[key] for key in getattr(network, "keys_to_in_proj", ()) if key in modules]
    if not declared:
        convolutions = [module for module in network.modules() if isinstance(module, _ConvNd) and module.groups == 1]
        declared = [module for module in convolutions if module.in_channels == convolutions[0].in_channels]
    return {id(module.weight) for module in declared if isinstance(getattr(module, "weight", None), Tensor)}
