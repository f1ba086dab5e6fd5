"""What a step of every method costs on a network: time, memory, multiply-adds.

    python benchmarks/methods.py --networks ResEncL PrimusM --patch 96 96 96 --batch 1 --json FILE

A step is forward pass, backward pass and optimiser, on crops that are in memory. Methods and networks that do not go
together are left out. For a Primus the encoder is also timed on the tokens that MAE keeps against all tokens, both
taking turns in one process: ``kept_over_all``.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import autocast, build_network, peak_memory, provenance, timed, write
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.functional.geometry import as_triple
from ssl_pretrain.methods import METHODS, Batch, Method, MethodSetup, RunLength, build_method
from ssl_pretrain.methods.recipe import build_optimizer
from ssl_pretrain.networks.primus import PrimusBackbone
from ssl_pretrain.report.tables import format_table

KEPT = 0.25
"""Share of the tokens that MAE keeps."""


def build(method: str, network: str, args: argparse.Namespace) -> Method | None:
    """A method on a network; None where they do not go together."""
    patch = as_triple(args.patch, "--patch")
    torch.manual_seed(args.seed)
    backbone = build_network(network, args.channels, patch, classes=3)
    setup = MethodSetup(backbone=backbone, patch=patch, length=RunLength(10, 10, args.batch))
    try:
        made = build_method(method, METHODS[method].Config(), setup)
    except ValueError as error:
        print(f"{method} on {network}: {error}", file=sys.stderr)
        return None
    return made.to(args.device).train()


def batch_of(method: Method, args: argparse.Namespace) -> Batch:
    """Crops of one batch of the method."""
    views = method.sample_views
    count = args.batch * views.count
    image = torch.randn(count, args.channels, *(views.size or method.patch), device=args.device)
    rows = [number // views.count for number in range(count)]
    affine = torch.eye(3, 4, device=args.device).expand(count, 3, 4)
    names = [str(row) for row in rows]
    return {"image": image, "case": names, "row": rows, "index": list(range(count)), "affine": affine}


def step_of(method: Method, args: argparse.Namespace) -> Callable[[], None]:
    """One step of training."""
    if hasattr(method, "tune"):
        method.tune(lambda: autocast(args.device, args.precision))
    optimizer = build_optimizer(method.recipe, method.trained.parameters(), fused=args.device == "cpu")
    batch = batch_of(method, args)
    generator = torch.Generator(args.device).manual_seed(args.seed)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(args.device, args.precision):
            loss = method(batch, generator).loss
        loss.backward()
        optimizer.step()
        method.update_teachers()

    return step


def count(method: Method, args: argparse.Namespace) -> float:
    """10^9 multiply-adds of a forward pass, as it is computed."""
    batch = batch_of(method, args)
    generator = torch.Generator(args.device).manual_seed(args.seed)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method(batch, generator)
    return round(counter.get_total_flops() / 2e9, 1)


def measure(method: str, network: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """A row of the table."""
    made = build(method, network, args)
    if made is None:
        return None
    step = step_of(made, args)
    step()
    seconds = [timed(step, args.device) for _ in range(args.rounds)]
    row = {
        "method": method,
        "network": network,
        "seconds": round(statistics.median(seconds), 3),
        "peak_gib": round(peak_memory(step, args.device), 2),
        "multiply_adds_1e9": count(made, args),
        "parameters_1e6": round(sum(p.numel() for p in made.trained.parameters() if p.requires_grad) / 1e6, 1),
    }
    print(f"{method} on {network}: {row['seconds']} s", file=sys.stderr, flush=True)
    return row


def kept_over_all(network: str, args: argparse.Namespace) -> float | None:
    """Time of a Primus' encoder, forward and backward, on the tokens that MAE keeps over that on all of them."""
    backbone = build_network(network, args.channels, as_triple(args.patch, "--patch"), classes=3)
    if not isinstance(backbone, PrimusBackbone):
        return None
    backbone = backbone.to(args.device).train()
    image = torch.randn(args.batch, args.channels, *args.patch, device=args.device)
    tokens = backbone.token_grid[0] * backbone.token_grid[1] * backbone.token_grid[2]
    keep = torch.stack([torch.randperm(tokens)[: round(KEPT * tokens)] for _ in range(args.batch)]).to(args.device)

    def run(chosen: torch.Tensor | None) -> None:
        with autocast(args.device, args.precision):
            loss = backbone.encode_tokens(backbone.embed(image), chosen).float().square().mean()
        loss.backward()

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(args.rounds + 1):
        for is_kept, chosen in ((True, keep), (False, None)):
            taken = timed(lambda chosen=chosen: run(chosen), args.device)
            if number:
                seconds[is_kept].append(taken)
    return round(statistics.median(seconds[True]) / statistics.median(seconds[False]), 3)


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    columns = ("method", "network", "seconds", "peak_gib", "multiply_adds_1e9", "parameters_1e6")
    table = format_table(columns, [tuple(str(row[name]) for name in columns) for row in result["rows"]])
    ratios = [
        f"{name}: encoder on a quarter of the tokens takes {r} of all" for name, r in result["kept_over_all"].items()
    ]
    return "\n".join([table, *ratios])


def _ratios(result: dict[str, Any]) -> list[tuple[str, float]]:
    return list(result["kept_over_all"].items())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ResEncL", "PrimusM"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--patch", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write after every row."""
    args = arguments()
    if args.device == "cpu":
        keep_freed_memory()
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    result: dict[str, Any] = {"settings": settings, **provenance(args.device), "rows": [], "kept_over_all": {}}
    for network in args.networks:
        ratio = kept_over_all(network, args)
        if ratio is not None:
            result["kept_over_all"][network] = ratio
        for method in args.methods:
            row = measure(method, network, args)
            gc.collect()
            if row is not None:
                result["rows"].append(row)
                write(result, args.json)
    write(result, args.json)
    print(show(result))


if __name__ == "__main__":
    main()
