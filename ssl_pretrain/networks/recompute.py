"""Gradient checkpointing of modules that keep running statistics or depend on a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Context = Callable[[], AbstractContextManager[object]]


def checkpointed(module: nn.Module, x: Tensor, restored: Context = nullcontext) -> Any:
    """Run a module without keeping what is inside it; the backward pass runs it again.

    Args:
        module: takes one tensor.
        x: that tensor.
        restored: context of the second run, which comes when those of the first are closed.
    """
    if not torch.is_grad_enabled():
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again(module, restored)))


class _Again:
    """Context of a repeated run; running statistics must not move a second time. Can be entered again."""

    def __init__(self, module: nn.Module, restored: Context) -> None:
        self.module, self.restored = module, restored

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(self.restored())
        self.stack.enter_context(_fixed_statistics(self.module))

    def __exit__(self, *_: object) -> None:
        self.stack.close()


@contextmanager
def _fixed_statistics(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    counters = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and counter is not None:
                norm.num_batches_tracked.copy_(counter)
