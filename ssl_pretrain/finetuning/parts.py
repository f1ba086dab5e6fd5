"""Which parameters of a network are its encoder, and in which layers they lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_pretrain.networks.anatomy import anatomy_of, unwrap
from ssl_pretrain.transfer.report import Report


@dataclass(frozen=True)
class Parts:
    """Names of all parameters of a network, each in one place and under the first name that it is registered with.

    Attributes:
        layers: of the encoder, from the image to the deepest: the stem, or the embedding of patches and positions, and
            the stages, or the blocks.
        between: of the encoder and in none of its layers: the norm after a transformer's blocks.
        decoder: everything else, segmentation heads included.
    """

    layers: tuple[tuple[str, ...], ...]
    between: tuple[str, ...]
    decoder: tuple[str, ...]

    @property
    def encoder(self) -> tuple[str, ...]:
        """All of the encoder."""
        return (*(name for layer in self.layers for name in layer), *self.between)


def parts_of(network: nn.Module) -> Parts:
    """Sort the parameters of a network, wrapped or not.

    The network says itself where its encoder is, as those of dynamic-network-architectures do: ``key_to_encoder``,
    ``key_to_stem`` and, for a learned position embedding, ``key_to_lpe``. The layers are what the encoder lists, or
    what it lists as ``blocks``.

    Raises:
        ValueError: the network does not say so.
    """
    anatomy = anatomy_of(network)
    inner = anatomy.network
    if not anatomy.is_declared:
        raise ValueError(
            f"{type(inner).__name__} does not say where its encoder is, so no schedule can treat it differently. Give "
            "the class key_to_encoder and key_to_stem (names of submodules), or use the schedule default or warmup."
        )
    encoder, stem = (inner.get_submodule(key) for key in (anatomy.encoder_key, anatomy.stem_key))
    names = {id(parameter): name for name, parameter in inner.named_parameters()}
    first = [id(p) for p in stem.parameters()]
    first += [id(inner.get_parameter(anatomy.position_key))] if anatomy.position_key else []
    blocks = getattr(encoder, "blocks", encoder)
    claims = [first, *([id(p) for p in block.parameters()] for block in blocks.children())]
    layers = [layer for claim in claims if (layer := _take(names, claim))]
    between = _take(names, [id(p) for p in encoder.parameters()])
    return Parts(tuple(layers), between, tuple(names.values()))


def not_pretrained(network: nn.Module, report: Report) -> list[str]:
    """Names of the encoder's parameters that a file did not have as they are: freezing them would freeze chance.

    These are what it did not have at all, and the input projections that were adapted to other channels. Positions that
    were interpolated and kernels that were averaged are pretrained.

    Args:
        network: into which it was loaded, wrapped or not.
        report: what became of its tensors.
    """
    anatomy = anatomy_of(network)
    inner, projections = anatomy.network, anatomy.input_projection_keys
    by_any_name = dict(inner.named_parameters(remove_duplicate=False))
    modules = (entry.name.rpartition(".")[0] for entry in report.adapted)
    wanting = [id(p) for name in modules if name in projections for p in inner.get_submodule(name).parameters()]
    wanting += [id(by_any_name[entry.name]) for entry in report.fresh if entry.name in by_any_name]
    encoder = parts_of(inner).encoder
    return [name for name in encoder if id(by_any_name[name]) in wanting]


def freeze(network: nn.Module, parameters: Iterable[nn.Parameter], frozen: Collection[str]) -> nn.Module:
    """Let gradients flow into parameters, but for some.

    A parameter without a gradient is left alone by optimisers: no momentum, no weight decay, no state.

    Args:
        network: wrapped or not.
        parameters: of the network; others stay as they are.
        frozen: names, inside the wrappers, of those that get no gradient from now on.

    Returns:
        The network. Where it is in DistributedDataParallel and something changed it is wrapped anew: the wrapper waits
        for gradients of exactly those parameters that wanted one when it was made.
    """
    named = dict(unwrap(network).named_parameters())
    ids = {id(named[name]) for name in frozen}
    changed = [p for p in parameters if p.requires_grad == (id(p) in ids)]
    for parameter in changed:
        parameter.requires_grad_(id(parameter) not in ids)
    if changed and isinstance(network, DistributedDataParallel):
        return DistributedDataParallel(network.module, device_ids=network.device_ids)
    return network


def _take(names: dict[int, str], claim: Iterable[int]) -> tuple[str, ...]:
    """Remove the names of the parameters ``claim`` and return them."""
    return tuple(names.pop(key) for key in dict.fromkeys(claim) if key in names)
