"""Time the encoder, forward and backward, with each sparse backend.

    python benchmarks/sparse_encoder.py --network STUNet_base --patch 96 96 96 --mask_ratio 0.6 0.75 0.9 \
        --backends masked blocks --json FILE

Needs PyTorch and Lightning only (ResEncL: dynamic-network-architectures too). The image and the gradients of the
feature maps are random numbers. Every map is brought back to a whole volume, though training needs that for some only.
Backends take turns in one process; ``speedup`` and ``memory_ratio`` are against ``masked``. ``max_error`` is the
largest relative difference of a feature map, ``gradient_error`` that of the gradient of all parameters. In float32 the
latter shows the few voxels whose rounding error lies across LeakyReLU's kink: a share f of them makes it about the root
of f. (The tests compare in float64, and in float32 without a kink.)
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import autocast, build_network, build_parser, peak_memory, provenance, timed, write
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.functional.masking import count_masked, random_mask
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.methods.tuning import choose_backend, use_backend
from ssl_pretrain.networks.backends import Backend, Choice
from ssl_pretrain.networks.masked import encode_masked, whole
from ssl_pretrain.report.tables import format_table


class Encoder:
    """An encoder that runs forward and backward on a random image."""

    def __init__(self, args: argparse.Namespace, mask_ratio: float) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        patch, cell = cast("Triple", tuple(args.patch)), cast("Triple", tuple(args.cell))
        backbone = build_network(args.network, args.channels, patch)
        encoder, maps = backbone.truncated(args.stages)
        self.network = SparKNetwork(encoder, maps, cell, args.channels, width=None, norm="batch").to(args.device)
        self.image = torch.randn(args.batch, args.channels, *patch, device=args.device)
        grid = grid_of(patch, cell)
        self.masked = count_masked(prod(grid), mask_ratio)
        generator = torch.Generator(args.device).manual_seed(args.seed)
        self.visible = ~random_mask(args.batch, grid, self.masked, generator)
        self.gradients: list[Tensor] | None = None

    def choose(self, backend: Backend) -> Choice:
        """What a backend asked for by this name does."""
        context = partial(autocast, self.args.device, self.args.precision)
        return choose_backend(self.network, backend, self.image, self.masked, context)

    def use(self, choice: Choice) -> None:
        """Run so from now on."""
        use_backend(self.network, choice)

    def run(self) -> list[Tensor]:
        """Forward and backward; the feature maps."""
        network = self.network
        network.encoder.zero_grad()
        count = self.visible[0].numel() - self.masked
        with autocast(self.args.device, self.args.precision), network.mask.visible(self.visible, count):
            sparse_maps = encode_masked(network.encoder, self.image, network.mask, network.packed_stages)
            maps = [whole(m, network.mask) for m in sparse_maps]
        if self.gradients is None:
            self.gradients = [torch.randn_like(m) for m in maps]
        torch.autograd.backward(maps, self.gradients)
        return [m.detach() for m in maps]

    def results(self) -> tuple[list[Tensor], Tensor]:
        """Feature maps, and the gradients of all parameters in one vector."""
        maps = self.run()
        gradients = [p.grad.flatten() for p in self.network.encoder.parameters() if p.grad is not None]
        return maps, torch.cat(gradients).clone()


def measure(args: argparse.Namespace, mask_ratio: float) -> list[dict[str, Any]]:
    """One row per backend."""
    encoder = Encoder(args, mask_ratio)
    backends = ["masked", *[b for b in args.backends if b != "masked"]]
    choices = {backend: encoder.choose(backend) for backend in backends}
    encoder.use(choices["masked"])
    expected = encoder.results()
    errors, memory = {}, {}
    for backend in backends:
        encoder.use(choices[backend])
        errors[backend] = differences(encoder.results(), expected)
        memory[backend] = peak_memory(encoder.run, args.device)
    del expected
    seconds: dict[str, list[float]] = {backend: [] for backend in backends}
    for _ in range(args.repeat):
        for backend in backends:
            encoder.use(choices[backend])
            seconds[backend].append(timed(encoder.run, args.device))
    return [
        {
            "mask_ratio": mask_ratio,
            "backend": backend,
            "packed_stages": choices[backend].packed_stages,
            "seconds": statistics.median(seconds[backend]),
            "seconds_all": seconds[backend],
            "speedup": statistics.median(seconds["masked"]) / statistics.median(seconds[backend]),
            "memory_gib": memory[backend],
            "memory_ratio": memory[backend] / memory["masked"],
            "max_error": errors[backend][0],
            "gradient_error": errors[backend][1],
        }
        for backend in backends
    ]


def differences(found: tuple[list[Tensor], Tensor], expected: tuple[list[Tensor], Tensor]) -> tuple[float, float]:
    """Relative differences (2-norm): the largest of the feature maps, and that of the gradient."""
    maps = max(float((a - b).norm() / b.norm()) for a, b in zip(found[0], expected[0], strict=True))
    return maps, float((found[1] - expected[1]).norm() / expected[1].norm())


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    names = ("mask_ratio", "backend", "packed_stages", "seconds", "speedup", "memory_gib", "memory_ratio")
    names += ("max_error", "gradient_error")
    cells = [[f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    return format_table(names, cells)


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    parser = build_parser(__doc__)
    parser.add_argument("--stages", type=int, help="encoder stages; default all, the published STU-Net uses 5 of 6")
    parser.add_argument("--mask_ratio", type=float, nargs="+", default=[0.6, 0.75, 0.9])
    parser.add_argument("--backends", nargs="+", default=["masked", "blocks"], choices=get_args(Backend))
    parser.add_argument("--repeat", type=int, default=5)
    return parser


def main() -> None:
    """Measure and report."""
    args = command_line().parse_args()
    if args.device == "cpu" and not args.default_allocator:
        keep_freed_memory()
    rows = [row for ratio in args.mask_ratio for row in measure(args, ratio)]
    print(show(rows))
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    write({"settings": settings, "rows": rows, **provenance(args.device)}, args.json)


if __name__ == "__main__":
    main()
