"""Fine-tuning of the decoder study: nnU-Net's network and loss, AdamW, in a loop of a hundred steps or so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.study_data import LabelledCase, draw_batch
from ssl_pretrain import build_backbone, load_pretrained
from ssl_pretrain.functional.geometry import Triple


@dataclass(frozen=True)
class Task:
    """What is fine-tuned.

    Attributes:
        name: of the dataset.
        architecture: entry of the plans.
        patch: voxels per axis.
        organs: names of the classes 1, 2, ...
        channels: of the images.
        train: cases to draw labelled ones from.
        validation: cases to measure Dice on.
    """

    name: str
    architecture: Mapping[str, Any]
    patch: Triple
    organs: tuple[str, ...]
    channels: int
    train: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]


@dataclass(frozen=True)
class Schedule:
    """How it is fine-tuned.

    Attributes:
        labelled: cases with labels.
        steps: optimiser steps.
        points: steps after which Dice is measured.
        batch_size: crops per step.
        lr: highest of AdamW.
    """

    labelled: int
    steps: int
    points: tuple[int, ...]
    batch_size: int
    lr: float

    def factor(self, done: int) -> float:
        """Of the learning rate after so many steps: up over a tenth of the run, then down as in nnU-Net.

        Adam's first steps are as long as the rate allows, whatever the gradient; a short run has no time to recover.
        """
        rise = min(1.0, (done + 1) / max(1.0, 0.1 * self.steps))
        return float(rise * (1 - min(done, self.steps) / self.steps) ** 0.9)


def finetune(task: Task, schedule: Schedule, checkpoint: Path | None, seed: int) -> list[dict[str, Any]]:
    """Fine-tune once and measure Dice along the way.

    Cases, crops and fresh layers follow from the seed alone, so that runs of one seed differ in nothing but the
    checkpoint.
    """
    network = build_network(task, seed)
    loaded = load_pretrained(network, checkpoint).fraction if checkpoint else 0.0
    chosen = np.random.default_rng([seed, 0]).permutation(len(task.train))[: schedule.labelled]
    cases = [task.train[i] for i in chosen]
    rng = np.random.default_rng([seed, 1])
    optimizer = torch.optim.AdamW(network.parameters(), schedule.lr, weight_decay=1e-2)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    loss_of = build_loss()
    rows, losses, seconds = [], [], 0.0
    for step in range(1, schedule.steps + 1):
        started = time.perf_counter()
        losses.append(_step(network, optimizer, loss_of, draw_batch(cases, task.patch, schedule.batch_size, rng)))
        pace.step()
        seconds += time.perf_counter() - started
        if step in schedule.points:
            row = {"seed": seed, "step": step, "loss": round(float(np.mean(losses)), 5), "seconds": round(seconds, 2)}
            rows.append({**row, "loaded": round(loaded, 4), **evaluate(network, task)})
            losses = []
    return rows


def build_network(task: Task, seed: int) -> nn.Module:
    """The network as nnU-Net builds it, without deep supervision: short runs need no help from the coarse levels."""
    torch.manual_seed(seed)
    network = build_backbone(
        "plans",
        architecture=task.architecture,
        input_channels=task.channels,
        num_classes=len(task.organs) + 1,
        patch=task.patch,
    ).network
    network.decoder.deep_supervision = False  # type: ignore[union-attr]
    return network


def build_loss() -> nn.Module:
    """nnU-Net's Dice and cross-entropy. Dice over the batch: a crop often has one organ of seven."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss: nn.Module = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return loss


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss_of: nn.Module, batch: tuple[Tensor, Tensor]
) -> float:
    network.train()
    image, labels = batch
    loss: Tensor = loss_of(network(image), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    return float(loss.detach())


def evaluate(network: nn.Module, task: Task) -> dict[str, Any]:
    """Dice of each validation case (mean over organs) and of each organ (mean over cases), and the mean of all."""
    network.eval()
    table = [dice(predict(network, case, task.patch), case.labels, len(task.organs)) for case in task.validation]
    values = np.array(table)
    return {
        "dice": round(float(np.nanmean(values)), 5),
        "organs": _named(task.organs, values.T),
        "cases": _named([case.name for case in task.validation], values),
    }


def _named(names: Sequence[str], rows: np.ndarray[Any, Any]) -> dict[str, float | None]:
    return {
        name: None if np.isnan(row).all() else round(float(np.nanmean(row)), 5)
        for name, row in zip(names, rows, strict=True)
    }


def predict(network: nn.Module, case: LabelledCase, patch: Triple) -> Tensor:
    """Labels (D, H, W) from tiles that overlap no more than they have to; logits are summed where they do."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    starts = compute_steps_for_sliding_window(tuple(case.labels.shape), patch, 1.0)
    total: Tensor | None = None
    with torch.inference_mode():
        for start in product(*starts):
            box = (slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))
            logits = network(case.image[box][None])[0]
            if total is None:
                total = torch.zeros(logits.shape[0], *case.labels.shape)
            total[box] += logits
    assert total is not None
    return total.argmax(0)


def dice(predicted: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Dice of the classes 1, 2, ...; NaN where a class is in neither."""
    values = []
    for c in range(1, classes + 1):
        ours, theirs = predicted == c, labels == c
        size = int(ours.sum() + theirs.sum())
        values.append(2 * int((ours & theirs).sum()) / size if size else float("nan"))
    return values
