"""Time whole training steps and their parts, and the peak memory.

    python benchmarks/step.py --method AnatoMask --network STUNet_base --patch 64 64 64 --batch 1 --device cpu

Needs PyTorch and Lightning only. Data are random numbers: nothing is read. A step is what training does: choose the
mask (with the teacher, where there is one), forward, backward, clip, optimiser step, teacher's step. Parts are timed
apart, in the same process, on the same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ssl_pretrain.functional.losses import cell_errors, masked_mean
from ssl_pretrain.functional.masking import random_mask
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods import METHODS, MethodSetup, RunLength, build_method
from ssl_pretrain.methods.spark import SparK
from ssl_pretrain.networks import build_backbone

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]]


def build(args: argparse.Namespace) -> SparK:
    """The method on the network, in training mode."""
    torch.manual_seed(args.seed)
    architecture = {"arch_kwargs": {"strides": STRIDES}}
    patch = tuple(args.patch)
    backbone = build_backbone(
        args.network, architecture=architecture, input_channels=args.channels, num_classes=105, patch=patch
    )
    config = METHODS[args.method].Config(mask_cell=(16, 16, 16), stages=args.stages, decoder_norm=args.decoder_norm)
    setup = MethodSetup(backbone=backbone, patch=patch, length=RunLength(1000, 250, args.batch), seed=args.seed)
    method = build_method(args.method, config, setup).to(args.device).train()
    assert isinstance(method, SparK)
    return method


def whole_step(method: SparK, batch: dict[str, Any], args: argparse.Namespace) -> Callable[[], None]:
    """One training step, ready to be called."""
    parameters = [p for p in method.trained.parameters() if p.requires_grad]
    optimizer = method.configure_optimizers()["optimizer"]
    generator = torch.Generator(args.device).manual_seed(args.seed)

    def step() -> None:
        with autocast(args):
            loss = method(batch, generator).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, method.config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.update_teacher()

    return step


def parts(method: SparK, batch: dict[str, Any], args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Teacher, encoder, densification, decoder and loss, each by itself; the student's forward and backward apart."""
    image = batch["image"]
    generator = torch.Generator(args.device).manual_seed(args.seed)
    mask = random_mask(image.shape[0], method.grid, method.masked, generator)
    state: dict[str, Any] = {}

    def encoder_forward() -> None:
        with autocast(args), method.student.mask.visible(~mask):
            level = method.student.mask.level(image.shape[0], tuple(image.shape[2:]), image.dtype)
            state["maps"] = method.student.encoder(image * level.visible)

    def densify_forward() -> None:
        state["leaves"] = [m.detach().requires_grad_() for m in state["maps"]]
        with autocast(args), method.student.mask.visible(~mask):
            pairs = zip(method.student.densify, reversed(state["leaves"]), strict=False)
            state["dense"] = [fill(feature_map) for fill, feature_map in pairs]

    def decoder_forward() -> None:
        state["dense_leaves"] = [m.detach().requires_grad_() for m in state["dense"]]
        with autocast(args):
            state["out"] = method.student.decoder(state["dense_leaves"])

    def loss_forward() -> None:
        state["out_leaf"] = state["out"].detach().float().requires_grad_()
        errors = cell_errors(to_cells(state["out_leaf"], method.cell), to_cells(image, method.cell))
        state["loss"] = masked_mean(errors, mask.flatten(1))

    def backward(outputs: str, leaves: str) -> Callable[[], None]:
        def run() -> None:
            used = [(o, i.grad) for o, i in zip(listed(state[outputs]), listed(state[leaves]), strict=False)]
            torch.autograd.backward([o for o, _ in used], [g.to(o.dtype) for o, g in used])

        return run

    named: dict[str, Callable[[], None]] = {}
    if hasattr(method, "rate"):
        named["teacher forward"] = lambda: rate(method, image, generator, args)
    named |= {
        "encoder forward": encoder_forward,
        "densify forward": densify_forward,
        "decoder forward": decoder_forward,
        "loss forward": loss_forward,
        "loss backward": lambda: state["loss"].backward(),
        "decoder backward": backward("out", "out_leaf"),
        "densify backward": backward("dense", "dense_leaves"),
        "encoder backward": lambda: encoder_backward(state),
    }
    return named


def rate(method: Any, image: Tensor, generator: torch.Generator, args: argparse.Namespace) -> None:
    """The teacher's part of a step."""
    with autocast(args):
        method.rate(image, generator)


def encoder_backward(state: dict[str, Any]) -> None:
    """Backward through the encoder, from the maps that were densified."""
    pairs = [(m, leaf.grad) for m, leaf in zip(state["maps"], state["leaves"], strict=True) if leaf.grad is not None]
    torch.autograd.backward([m for m, _ in pairs], [g.to(m.dtype) for m, g in pairs])


def listed(value: Tensor | list[Tensor]) -> list[Tensor]:
    """One tensor or several as a list."""
    return [value] if isinstance(value, Tensor) else value


def autocast(args: argparse.Namespace) -> Any:
    """Mixed precision as asked for."""
    dtype = {"32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    return torch.autocast(torch.device(args.device).type, dtype=dtype, enabled=args.precision != "32")


def timed(run: Callable[[], None], args: argparse.Namespace) -> float:
    """Seconds of one call."""
    synchronize(args)
    started = time.perf_counter()
    run()
    synchronize(args)
    return time.perf_counter() - started


def synchronize(args: argparse.Namespace) -> None:
    """Wait for the GPU."""
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(args: argparse.Namespace) -> float:
    """GiB: allocated on the GPU, or the process's resident maximum on the CPU."""
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of whole steps and of parts."""
    method = build(args)
    image = torch.randn(args.batch, args.channels, *args.patch, device=args.device)
    batch = {"image": image, "case": [""] * args.batch, "index": torch.zeros(args.batch)}
    step = whole_step(method, batch, args)
    for _ in range(args.warmup):
        step()
    steps = [timed(step, args) for _ in range(args.steps)]
    memory = peak_memory(args)
    pieces: dict[str, list[float]] = {}
    for _ in range(args.steps):
        for name, run in parts(method, batch, args).items():
            pieces.setdefault(name, []).append(timed(run, args))
        method.zero_grad(set_to_none=True)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "step_seconds": statistics.median(steps),
        "step_seconds_all": steps,
        "part_seconds": {name: statistics.median(values) for name, values in pieces.items()},
        "peak_memory_gib": memory,
        "machine": {"device": device, "system": platform.platform(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
    }


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"step   {result['step_seconds']:.3f} s   peak memory {result['peak_memory_gib']:.2f} GiB"]
    lines += [f"  {name:18} {seconds:.3f} s" for name, seconds in result["part_seconds"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="AnatoMask", choices=list(METHODS))
    parser.add_argument("--network", default="STUNet_base")
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--stages", type=int, default=5, help="encoder stages; the published STU-Net uses 5 of 6")
    parser.add_argument("--decoder_norm", default="batch", choices=("batch", "instance"), help="published: batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args)
    print(show(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
