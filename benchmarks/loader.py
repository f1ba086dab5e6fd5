"""How fast crops are made: ours against nnU-Net's own loader, on one core.

    python benchmarks/loader.py --dataset_folder FOLDER --patch 80 128 128 --json FILE
    python benchmarks/loader.py --synthetic 400 512 512 --patch 160 160 160 --json FILE
    python benchmarks/loader.py --dataset_folder FOLDER --patch 80 128 128 --memory 2000 --json FILE
    python benchmarks/loader.py --dataset_folder FOLDER --patch 80 128 128 --method --json FILE
    python benchmarks/loader.py --dataset_folder FOLDER --patch 80 128 128 --views --json FILE
    python benchmarks/loader.py --index 100000 --json FILE

FOLDER holds preprocessed cases of nnU-Net (``nnUNet_preprocessed/DATASET/nnUNetPlans_3d_fullres``). Both sides rotate,
scale and mirror with AnatoMask's probabilities and ranges, take turns in one process with one thread, and the ratio is
that of the medians. nnU-Net's loader carries a segmentation along, which pretraining does not have.
``--memory`` runs our loader with processes for so many batches and compares the memory of all processes after them with
that after the first hundred. ``--method`` compares what methods (all, or those that are named) do to a crop before the
network sees it, be it corruption, fusion or mask, with reading the crop, in time of one core. ``--views`` compares
samples of two overlapping crops with samples of one and of two independent crops, in time of one core. ``--index``
starts a run over so many made-up cases that have an index but no content.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, timed, write
from benchmarks.loader_parts import memory_growth, nnunet_loader, start_up, write_volumes
from benchmarks.loader_views import compare_views, show_views
from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.data.batches import assemble
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, CropDataset
from ssl_pretrain.data.places import ViewPlaces
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods import METHODS
from ssl_pretrain.report.tables import format_table

SIDES = ("nnU-Net", "loader", "device")


def our_batches(folder: Path, patch: Triple, batch: int, seed: int, *, finish: bool) -> Callable[[], Any]:
    """Makes our next batch; without ``finish`` the device would rotate and scale it."""
    pool = CasePool.of(Cases(folder, channels_of(folder)))
    crops = CropDataset(pool, patch, CropConfig(), seed, TRAIN, finish=finish)
    state = {"next": 0}

    def next_batch() -> Any:
        first = state["next"]
        state["next"] += batch
        return assemble([crops[i] for i in range(first, first + batch)])

    return next_batch


SAMPLES = {
    "one crop": Views(),
    "two overlapping": Views(count=2, together=True, overlap=0.5),
    "two independent": Views(count=2),
}
KINDS: dict[str, tuple[CropConfig, bool]] = {
    "not moved": (CropConfig(rotation_p=0.0, scale_p=0.0), True),
    "rotated or scaled, loader": (CropConfig(rotation_p=0.5, scale_p=1.0), True),
    "rotated or scaled, device": (CropConfig(rotation_p=0.5, scale_p=1.0), False),
    "default, loader": (CropConfig(), True),
    "default, device": (CropConfig(), False),
}
"""Augmentation, and whether the loader finishes it."""


def compare_samples(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one core per sample until it is in a batch, for each kind of crop and of sample."""
    pool = CasePool.of(Cases(folder, channels_of(folder)))
    patch = as_triple(args.patch, "--patch")
    sets = {
        (kind, sample): CropDataset(pool, patch, config, args.seed, TRAIN, finish, ViewPlaces(views))
        for kind, (config, finish) in KINDS.items()
        for sample, views in SAMPLES.items()
    }
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in SAMPLES} for kind in KINDS}
    for number in range(-1, args.rounds):
        for (kind, name), crops in sets.items():
            first = max(number, 0) * args.batches
            began = time.process_time()
            for i in range(first, first + args.batches):
                assemble([crops[i]])
            if number >= 0:
                times[kind][name].append(1e3 * (time.process_time() - began) / args.batches)
    found: dict[str, Any] = {}
    for kind, by_sample in times.items():
        typical = {name: statistics.median(each) for name, each in by_sample.items()}
        ratios = {name: round(typical[name] / typical["one crop"], 2) for name in SAMPLES}
        found[kind] = {"milliseconds": {name: round(ms, 2) for name, ms in typical.items()}, "over_one": ratios}
    rounds = {kind: {name: [round(ms, 3) for ms in each] for name, each in by.items()} for kind, by in times.items()}
    return {"samples": found, "milliseconds_by_round": rounds}


def channels_of(folder: Path) -> int:
    """Channels of the cases of a folder."""
    import blosc2

    return int(blosc2.open(str(next(f for f in sorted(folder.glob("*.b2nd")) if "_seg" not in f.name))).shape[0])


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Patches per second of each side, and what ours are above nnU-Net's."""
    patch = as_triple(args.patch, "--patch")
    sides = {
        "nnU-Net": nnunet_loader(folder, patch, args.batch, args.seed),
        "loader": our_batches(folder, patch, args.batch, args.seed, finish=True),
        "device": our_batches(folder, patch, args.batch, args.seed, finish=False),
    }
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, run in sides.items():
            seconds[name].append(sum(timed(run, "cpu") for _ in range(args.batches)))
    # A round has crops with and without rotation in it, so that its time is that of a mixture.
    rates = {name: args.batch * args.batches / statistics.median(times) for name, times in seconds.items()}
    return {
        "patches_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["loader"] / rates["nnU-Net"], 2),
        "ratio_device": round(rates["device"] / rates["nnU-Net"], 2),
        "seconds": {name: [round(s, 4) for s in times] for name, times in seconds.items()},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    if args.index:
        return start_up(args.index)
    if args.dataset_folder:
        return measure(args.dataset_folder, args)
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(
            Path(folder), as_triple(args.synthetic, "--synthetic"), as_triple(args.patch, "--patch"), args.volumes
        )
        return measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Speed, views or memory on the cases of a folder."""
    patch = as_triple(args.patch, "--patch")
    if args.views:
        return compare_samples(folder, args)
    if args.method is not None:
        # As in a run on the CPU, where views are made in the training process.
        keep_freed_memory()
        read, load = (our_batches(folder, patch, args.batch, args.seed, finish=finish) for finish in (False, True))
        return compare_views(read, load, args)
    if not args.memory:
        return compare(folder, args)
    return memory_growth(Cases(folder, channels_of(folder)), patch, args.batch, args.memory, args.workers)


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    if "views" in result:
        return show_views(result)
    if "samples" in result:
        found = result["samples"]
        rows = [
            (kind, *(f"{row['milliseconds'][n]:.1f} ({row['over_one'][n]:.2f})" for n in SAMPLES))
            for kind, row in found.items()
        ]
        return format_table(("crops, ms per sample (over one crop)", *SAMPLES), rows)
    if "ratio" not in result:
        return "\n".join(f"{name}: {value}" for name, value in result.items() if name not in ("settings", "machine"))
    rates = result["patches_per_second"]
    rows = [(name, f"{rates[name]:.1f}", f"{rates[name] / rates['nnU-Net']:.1f}") for name in SIDES]
    return format_table(("side", "patches per second and core", "over nnU-Net"), rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset_folder", type=Path)
    what.add_argument("--synthetic", type=int, nargs=3, metavar=("D", "H", "W"), help="make volumes of this size")
    what.add_argument("--index", type=int, metavar="CASES", help="start over so many made-up cases")
    parser.add_argument("--patch", type=int, nargs=3, default=[80, 128, 128])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=25, help="per side and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=2, help="made with --synthetic")
    parser.add_argument("--memory", type=int, metavar="BATCHES")
    parser.add_argument(
        "--method", nargs="*", metavar="METHOD", choices=list(METHODS), help="views; of all methods by default"
    )
    parser.add_argument("--views", action="store_true", help="samples of two overlapping crops")
    parser.add_argument("--workers", type=int, default=2, help="processes, with --memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    torch.set_num_threads(1)
    result = run(args)
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items() if name != "json"}
    # Where a dataset lies on this machine is nobody's business.
    if args.dataset_folder:
        settings["dataset_folder"] = "/".join(args.dataset_folder.absolute().parts[-2:])
    print(show(result))
    write({"settings": settings, **result, **provenance("cpu")}, args.json)


if __name__ == "__main__":
    main()
