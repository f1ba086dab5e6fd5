"""What a run notes on its way without a trace in its training: Dice of the validation cases, how far weights move."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_pretrain.files import read_json, save_atomic, write_json
from ssl_pretrain.finetuning.parts import parts_of
from ssl_pretrain.networks.anatomy import unwrap
from ssl_pretrain.study.stored import Watched

NOTES, START = "watched.json", "checkpoint_start.pth"
AGAIN = "Remove the folder of this run, and --c runs it again."

EARLY = (0.01, 0.1)
"""Shares of a run after which its weights are looked at, beside its first step: the first tenth decides."""

Validate = Callable[[], Mapping[str, Any]]
"""Returns Dice of each validation case, of each label, and their mean, of a trainer's network as it is."""


class Watch:
    """Looks at a training after some of its optimiser steps.

    What is seen is written at once, beside nnU-Net's results: a run that goes on from a checkpoint has it, and does not
    look again after steps that it trains once more. A run that begins anew has its results removed, and this with them.

    Args:
        trainer: of nnU-Net, initialised, with the weights that it begins with, or of a run that goes on.
        validate: what is done at each point of the curve; it may leave network and generators as it likes.
        shares: of the training's steps after which the network is validated, see :func:`step_after`.

    Raises:
        ValueError: the notes of a run that goes on are damaged; names the file.
    """

    def __init__(self, trainer: Any, validate: Validate, shares: Sequence[float] = ()) -> None:
        self.trainer, self._validate = trainer, validate
        self.folder = Path(trainer.output_folder)
        total = int(trainer.num_epochs * trainer.num_iterations_per_epoch)
        self.points = {step_after(share, total) for share in shares}
        self.looks = {1, total, *(step_after(share, total) for share in (*EARLY, *shares))}
        self.done = int(trainer.current_epoch * trainer.num_iterations_per_epoch)
        file = self.folder / NOTES
        self.notes = read_json(file, Watched, remedy=AGAIN) if file.is_file() else Watched()
        if not self.done:
            save_atomic(parameters_of(trainer.network), self.folder / START)
        if (self.folder / START).is_file():
            self.start = torch.load(self.folder / START, weights_only=True, map_location="cpu")
        else:
            self.looks = set()  # of a run that an older version began
        train_step = trainer.train_step

        def watched(batch: Any) -> Any:
            output = train_step(batch)
            self.done += 1
            self._look()
            return output

        trainer.train_step = watched

    def _look(self) -> None:
        if self.done in self.looks and self.done not in {entry.steps for entry in self.notes.movement}:
            moved = {"steps": self.done, "parts": distances(self.trainer.network, self.start)}
            self.note(movement=[*self.notes.movement, moved])
        if self.done in self.points and self.done not in {entry.steps for entry in self.notes.curve}:
            with undisturbed(self.trainer):
                point = self.validate(self.done)
            self.note(curve=[*self.notes.curve, point])

    def note(self, **new: Any) -> None:
        """Write what was seen; ``new`` replaces fields of the notes."""
        self.notes = Watched.model_validate({**dict(self.notes), **new})
        write_json(self.notes.model_dump(), self.folder / NOTES)

    def validate(self, steps: int) -> dict[str, Any]:
        """A point of a curve: Dice of the trainer's network now.

        Args:
            steps: that it was trained for.
        """
        started = time.perf_counter()
        found = self._validate()
        return {"steps": steps, **found, "seconds": round(time.perf_counter() - started, 2)}


def step_after(share: float, total: int) -> int:
    """The optimiser step that is nearest to a share of all steps, one at least; it need not end an epoch."""
    return max(1, math.floor(share * total + 0.5))


@contextmanager
def undisturbed(trainer: Any) -> Iterator[None]:
    """Leave a trainer in the middle of an epoch as it was: generators, modes of its modules, deep supervision."""
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - batchgenerators' own
    on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes, threads = [(module, module.training) for module in trainer.network.modules()], torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])  # noqa: NPY002
        torch.set_rng_state(drawn[2])
        if on_device:
            torch.cuda.set_rng_state_all(on_device)
        for module, training in modes:
            module.training = training
        torch.set_num_threads(threads)
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's parameters on the CPU, by name, without the names of wrappers."""
    return {name: value.detach().cpu().clone() for name, value in unwrap(network).named_parameters()}


def distances(network: nn.Module, start: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """How far the parameters of each part of a network are from where they began.

    Args:
        network: wrapped or not.
        start: what :func:`parameters_of` gave then.

    Returns:
        ``encoder`` and ``rest``, or ``network`` where it does not say where its encoder is -> ``distance`` and
        ``cosine``, see :class:`~ssl_pretrain.study.stored.Distance`.
    """
    now = parameters_of(network)
    try:
        parts = parts_of(network)
        names: dict[str, Iterable[str]] = {"encoder": parts.encoder, "rest": parts.decoder}
    except ValueError:
        names = {"network": now}
    return {part: _distance([(start[name], now[name]) for name in inside]) for part, inside in names.items()}


def _distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float | None]:
    sums = [0.0] * 4
    for before, after in ((a.double(), b.double()) for a, b in pairs):
        products = (before * before, after * after, before * after, (after - before) ** 2)
        sums = [total + float(product.sum()) for total, product in zip(sums, products, strict=True)]
    began, ended, both, apart = sums
    if not (began and math.isfinite(ended)):  # a training may diverge
        return {"distance": None, "cosine": None}
    cosine = max(-1.0, min(1.0, both / math.sqrt(began * ended))) if ended else None
    return {"distance": math.sqrt(apart / began), "cosine": cosine}
