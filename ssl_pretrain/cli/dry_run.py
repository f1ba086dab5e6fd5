"""``--dry_run``: what a run would be, without running it."""

from __future__ import annotations

import copy
import json
from math import prod

import torch
from torch import Tensor, nn

from ssl_pretrain.methods import Method
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.prepare import Run
from ssl_pretrain.training.run import lightning_precision

BYTES = 4
ADAM_COPIES = 4
"""Weight, gradient and Adam's two moments."""


def show(run: Run) -> str:
    """Resolved configuration, network with its feature maps, mask grid, parameter counts and estimated memory."""
    method = run.method
    maps = [
        (
            i,
            m.channels,
            " x ".join(map(str, m.stride)),
            " x ".join(str(p // s) for p, s in zip(run.patch, m.stride, strict=True)),
        )
        for i, m in enumerate(method.backbone.feature_maps)
    ]
    trained = sum(p.numel() for p in method.trained.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in method.backbone.encoder.parameters())
    network = sum(p.numel() for p in method.backbone.network.parameters())
    states, activations = estimate_memory(run)
    return "\n".join(
        [
            json.dumps(run.config.to_dict(), indent=2),
            "",
            run.config.recipe_text(),
            f"data: {run.files.data}",
            f"cases: {len(run.cases.train)} to train on, {len(run.cases.validation)} to validate on ({run.cases.note})",
            f"output: {run.folder}",
            f"network: {method.backbone.architecture} with {run.plan.input_channels} input channels",
            "",
            format_table(("map", "channels", "stride", "voxels"), maps),
            "",
            method.describe(),
            *_cost(method),
            f"parameters: network {network:,}, of which the encoder {encoder:,}; trained now {trained:,}",
            f"memory (estimate, {lightning_precision(run.config)}): weights, gradients and optimiser "
            f"{states / 2**30:.2f} GiB, activations {activations / 2**30:.2f} GiB at batch {method.length.batch_size}",
        ]
    )


def _cost(method: Method) -> list[str]:
    """Multiply-adds of a forward pass as lines of text, and what the mask saves."""
    found = method.multiply_adds()
    if not found:
        return []
    dense = found.pop("encoder, all voxels")
    rows = [(name, f"{n / 1e9:.1f}", f"{n / sum(found.values()):.1%}") for name, n in found.items()]
    saved = f"encoder without the mask {dense / 1e9:.1f}: the mask saves {1 - found['encoder'] / dense:.0%} of it"
    return ["", format_table(("forward pass of a batch", "10^9 multiply-adds", "share"), rows), saved, ""]


def estimate_memory(run: Run) -> tuple[int, int]:
    """Bytes of weights with their optimiser state, and of the activations kept for the backward pass.

    The activations are counted on the ``meta`` device: what every layer without children puts out in one forward pass.
    What the library's kernels use for themselves comes on top.
    """
    method = run.method
    states = sum(p.numel() for p in method.parameters()) * BYTES
    states += sum(p.numel() for p in method.trained.parameters() if p.requires_grad) * BYTES * (ADAM_COPIES - 1)
    copied = copy.deepcopy(method).to("meta")
    voxels = 0

    def count(module: nn.Module, _: object, output: object) -> None:
        nonlocal voxels
        if isinstance(output, Tensor) and next(module.children(), None) is None:
            voxels += output.numel()

    for module in copied.modules():
        module.register_forward_hook(count)
    views = method.sample_views
    crops = method.length.batch_size * views.count
    with torch.no_grad():
        image = torch.empty(crops, run.plan.input_channels, *(views.size or run.patch), device="meta")
        copied.probe(image)
    half = "32" not in lightning_precision(run.config)
    return states, voxels * (BYTES // 2 if half else BYTES) + prod(image.shape) * BYTES
