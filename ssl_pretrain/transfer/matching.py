"""Which tensor of a file belongs to which tensor of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.decoding import decoding_of
from ssl_pretrain.networks.tokens import position_grid
from ssl_pretrain.transfer.weights_file import plain_name

HEADS = frozenset({"seg_layers", "seg_outputs"})
"""Modules that end in the classes of a dataset: in nnU-Net's own networks, and in STU-Net."""

MAX_PREFIX_PARTS = 4


@dataclass(frozen=True)
class Slot:
    """One tensor of a network.

    Attributes:
        names: all names under which the network registers it, wrappers removed; the first is used in reports.
        tensor: the parameter or buffer itself.
        input_projection: whether it is a weight whose second axis is the channels of the image.
        positions: tokens per axis, where it is a learned embedding of positions; else None.
        is_head: whether it belongs to the layers whose outputs are a dataset's classes.
    """

    names: tuple[str, ...]
    tensor: Tensor
    input_projection: bool
    positions: Triple | None = None
    is_head: bool = False

    def differs_in_channels(self, value: Tensor) -> bool:
        """Whether this is an input projection, and ``value`` one for another number of image channels."""
        ours, theirs = self.tensor.shape, value.shape
        if not self.input_projection or len(ours) != len(theirs) or len(ours) < 3:
            return False
        return ours[0] == theirs[0] and ours[2:] == theirs[2:] and ours[1] != theirs[1]


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
    embedding, grid = getattr(inner, "key_to_lpe", None), position_grid(inner)
    return [
        Slot(
            tuple(names[key]),
            tensor,
            key in projections,
            grid if embedding in names[key] else None,
            key in heads or not HEADS.isdisjoint(names[key][0].split(".")),
        )
        for key, tensor in tensors.items()
    ]


def _heads(network: nn.Module) -> set[int]:
    """Ids of the tensors of the segmentation head, where a network has one that its decoder tells."""
    decoding = decoding_of(network)
    return {id(p) for p in decoding.segmentation_head.parameters()} if decoding is not None else set()


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile, in whatever order."""
    while True:
        if isinstance(network, (DistributedDataParallel, DataParallel)):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network.get_submodule("_orig_mod")
        else:
            return network


def inflation(slot: Slot, value: Tensor) -> int | None:
    """Return how often ``value`` has to be repeated over input channels to fit the slot; None if it cannot."""
    ours, theirs = slot.tensor.shape, value.shape
    if not slot.differs_in_channels(value) or theirs[1] == 0 or ours[1] % theirs[1] != 0:
        return None
    return ours[1] // theirs[1]


def align(tensors: Mapping[str, Tensor], slots: Sequence[Slot], network: nn.Module) -> dict[str, str]:
    """Map names in a file to names in the network, where the two differ by a prefix.

    Files name their tensors as the network does, or with the path of a wrapper in front (``backbone.encoder.…``), or
    relative to the encoder (``stages.0.…``), or both. Of all these readings the one that fits most tensors counts;
    another one than the file's own names must fit at least half of what it claims, so that a stranger's file is not
    taken for ours because two layers happen to agree.

    Returns:
        name in the network by name in the file, for the names that the reading covers.
    """
    by_name = {name: slot for slot in slots for name in slot.names}
    best, best_score = {key: key for key in tensors}, 0
    readings = [(dropped, added) for dropped in _leading_paths(tensors) for added in _encoder_paths(network)]
    for dropped, added in sorted(readings, key=lambda reading: len("".join(reading))):
        mapping = {key: added + key.removeprefix(dropped) for key in tensors if key.startswith(dropped)}
        fitting = [key for key, name in mapping.items() if _fits(by_name.get(name), tensors[key])]
        score = len({by_name[mapping[key]].names for key in fitting})
        as_it_is = not dropped and not added
        if score > best_score and (as_it_is or 2 * len(fitting) >= len(mapping)):
            best, best_score = mapping, score
    return best


def beginnings(names: Iterable[str]) -> list[str]:
    """Return the distinct beginnings of dotted names, in order: what tells one kind of file from another."""
    return list(dict.fromkeys(".".join(part for part in name.split(".")[:2] if not part.isdigit()) for name in names))


def _fits(slot: Slot | None, value: Tensor) -> bool:
    if slot is None:
        return False
    return slot.tensor.shape == value.shape or inflation(slot, value) is not None or slot.positions is not None


def _leading_paths(names: Iterable[str]) -> list[str]:
    paths = {"": None}
    for name in names:
        parts = name.split(".")[:-1]
        for depth in range(1, min(len(parts), MAX_PREFIX_PARTS) + 1):
            paths[".".join(parts[:depth]) + "."] = None
    return list(paths)


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
