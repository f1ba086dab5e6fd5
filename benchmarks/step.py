"""Time whole training steps and their parts, and the peak memory; against other settings in the same process.

    python benchmarks/step.py --network STUNet_base --patch 96 96 96 --sparse blocks --decoder slim \
        --against masked --against_decoder spark

Needs PyTorch and Lightning only. Data are random numbers: nothing is read. A step is what training does: choose the
mask (with the teacher, where there is one), forward, backward, clip, optimiser step, teacher's step. With one of
``--against…`` the other settings are built too, both sides take turns, and ``ratio`` is their median time over ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import autocast, build_network, build_parser, peak_memory, provenance, timed, write
from benchmarks.step_parts import parts
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods import METHODS, MethodSetup, RunLength, build_method
from ssl_pretrain.methods.spark import SparK


class Side:
    """A method with its optimiser, ready to take steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.method = build(args)
        self.parameters = [p for p in self.method.trained.parameters() if p.requires_grad]
        self.optimizer = self.method.configure_optimizers()["optimizer"]
        self.generator = torch.Generator(args.device).manual_seed(args.seed)
        size = (args.batch, args.channels, *args.patch)
        image = torch.randn(size, device=args.device, generator=self.generator)
        self.batch: Any = {"image": image, "case": [""] * args.batch, "index": [0] * args.batch}

    def step(self) -> None:
        """One training step."""
        with autocast(self.args.device, self.args.precision):
            loss = self.method(self.batch, self.generator).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.method.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.update_teachers()


def build(args: argparse.Namespace) -> SparK:
    """The method on the network, in training mode."""
    torch.manual_seed(args.seed)
    patch = cast("Triple", tuple(args.patch))
    backbone = build_network(args.network, args.channels, patch)
    config = METHODS[args.method].Config(
        mask_cell=tuple(args.cell),
        mask_ratio=args.mask_ratio,
        stages=args.stages,
        decoder_norm=args.decoder_norm,
        sparse=args.sparse,
        decoder=args.decoder,
        decode=None if args.decode == "all" else float(args.decode),
        memory_format=args.memory_format,
        compile=args.compile,
        checkpointing=args.checkpointing,
        **({"teacher": args.teacher} if args.method == "AnatoMask" else {}),
    )
    setup = MethodSetup(backbone=backbone, patch=patch, length=RunLength(1000, 250, args.batch), seed=args.seed)
    method = build_method(args.method, config, setup).to(args.device).train()
    assert isinstance(method, SparK)
    method.tune(partial(autocast, args.device, args.precision))
    return method


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of whole steps on both sides, and of our parts."""
    sides = {"ours": Side(args)}
    if any(value for name, value in vars(args).items() if name.startswith("against")):
        sides["theirs"] = Side(others(args))
    for _ in range(args.warmup):
        for side in sides.values():
            side.step()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.steps):
        for name, side in sides.items():
            seconds[name].append(timed(side.step, args.device))
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(args).items() if k != "json"}}
    for name, side in sides.items():
        result[name] = {
            "step_seconds": statistics.median(seconds[name]),
            "step_seconds_all": seconds[name],
            "peak_memory_gib": peak_memory(side.step, args.device),
            "part_seconds": {} if args.compile else part_seconds(side),
        }
    if "theirs" in sides:
        result["ratio"] = result["theirs"]["step_seconds"] / result["ours"]["step_seconds"]
    return result | provenance(args.device)


def others(args: argparse.Namespace) -> argparse.Namespace:
    """The settings of the other side; where it is told to differ in precision, it has no switches at all."""
    settings = dict(vars(args))
    for name in ("sparse", "decoder", "decode", "precision", "method", "teacher"):
        other = settings["against" if name == "sparse" else f"against_{name}"]
        settings[name] = other or settings[name]
    if args.against_precision:
        settings |= {"compile": False, "memory_format": "contiguous", "checkpointing": False}
    return argparse.Namespace(**settings)


def part_seconds(side: Side) -> dict[str, float]:
    """Medians of the parts of a step, each by itself."""
    args = side.args
    pieces: dict[str, list[float]] = {}
    for _ in range(args.steps):
        named: dict[str, Callable[[], None]] = parts(
            side.method, side.batch["image"], partial(autocast, args.device, args.precision)
        )
        for name, run in named.items():
            pieces.setdefault(name, []).append(timed(run, args.device))
        side.method.zero_grad(set_to_none=True)
    return {name: statistics.median(values) for name, values in pieces.items()}


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = []
    for side in ("ours", "theirs"):
        if side in result:
            found = result[side]
            lines.append(f"{side}: step {found['step_seconds']:.3f} s, peak memory {found['peak_memory_gib']:.2f} GiB")
            lines += [f"  {name:18} {seconds:.3f} s" for name, seconds in found["part_seconds"].items()]
    if "ratio" in result:
        lines.append(f"ratio  {result['ratio']:.2f}")
    return "\n".join(lines)


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    parser = build_parser(__doc__)
    parser.add_argument("--method", default="AnatoMask", choices=list(METHODS))
    parser.add_argument("--mask_ratio", type=float, default=0.6)
    parser.add_argument("--stages", type=int, default=5, help="encoder stages; the published STU-Net uses 5 of 6")
    parser.add_argument("--sparse", default="auto", choices=("auto", "masked", "blocks", "spconv"))
    parser.add_argument("--decoder", default="slim", choices=("spark", "slim"), help="published: spark")
    parser.add_argument("--decode", default="all", help="share of the masked cells; published: all, of the patch")
    parser.add_argument("--teacher", default="coarse", choices=("full", "coarse"), help="published: full")
    parser.add_argument("--decoder_norm", default="batch", choices=("batch", "instance"), help="published: batch")
    parser.add_argument("--against", choices=("auto", "masked", "blocks", "spconv"), help="backend of the other side")
    parser.add_argument("--against_decoder", choices=("spark", "slim"), help="decoder of the other side")
    parser.add_argument("--against_decode", help="share of the masked cells, or all, of the other side")
    parser.add_argument("--against_method", choices=("SparK", "AnatoMask"), help="method of the other side")
    parser.add_argument("--against_teacher", choices=("full", "coarse"), help="teacher of the other side")
    parser.add_argument("--memory_format", default="auto", choices=("auto", "contiguous", "channels_last_3d"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--against_precision", choices=("32", "bf16"), help="precision of the other side")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    return parser


def main() -> None:
    """Measure and report."""
    args = command_line().parse_args()
    if args.device == "cpu" and not args.default_allocator:
        keep_freed_memory()
    result = measure(args)
    print(show(result))
    write(result, args.json)


if __name__ == "__main__":
    main()
