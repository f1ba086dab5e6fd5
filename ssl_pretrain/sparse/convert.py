"""Making the layers of a network mask-aware, in place."""

from __future__ import annotations

from torch import nn

from ssl_pretrain.sparse import layers
from ssl_pretrain.sparse.mask import SparseMask

MASKED: dict[type[nn.Module], type[layers.MaskedLayer]] = {
    nn.Conv3d: layers.MaskedConv3d,
    nn.ConvTranspose3d: layers.MaskedConvTranspose3d,
    nn.Linear: layers.MaskedLinear,
    nn.MaxPool3d: layers.MaskedMaxPool3d,
    nn.AvgPool3d: layers.MaskedAvgPool3d,
    nn.AdaptiveAvgPool3d: layers.MaskedGlobalAvgPool3d,
    nn.InstanceNorm3d: layers.MaskedInstanceNorm3d,
    nn.GroupNorm: layers.MaskedGroupNorm,
    nn.BatchNorm3d: layers.MaskedBatchNorm3d,
    nn.LayerNorm: layers.MaskedLayerNorm,
}


def convert(module: nn.Module, mask: SparseMask) -> None:
    """Give every layer of a network the mask of that network.

    The layers stay the same objects: only their class changes, so parameters, keys, hooks and the sharing of a layer
    under several names (nnU-Net's blocks register each convolution twice) are what they were, and a network that also
    belongs to a segmentation model keeps one set of parameters.

    Args:
        module: an encoder; all of its submodules are visited.
        mask: the mask that the layers will ask.

    Raises:
        TypeError: a layer has parameters and no mask-aware version; names it and the supported types. Nothing was
            changed then. Or the layers belong to another mask already.
    """
    found = dict(module.named_modules())
    unsupported = [f"{name} ({type(layer).__name__})" for name, layer in found.items() if not _is_supported(layer)]
    if unsupported:
        raise TypeError(
            f"These layers cannot be made mask-aware: {', '.join(unsupported)}. Supported: "
            f"{', '.join(t.__name__ for t in MASKED)} (AdaptiveAvgPool3d with output size 1), and layers without "
            "parameters that map 0 to 0."
        )
    taken = [name for name, layer in found.items() if getattr(layer, "sparse_mask", mask) is not mask]
    if taken:
        raise TypeError(
            f"The layers of this encoder already follow the mask of another method ({', '.join(taken[:3])}). Build a "
            "network for each method."
        )
    for layer in found.values():
        if type(layer) in MASKED:
            layer.__class__ = MASKED[type(layer)]
        if isinstance(layer, layers.MaskedLayer):
            layer.sparse_mask = mask


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.AdaptiveAvgPool3d):
        sizes = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,)
        return all(size == 1 for size in sizes)
    if isinstance(layer, nn.InstanceNorm3d) and layer.track_running_stats:
        return False
    if type(layer) in MASKED or isinstance(layer, layers.MaskedLayer):
        return True
    is_leaf = next(layer.children(), None) is None
    known_subclass = any(isinstance(layer, dense) for dense in MASKED)
    has_weights = next(layer.parameters(recurse=False), None) is not None
    return not known_subclass and not (is_leaf and has_weights and not _is_pointwise(layer))


def _is_pointwise(layer: nn.Module) -> bool:
    """Layers with parameters that act on each voxel alone and keep zeros."""
    return isinstance(layer, nn.PReLU)
