"""Part of the loader benchmark: what a method does to its crops before the network sees them, against reading them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.fusion import fuse
from ssl_pretrain.functional.genesis import apply_flips, corrupt, draw_flips
from ssl_pretrain.functional.geometry import Triple, grid_of
from ssl_pretrain.functional.masking import count_masked, random_mask
from ssl_pretrain.methods import METHODS, ModelsGenesisConfig, VolumeFusionConfig
from ssl_pretrain.methods.masking import hide
from ssl_pretrain.methods.volume_fusion import halves
from ssl_pretrain.report.tables import format_table

View = Callable[[Tensor, int], Any]
"""What a method makes of a batch of crops (B, C, D, H, W), with a seed."""

CELL: Triple = (16, 16, 16)
RATIO = 0.75


def corrupted(crops: Tensor, seed: int) -> Tensor:
    """Models Genesis: flipped and corrupted."""
    host, config = np.random.default_rng(seed), ModelsGenesisConfig()
    return corrupt(apply_flips(crops, draw_flips(len(crops), host, config)), host, config)


def fused(crops: Tensor, seed: int) -> Any:
    """VolumeFusion: two crops become one, and its labels; of an odd number the last one stays alone."""
    return fuse(*halves(crops[: len(crops) // 2 * 2]), np.random.default_rng(seed), VolumeFusionConfig())


def masked(crops: Tensor, seed: int) -> Tensor:
    """A mask is drawn and masked cells are set to 0. What AnatoMask's teacher computes is no view."""
    d, h, w = crops.shape[2:]
    grid = grid_of((d, h, w), CELL)
    count = count_masked(grid[0] * grid[1] * grid[2], RATIO)
    return hide(crops, random_mask(len(crops), grid, count, torch.Generator().manual_seed(seed)))


VIEWS: dict[str, View] = {
    "ModelsGenesis": corrupted,
    "VolumeFusion": fused,
    **dict.fromkeys((name for name in METHODS if hasattr(METHODS[name].Config(), "mask_ratio")), masked),
}


def compare_views(read: Callable[[], Any], load: Callable[[], Any], args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one core per crop: of reading, of reading with rotation and scaling, and of each method's view.

    Args:
        read: makes a batch of which rotated and scaled crops are read and not finished.
        load: makes the same batch, finished.
        args: batch, batches and rounds; methods.
    """
    views = {name: VIEWS[name] for name in args.method or VIEWS}
    names = ("reading", "loader", *views)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, args.rounds):
        total = dict.fromkeys(names, 0.0)
        for i in range(args.batches):
            total["reading"] += _core_time(read)[0]
            taken, batch = _core_time(load)
            total["loader"] += taken
            seed = max(number, 0) * args.batches + i
            for name, view in views.items():
                total[name] += _core_time(partial(view, batch["image"], seed))[0]
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
