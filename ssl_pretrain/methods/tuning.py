"""What is fastest on a device: packed stages and memory format. None of it changes what is computed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf, prod
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.functional.masking import random_mask
from ssl_pretrain.methods.light_decoder import Norm
from ssl_pretrain.methods.masked_network import MaskedNetwork
from ssl_pretrain.networks.backends import Backend, Choice, PackedConvolution, fastest, rule_of_thumb
from ssl_pretrain.networks.masked import SparseMap, encode_masked, whole
from ssl_pretrain.sparse.spconv_conv import has_spconv, require_spconv

MemoryFormat = Literal["auto", "contiguous", "channels_last_3d"]
REPETITIONS = 3

Context = Callable[[], AbstractContextManager[object]]


def choose_backend(
    network: MaskedNetwork, backend: Backend, image: Tensor, masked: int, context: Context = nullcontext
) -> Choice:
    """Which stages compute visible cells only, and by which convolution.

    On the CPU it follows a rule that was measured there, so that a continued run computes the same to the last bit. On
    other devices it times the encoder with each number of packed stages; the times are logged.

    Args:
        network: on its device.
        backend: as asked for.
        image: (B, C, D, H, W) of the size and on the device of training.
        masked: masked cells of a sample.
        context: precision of training.

    Raises:
        ValueError: ``spconv`` without the library or without a CUDA device; says what to do.
    """
    packable, _ = network.packable
    if backend == "spconv":
        require_spconv(image.device)
    if backend == "masked" or not packable:
        return Choice(0)
    if image.device.type == "cpu":
        return Choice(expected_packed_stages(network, backend, image, masked))
    choices = candidates(backend, packable, image.device)
    return fastest(lambda choice: _time_if_it_fits(network, choice, image, masked, context), choices)


def expected_packed_stages(network: MaskedNetwork, backend: Backend, image: Tensor, masked: int) -> int:
    """How many stages compute visible cells only on a CPU; elsewhere a good guess before anything is timed.

    Args:
        network: on any device.
        backend: as asked for.
        image: of the size of training.
        masked: masked cells of a sample.
    """
    if backend == "masked":
        return 0
    cells = prod(grid_of((image.shape[2], image.shape[3], image.shape[4]), network.cell))
    # Asked for by name, packed cells are used however little they save.
    share = masked / cells if backend == "auto" else 1.0
    return rule_of_thumb(network.maps, network.cell, network.packable[0], share)


def candidates(backend: Backend, packable: int, device: torch.device) -> list[Choice]:
    """What to try: a backend asked for by name computes one stage at least."""
    if backend != "auto":
        return [Choice(n, "spconv" if backend == "spconv" else "blocks") for n in range(1, packable + 1)]
    convolutions: list[PackedConvolution] = ["blocks", "spconv"] if has_spconv(device) else ["blocks"]
    return [Choice(0), *(Choice(n, c) for c in convolutions for n in range(1, packable + 1))]


def use_backend(network: MaskedNetwork, choice: Choice) -> None:
    """Let a network compute its encoder so."""
    network.packed_stages = choice.packed_stages
    network.mask.packed_conv = choice.convolution


def memory_format_of(wanted: MemoryFormat, norm: Norm) -> torch.memory_format:
    """The memory format of a decoder; ``auto`` is channels last with batch norm and contiguous with instance norm.

    For instance norm PyTorch copies the map out of channels last and back. With batch norm a step was 5 to 8 % faster
    on two CPU cores (``benchmarks/README.md``). GPUs have not been measured.
    """
    if wanted == "auto":
        wanted = "channels_last_3d" if norm == "batch" else "contiguous"
    return torch.channels_last_3d if wanted == "channels_last_3d" else torch.contiguous_format


def _time_if_it_fits(network: MaskedNetwork, choice: Choice, image: Tensor, masked: int, context: Context) -> float:
    try:
        return time_encoder(network, choice, image, masked, context)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return inf


def time_encoder(
    network: MaskedNetwork, choice: Choice, image: Tensor, masked: int, context: Context = nullcontext
) -> float:
    """Seconds of a forward and backward pass of the encoder, median after one for warm-up.

    Nothing of the network is touched: it is a copy that runs.
    """
    network = copy.deepcopy(network)
    use_backend(network, choice)
    size: Triple = (image.shape[2], image.shape[3], image.shape[4])
    grid = grid_of(size, network.cell)
    generator = torch.Generator(image.device).manual_seed(0)
    mask = random_mask(image.shape[0], grid, masked, generator)
    visible = grid[0] * grid[1] * grid[2] - masked
    parameters = [p for p in network.encoder.parameters() if p.requires_grad]
    seconds = []
    devices = [image.device] if image.device.type == "cuda" else []
    for _ in range(REPETITIONS + 1):
        _synchronize(image.device)
        started = time.perf_counter()
        with torch.random.fork_rng(devices), context(), network.mask.visible(~mask, visible):
            maps = [whole(m, network.mask) for m in _encode(network, image)]
            total = torch.stack([m.float().mean() for m in maps]).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)
        _synchronize(image.device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def _encode(network: MaskedNetwork, image: Tensor) -> list[SparseMap]:
    return encode_masked(network.encoder, image, network.mask, network.packed_stages, network.checkpointing)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
