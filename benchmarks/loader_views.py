"""Part of the loader benchmark: what a method does to its crops before the network sees them, against reading them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, cast

import torch

from benchmarks.common import build_network
from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.methods import METHODS, Batch, Method, MethodSetup, build_method
from ssl_pretrain.networks.registry import NETWORKS, PLANNED
from ssl_pretrain.report.tables import format_table


class Reached(Exception):  # noqa: N818 - no error: it ends what is timed
    """The method called its network, or a teacher."""


def ready_method(name: str, channels: int, patch: Triple) -> Method:
    """A method that comes to an end where it calls its network or a teacher, on the first network it goes with."""
    network = next(other for other, row in NETWORKS.items() if other != PLANNED and METHODS[name].goes_with(row.offers))
    setup = MethodSetup(backbone=build_network(network, channels, patch), patch=patch)
    method = build_method(name, METHODS[name].Config(), setup).train()

    def stop(*_: Any) -> NoReturn:
        raise Reached

    for module in (method.trained, *(teacher for teacher, *_ in method.teachers())):
        module.register_forward_pre_hook(stop)
    return method


def whole_samples(method: Method, batch: Batch) -> Batch:
    """Crops of a batch that make whole samples of a method; where there are too few for one, over and over again."""
    count, crops = method.sample_views.count, len(batch["image"])
    rows = [number % crops for number in range(max(count, crops // count * count))]
    whole: Any = {
        key: value[rows] if isinstance(value, torch.Tensor) else [value[row] for row in rows]
        for key, value in batch.items()
    }
    return cast("Batch", whole)


def prepare_crops(method: Method, whole: Batch, seed: int) -> None:
    """What a method does to the crops of whole samples before its network."""
    with suppress(Reached):
        method(whole, torch.Generator().manual_seed(seed))
        raise AssertionError(f"{type(method).__name__} never called its network")


def compare_views(read: Callable[[], Any], load: Callable[[], Any], args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one core per crop: of reading, of reading with rotation and scaling, and of each method's view.

    Args:
        read: makes a batch of which rotated and scaled crops are read and not finished.
        load: makes the same batch, finished.
        args: patch, batch, batches and rounds; methods.
    """
    batch = load()
    patch = as_triple(args.patch, "--patch")
    methods = {name: ready_method(name, batch["image"].shape[1], patch) for name in args.method or METHODS}
    names = ("reading", "loader", *methods)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, args.rounds):
        total = dict.fromkeys(names, 0.0)
        for i in range(args.batches):
            total["reading"] += _core_time(read)[0]
            taken, batch = _core_time(load)
            total["loader"] += taken
            seed = max(number, 0) * args.batches + i
            for name, method in methods.items():
                whole = whole_samples(method, batch)
                taken = _core_time(partial(prepare_crops, method, whole, seed))[0]
                total[name] += taken * args.batch / len(whole["image"])
        for name in names if number >= 0 else ():
            seconds[name].append(total[name] / args.batches / args.batch)
    typical = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "views": {
            name: {
                "milliseconds": round(1e3 * typical[name], 2),
                "over_reading": round(typical[name] / typical["reading"], 2),
                "over_loader": round(typical[name] / typical["loader"], 2),
            }
            for name in names
        },
        "milliseconds_by_round": {name: [round(1e3 * s, 3) for s in times] for name, times in seconds.items()},
    }


def _core_time(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a core, whatever else ran on it meanwhile, and the result."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def show_views(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = [
        (name, f"{row['milliseconds']:.1f}", f"{row['over_reading']:.2f}", f"{row['over_loader']:.2f}")
        for name, row in result["views"].items()
    ]
    return format_table(("what", "ms per crop and core", "over reading", "over loader"), rows)
