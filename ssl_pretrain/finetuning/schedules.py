"""What a training does in which epoch: its learning rate, and whether the encoder is trained. Pure functions.

Published numbers: Wald et al. 2025 (OpenMind, arXiv 2412.17041) for warm-up and sawtooth, nnU-Net for the decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

EXPONENT = 0.9
"""Of nnU-Net's polynomial decay."""

KINDS = ("default", "warmup", "sawtooth", "frozen", "llrd")

WARMUP = {1000: 50}
"""Epochs of a run -> epochs of its warm-up, as published."""

SAWTOOTH = {150: (7, 8, 15), 1000: (25, 25, 50)}
"""Epochs of a run -> epochs of the decoder's warm-up, of its training, and of the whole network's warm-up."""


@dataclass(frozen=True)
class Schedule:
    """How a training goes, whatever its length.

    Attributes:
        kind: ``default``, ``warmup``, ``sawtooth``, ``frozen`` or ``llrd``.
        value: epochs for which ``frozen`` freezes the encoder; factor by which ``llrd`` lowers the learning rate from
            each layer of the encoder to the one before; 0 otherwise.

    Raises:
        ValueError: an unknown kind, or a value that it cannot have.
    """

    kind: str
    value: float = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown schedule {self.kind!r}. Choose from {', '.join(KINDS)}.")
        if self.kind == "frozen" and (self.value != int(self.value) or self.value < 1):
            raise ValueError(f"frozen<N> freezes the encoder for a whole number N >= 1 of epochs, got {self.value}.")
        if self.kind == "llrd" and not 0 < self.value < 1:
            raise ValueError(f"llrd<γ> needs a factor γ between 0 and 1, such as 0.75, got {self.value}.")  # noqa: RUF001

    @property
    def freezes(self) -> bool:
        """Whether there are epochs in which the encoder is not trained."""
        return self.kind in ("sawtooth", "frozen")

    def layer_factor(self, depth: int) -> float:
        """Factor on a layer's learning rate: ``depth`` 0 for the decoder, 1 for the encoder's deepest, and so on."""
        return float(self.value**depth) if self.kind == "llrd" else 1.0


class Tooth(NamedTuple):
    """Epochs from ``start`` to below ``end`` in which the learning rate rises to its peak, or falls from it to 0."""

    start: int
    end: int
    rises: bool


class Phase(NamedTuple):
    """Epochs from ``start`` to below ``end`` in which the same is done."""

    name: str
    start: int
    end: int
    frozen: bool


@dataclass(frozen=True)
class Course:
    """A schedule over a number of epochs.

    Attributes:
        epochs: of the whole run.
        teeth: of the learning rate, one after the other.
        frozen: epochs at the beginning in which the encoder is not trained.
    """

    epochs: int
    teeth: tuple[Tooth, ...]
    frozen: int = 0

    def rate(self, epoch: int, peak: float, done: float = 1.0) -> float:
        """The learning rate of an epoch, counted from 0: linear up to ``peak``, polynomial down to 0.

        Args:
            epoch: counted from 0.
            peak: the highest rate.
            done: share of the epoch's steps, the current one included, that a warm-up has come to. Nothing else changes
                within an epoch.
        """
        if epoch >= self.epochs:
            return 0.0
        tooth = next(tooth for tooth in self.teeth if tooth.start <= epoch < tooth.end)
        length = tooth.end - tooth.start
        if tooth.rises:
            return peak * (epoch - tooth.start + done) / length
        return float(peak * (1 - (epoch - tooth.start) / length) ** EXPONENT)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is done, one after the other; the last one ends with the run."""
        ends = sorted({tooth.end for tooth in self.teeth} | ({self.frozen} if self.frozen else set()))
        return tuple(Phase(self._name(start), start, end, start < self.frozen) for start, end in pairwise([0, *ends]))

    def phase(self, epoch: int) -> Phase:
        """The phase of an epoch; the last one for epochs after the end."""
        return next((phase for phase in self.phases if epoch < phase.end), self.phases[-1])

    def _name(self, epoch: int) -> str:
        rises = next(tooth.rises for tooth in self.teeth if tooth.start <= epoch < tooth.end)
        return f"{'encoder frozen' if epoch < self.frozen else 'whole network'}, {'warm-up' if rises else 'decay'}"


def course_of(schedule: Schedule, epochs: int) -> Course:
    """Spread a schedule over a number of epochs.

    Raises:
        ValueError: too few epochs for it.
    """
    if epochs < 1:
        raise ValueError(f"A training needs at least 1 epoch, got {epochs}.")
    if schedule.kind == "default":
        return Course(epochs, (Tooth(0, epochs, rises=False),))
    if schedule.kind == "sawtooth":
        return _sawtooth(epochs)
    frozen = int(schedule.value) if schedule.kind == "frozen" else 0
    if frozen > epochs:
        raise ValueError(
            f"frozen{frozen} freezes the encoder for {frozen} epochs, and the run has {epochs}. "
            f"Use frozen{epochs} to freeze it all the time, or fewer."
        )
    warmup = scaled(WARMUP, epochs)
    teeth = (Tooth(0, warmup, rises=True), Tooth(warmup, epochs, rises=False))
    return Course(epochs, tuple(tooth for tooth in teeth if tooth.start < tooth.end), frozen)


def scaled(published: Mapping[int, int], epochs: int) -> int:
    """Length of a part of a run of ``epochs``: at least 1, as published where it was, and in proportion elsewhere.

    Between two published runs the length lies on the line between theirs; below and above all of them it has the share
    of the nearest one.

    Args:
        published: epochs of a run -> epochs of the part.
        epochs: of the run, at least 1.
    """
    below = max((run for run in published if run <= epochs), default=None)
    above = min((run for run in published if run > epochs), default=None)
    if below is None or above is None:
        (nearest,) = (run for run in (below, above) if run is not None)
        length = published[nearest] * epochs / nearest
    else:
        share = (epochs - below) / (above - below)
        length = published[below] + share * (published[above] - published[below])
    # Halves go up: Python's round() would send them to the even neighbour.
    return max(1, int(length + 0.5))


def _sawtooth(epochs: int) -> Course:
    lengths = [scaled({run: parts[part] for run, parts in SAWTOOTH.items()}, epochs) for part in range(3)]
    if sum(lengths) >= epochs:
        raise ValueError(
            f"sawtooth has four parts and needs at least {len(lengths) + 1} epochs, but the run has {epochs}."
        )
    first, second, third = lengths
    starts = [0, first, first + second, first + second + third, epochs]
    teeth = (Tooth(start, end, index % 2 == 0) for index, (start, end) in enumerate(pairwise(starts)))
    return Course(epochs, tuple(teeth), frozen=first + second)
