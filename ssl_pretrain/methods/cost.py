"""Multiply-adds of a method's networks, counted on the ``meta`` device: nothing is computed."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.functional.masking import Cells
from ssl_pretrain.methods.masked_network import MaskedNetwork
from ssl_pretrain.methods.tuning import expected_packed_stages
from ssl_pretrain.networks.backends import Backend
from ssl_pretrain.networks.masked import encode_masked


def count_multiply_adds(
    network: MaskedNetwork, backend: Backend, batch: int, patch: Triple, masked: int, decoded: int | None = None
) -> dict[str, int]:
    """Multiply-adds of convolutions and linear layers in one forward pass.

    Args:
        network: on any device; it is not touched.
        backend: how the encoder leaves masked voxels out; the stages that do are those of the rule for CPUs.
        batch: samples.
        patch: voxels per axis.
        masked: masked cells of a sample.
        decoded: how many of them are decoded; None for all.

    Returns:
        ``encoder, all voxels`` (masked-dense), ``encoder`` (as it will run), ``densify``, ``decoder``.
    """
    network = copy.deepcopy(network).to("meta").eval()
    grid = grid_of(patch, network.cell)
    image = torch.empty(batch, network.image_channels, *patch, device="meta")
    seen = torch.ones(batch, *grid, dtype=torch.bool, device="meta")
    packed = expected_packed_stages(network, backend, image, masked)
    counts = {}
    with torch.no_grad():
        for name, stages in (("encoder, all voxels", 0), ("encoder", packed)):
            with FlopCounterMode(display=False) as counter, network.mask.visible(seen, seen[0].numel() - masked):
                maps = encode_masked(network.encoder, image, network.mask, stages)
            counts[name] = counter.get_total_flops() // 2
        with network.decoding(Cells(seen, decoded or masked)):
            with FlopCounterMode(display=False) as counter, network.mask.visible(seen, seen[0].numel() - masked):
                filled = network.fill(maps)
            counts["densify"] = counter.get_total_flops() // 2
            with FlopCounterMode(display=False) as counter:
                network.reconstruct(filled)
            counts["decoder"] = counter.get_total_flops() // 2
    return counts
