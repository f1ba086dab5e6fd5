"""What is fastest on a device: packed stages and memory format. None of it changes what is computed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.functional.masking import random_mask
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.networks.backends import Backend, fastest, rule_of_thumb
from ssl_pretrain.networks.masked import encode_masked, whole

log = logging.getLogger("ssl_pretrain")

MemoryFormat = Literal["auto", "contiguous", "channels_last_3d"]
REPETITIONS = 3

Context = Callable[[], AbstractContextManager[object]]


def choose_packed_stages(
    network: SparKNetwork, backend: Backend, image: Tensor, masked: int, context: Context = nullcontext
) -> int:
    """How many encoder stages work on packed cells; why no more is logged.

    ``auto`` follows a rule measured on CPUs, so that a continued run computes the same to the last bit, and times the
    encoder on other devices.

    Args:
        network: on its device.
        backend: as asked for.
        image: (B, C, D, H, W) of the size and on the device of training.
        masked: masked cells of a sample.
        context: precision of training.
    """
    packable, _ = network.packable
    if backend == "masked":
        return 0
    if backend != "auto":
        return packable
    if image.device.type == "cpu":
        return rule_of_thumb(network.maps, network.cell, packable)
    return fastest(lambda packed: time_encoder(network, packed, image, masked, context), packable)


def choose_memory_format(wanted: MemoryFormat, device: torch.device) -> torch.memory_format:
    """The memory format of the decoder."""
    if wanted == "auto":
        wanted = "contiguous"
    return torch.channels_last_3d if wanted == "channels_last_3d" else torch.contiguous_format


def time_encoder(
    network: SparKNetwork, packed: int, image: Tensor, masked: int, context: Context = nullcontext
) -> float:
    """Seconds of a forward and backward pass of the encoder with so many packed stages; the first one is not counted.

    Gradients and random state are left as they were.
    """
    size: Triple = (image.shape[2], image.shape[3], image.shape[4])
    grid = grid_of(size, network.cell)
    generator = torch.Generator(image.device).manual_seed(0)
    mask = random_mask(image.shape[0], grid, masked, generator)
    visible = grid[0] * grid[1] * grid[2] - masked
    parameters = [p for p in network.encoder.parameters() if p.requires_grad]
    seconds = []
    for _ in range(REPETITIONS + 1):
        _synchronize(image.device)
        started = time.perf_counter()
        with context(), network.mask.visible(~mask, visible):
            maps = [whole(m, network.mask) for m in encode_masked(network.encoder, image, network.mask, packed)]
            total = torch.stack([m.float().mean() for m in maps]).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)
        _synchronize(image.device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
