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
        return _rising(step, warmup_steps, start)
    return 0.5 * (1.0 + cos(pi * _progress(step, warmup_steps, total_steps)))


def warmup_polynomial(step: int, warmup_steps: int, total_steps: int, start: float, exponent: float = 0.9) -> float:
    """Factor on the learning rate: linear warm-up from ``start``, then nnU-Net's ``(1 - progress)^0.9`` down to 0.

    Args:
        step, warmup_steps, total_steps, start: as in :func:`warmup_cosine`.
        exponent: of the decay.
    """
    if step < warmup_steps:
        return _rising(step, warmup_steps, start)
    return float((1.0 - _progress(step, warmup_steps, total_steps)) ** exponent)


def _rising(step: int, warmup_steps: int, start: float) -> float:
    return start + (1.0 - start) * step / warmup_steps


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the steps after the warm-up that are done, at most 1."""
    return min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)


def ema_decay(epoch: int, epochs: int, start: float = 0.999, end: float = 0.9999) -> float:
    """Decay of AnatoMask's teacher: rises linearly from ``start`` to ``end`` over the first quarter of the epochs."""
    ramp = epochs / 4.0
    return start + (end - start) * min(epoch / ramp, 1.0)
