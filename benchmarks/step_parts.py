"""The parts of a training step by themselves, each ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ssl_pretrain.functional.losses import cell_errors, masked_mean
from ssl_pretrain.functional.masking import draw_cells, random_mask
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods.anatomask import AnatoMask
from ssl_pretrain.methods.spark import SparK
from ssl_pretrain.networks.masked import encode_masked


def parts(
    method: SparK, image: Tensor, precision: Callable[[], AbstractContextManager[None]]
) -> dict[str, Callable[[], None]]:
    """Teacher, and the student's forward and backward passes, in the order in which they have to be called.

    Args:
        method: on its device.
        image: (B, C, D, H, W).
        precision: context of the forward passes.
    """
    generator = torch.Generator(image.device).manual_seed(0)
    mask = random_mask(image.shape[0], method.grid, method.masked, generator)
    visible = mask[0].numel() - method.masked
    student = method.student
    owners = method.sample_generators({"image": image}, generator)
    cells = draw_cells(mask, method.drawn or method.masked, owners)
    state: dict[str, Any] = {}

    def encoder_forward() -> None:
        with precision(), student.mask.visible(~mask, visible):
            state["maps"] = encode_masked(student.encoder, image, student.mask, student.packed_stages)

    def densify_forward() -> None:
        state["leaves"] = [m._replace(values=m.values.detach().requires_grad_()) for m in state["maps"]]
        with precision(), student.decoding(cells), student.mask.visible(~mask, visible):
            filled = student.fill(state["leaves"])
            state["dense"] = [x.contiguous(memory_format=student.memory_format) for x in filled]

    def decoder_forward() -> None:
        state["dense_leaves"] = [m.detach().requires_grad_() for m in state["dense"]]
        with precision(), student.decoding(cells):
            state["out"] = student.decoder(state["dense_leaves"])[0]

    def loss_forward() -> None:
        state["out_leaf"] = state["out"].detach().float().requires_grad_()
        errors = cell_errors(to_cells(state["out_leaf"], method.cell), to_cells(image, method.cell))
        state["loss"] = masked_mean(errors, cells.chosen.flatten(1))

    def rate() -> None:
        assert isinstance(method, AnatoMask)
        with precision():
            method.rate({"image": image}, method.sample_generators({"image": image}, generator))

    named: dict[str, Callable[[], None]] = {"teacher forward": rate} if isinstance(method, AnatoMask) else {}
    return named | {
        "encoder forward": encoder_forward,
        "densify forward": densify_forward,
        "decoder forward": decoder_forward,
        "loss forward": loss_forward,
        "loss backward": lambda: state["loss"].backward(),
        "decoder backward": lambda: _backward([state["out"]], [state["out_leaf"]]),
        "densify backward": lambda: _backward(state["dense"], state["dense_leaves"]),
        "encoder backward": lambda: _backward(*([m.values for m in state[n]] for n in ("maps", "leaves"))),
    }


def _backward(outputs: list[Tensor], leaves: list[Tensor]) -> None:
    """Backward from outputs whose gradients the detached copies ``leaves`` have received."""
    used = [(o, leaf.grad) for o, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward([o for o, _ in used], [g.to(o.dtype) for o, g in used])
