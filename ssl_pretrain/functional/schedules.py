"""Numbers that change over a run, as pure functions of the step or the epoch."""

from __future__ import annotations

from math import cos, pi


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, start: float) -> float:
    """Factor on the learning rate: linear warm-up from ``start``, then a cosine down to 0.

    Args:
        step: optimiser step, from 0.
        warmup_steps: steps until the factor reaches 1.
        total_steps: steps of the whole run; the factor is 0 from there on.
        start: factor at step 0 (published: 1e-6 divided by the learning rate).
    """
    if step < warmup_steps:
        return start + (1.0 - start) * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1.0 + cos(pi * min(progress, 1.0)))


def ema_decay(epoch: int, epochs: int, start: float = 0.999, end: float = 0.9999) -> float:
    """Decay of AnatoMask's teacher: rises linearly from ``start`` to ``end`` over the first quarter of the epochs."""
    ramp = epochs / 4.0
    return start + (end - start) * min(epoch / ramp, 1.0)
