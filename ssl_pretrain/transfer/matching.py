"""Which tensor of a file belongs to which tensor of a network.

Networks of another number of stages share those of the same resolution. An encoder counts its stages from the finest, a
decoder from the coarsest: the same number means the same resolution in two encoders, whatever their depth, but in two
decoders only where the depth agrees.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ssl_pretrain.networks.anatomy import Positions, anatomy_of, is_rotary
from ssl_pretrain.transfer.weights_file import plain_name

FINE_FIRST = ("encoder.stages", "conv_blocks_context")
"""Lists that begin with full resolution: in nnU-Net's own networks, and in STU-Net."""

COARSE_FIRST = (
    *("decoder.stages", "decoder.transpconvs", "decoder.seg_layers"),
    *("upsample_layers", "conv_blocks_localization", "seg_outputs"),
)
"""Lists that begin with the level above the bottleneck, and have one entry less than the encoder."""

_LISTS = "|".join(re.escape(name) for name in (*FINE_FIRST, *COARSE_FIRST))
_PLACE = re.compile(rf"(?:^|\.)(?P<list>{_LISTS})\.(?P<index>\d+)(?=\.|$)")


MAX_PREFIX_PARTS = 4

MIN_SHARE = 0.05
"""Of a file's names. A network in a wrapper is more of a file, and every candidate costs a look at all names."""


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
        """Whether ``value``, of another shape, can be made to fit by what is in ``fitting`` or by interpolation."""
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


class Offer(NamedTuple):
    """What a file has for one tensor of a network.

    Attributes:
        slot: the tensor of the network.
        tensor: the file's; None where it has none.
        adapts: whether it can be made to fit if its shape is another.
        note: where it comes from, if its name does not say so; or why there is none.
    """

    slot: Slot
    tensor: Tensor | None
    adapts: bool
    note: str


class Alignment(NamedTuple):
    """What the tensors of a file are in a network.

    Attributes:
        offers: one for each tensor of the network, in its order.
        unused: names in the file that have no place in the network, and why.
    """

    offers: list[Offer]
    unused: dict[str, str]


def slots_of(network: nn.Module) -> list[Slot]:
    """List the tensors of a network's ``state_dict``, each once however many names it has.

    nnU-Net's blocks register one convolution under up to three names (``encoder.…conv``, ``encoder.…all_modules.0``,
    ``decoder.encoder.…``); these are one tensor.

    Args:
        network: may be wrapped.
    """
    anatomy = anatomy_of(network)
    names: dict[int, list[str]] = defaultdict(list)
    tensors: dict[int, Tensor] = {}
    for name, tensor in anatomy.network.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names[id(tensor)].append(plain_name(name))
            tensors[id(tensor)] = tensor
    projections = {id(getattr(module, "weight", None)) for module in anatomy.input_projections}
    heads = {id(tensor) for head in anatomy.heads for tensor in head.state_dict(keep_vars=True).values()}
    kernels = {id(module.weight): module for module in anatomy.network.modules() if isinstance(module, _ConvNd)}
    positions = anatomy.positions
    return [
        Slot(
            tuple(names[key]),
            tensor,
            key in projections,
            positions if positions and anatomy.position_key in names[key] and positions.belong_to(tensor) else None,
            key in heads,
            key in kernels,
            isinstance(kernels.get(key), _ConvTransposeNd),
        )
        for key, tensor in tensors.items()
    ]


def align(tensors: Mapping[str, Tensor], network: nn.Module) -> Alignment:
    """Find what the tensors of a file are called in a network: there may be a prefix, and other numbers of stages.

    Files name their tensors as the network does, or with the path of a wrapper in front (``backbone.encoder.…``), or
    relative to the encoder (``stages.0.…``), or both. Of all these readings the one that fits most tensors counts;
    another one than the file's own names must fit at least half of what it claims, so that a stranger's file is not
    taken for ours because two layers happen to agree. What would have to be adapted speaks neither for nor against it.
    """
    slots = slots_of(network)
    by_name = {name: slot for slot in slots for name in slot.names}
    ours = number_of_stages(by_name)
    best, best_score = {key: key for key in tensors}, 0
    readings = [(dropped, added) for dropped in _leading_paths(tensors) for added in anatomy_of(network).encoder_paths]
    for dropped, added in sorted(readings, key=lambda reading: len("".join(reading))):
        mapping = {key: added + key.removeprefix(dropped) for key in tensors if key.startswith(dropped)}
        placed = {key: name for key, name in at_their_resolution(mapping, ours).items() if name is not None}
        found = {key: by_name[name] for key, name in placed.items() if name in by_name}
        exact = {key for key, slot in found.items() if slot.tensor.shape == tensors[key].shape}
        adaptable = {key for key, slot in found.items() if key not in exact and slot.adapts(tensors[key])}
        score = len({found[key].names for key in exact | adaptable})
        as_it_is = not dropped and not added
        if score > best_score and (as_it_is or 2 * len(exact) >= len(placed) - len(adaptable)):
            best, best_score = mapping, score

    names, theirs = at_their_resolution(best, ours), number_of_stages(best.values())
    keys = {name: key for key, name in reversed(names.items()) if name is not None}
    depths = f"the file has {theirs} stages, the network {ours}"
    offers = []
    for slot in slots:
        # The first alias that the file has counts.
        key = next((keys[name] for name in slot.names if name in keys), None)
        moved = theirs > 0 and renumbered(slot.names[0], ours, theirs) != slot.names[0]
        if key is not None:
            note = f"{key} in the file: the same resolution" if moved else ""
            offers.append(Offer(slot, tensors[key], slot.adapts(tensors[key]), note))
        else:
            missing = ours > theirs > 0 and renumbered(slot.names[0], ours, theirs) is None
            offers.append(Offer(slot, None, False, f"{depths if missing else 'nothing in the file'}; as initialised"))
    unused = {key: "no such tensor in the network" for key in tensors if names.get(key) not in by_name}
    unused |= {key: depths for key, name in names.items() if name is None}
    unused |= {key: "rotary table: the network computes its own" for key in unused if is_rotary(key)}
    return Alignment(offers, unused)


def _leading_paths(names: Collection[str]) -> list[str]:
    """What may be the path of a wrapper: nothing, and beginnings that enough of the names have in common."""
    paths: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        paths.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts) - 1, MAX_PREFIX_PARTS) + 1))
    return ["", *(path for path, count in paths.items() if MIN_SHARE * len(names) <= count)]


def kernel_fits(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether :func:`fit_kernel` can make one kernel size of another: odd sizes that shrink to 1, or grow."""
    pairs = zip(theirs, ours, strict=True)
    return all(t == o or (t % 2 == 1 and o % 2 == 1 and (o == 1 or o > t)) for t, o in pairs)


def step_fits(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether :func:`fit_step` can make one step of upsampling of another: equal, or 1 on one side."""
    return all(t == o or 1 in (t, o) for t, o in zip(theirs, ours, strict=True))


def number_of_stages(names: Iterable[str]) -> int:
    """Stages of the encoder of the U-Net whose tensors these are; 0 where they are not a U-Net's."""
    count = 0
    for name in names:
        place = _PLACE.search(name)
        if place:
            count = max(count, int(place["index"]) + (1 if place["list"] in FINE_FIRST else 2))
    return count


def part_of(name: str) -> str:
    """The part of a network that a tensor is in, for people: a stage, or the beginning of its name."""
    place = _PLACE.search(name)
    if place is None:
        return ".".join(part for part in name.split(".")[:2] if not part.isdigit())
    return f"stage {place['index']}" if place["list"] in FINE_FIRST else f"{place['list']}.{place['index']}"


def renumbered(name: str, stages: int, wanted: int) -> str | None:
    """What a tensor of a U-Net is called in a U-Net with another number of stages.

    Args:
        name: of a tensor; without a stage in it, it is the same in both.
        stages: of the network that it belongs to.
        wanted: stages of the other network.

    Returns:
        The name of the tensor at the same resolution; None where the other network has no such stage.
    """
    place = _PLACE.search(name)
    if place is None:
        return name
    index = int(place["index"])
    if place["list"] in FINE_FIRST:
        return name if index < wanted else None
    index += wanted - stages
    return f"{name[: place.start('index')]}{index}{name[place.end('index') :]}" if index >= 0 else None


def at_their_resolution(mapping: Mapping[str, str], wanted: int) -> dict[str, str | None]:
    """Names in a network of ``wanted`` stages for the names in a file, see :func:`renumbered`.

    Args:
        mapping: name in the network by name in the file, as far as the beginnings of the names go.
        wanted: stages of the network; 0 for a network that is no U-Net.
    """
    stages = number_of_stages(mapping.values())
    if not stages or not wanted:
        return dict(mapping)
    return {key: renumbered(name, stages, wanted) for key, name in mapping.items()}
