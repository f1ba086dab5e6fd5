"""Saving and continuing a run."""

from __future__ import annotations

import logging
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from ssl_pretrain.files import archive_fault, save_atomic
from ssl_pretrain.training.history import History

log = logging.getLogger("ssl_pretrain")

LATEST, PREVIOUS = "checkpoint_latest.ckpt", "checkpoint_previous.ckpt"
BEST, FINAL = "checkpoint_best.pth", "checkpoint_final.pth"
CONFIG = "config.json"

ENTRIES = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch", "global_step")
"""What Lightning restores of a checkpoint."""


class NonFiniteLossError(ArithmeticError):
    """Loss or weights became NaN or Inf; the message names the step and the last good checkpoint."""


def check_finite(module: nn.Module, step: int, folder: Path) -> None:
    """Refuse to save weights that are not finite: a finite loss can have a gradient that is not.

    Raises:
        NonFiniteLossError: names the step and the last good checkpoint.
    """
    norms = torch.stack([p.detach().float().norm() for p in module.parameters() if p.requires_grad])
    if not bool(torch.isfinite(norms).all()):
        raise NonFiniteLossError(
            f"The weights are NaN or Inf after step {step}: a gradient was, though no loss. {last_good(folder)} Lower "
            "-lr, or use -precision 32, then continue with --c."
        )


def last_good(folder: Path) -> str:
    """Where the last good checkpoint is, as a sentence."""
    good = folder / LATEST
    kept = f"The last good checkpoint is {good}" if good.exists() else "No checkpoint had been saved yet"
    return f"{kept}; nothing was overwritten."


def continue_with(folder: Path) -> str:
    """What to do with a run that was stopped, as a sentence."""
    if any((folder / name).exists() for name in (LATEST, PREVIOUS)):
        return "Continue with --c."
    return "Start it again."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside and renames, and keeps the checkpoint before the latest."""

    def __init__(self) -> None:
        super().__init__()
        self._latest_is_good = True

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read it; where it is the checkpoint before the latest, the latest is damaged."""
        self._latest_is_good = Path(path).name != PREVIOUS
        return super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace ``path``; what was there becomes ``checkpoint_previous.ckpt``, unless it is damaged."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = target.name == LATEST and self._latest_is_good
        save_atomic(checkpoint, target, keep=target.with_name(PREVIOUS) if kept else None)
        self._latest_is_good |= target.name == LATEST


class Checkpoints(Checkpoint):
    """Saves the latest state of every epoch for continuing, and the best and final weights for the world.

    Args:
        folder: where the files go.
        history: knows the validation loss; runs before this callback.
        export: makes the content of a ``.pth`` file.
    """

    def __init__(self, folder: Path, history: History, export: Callable[[int], dict[str, Any]]) -> None:
        self.folder = folder
        self.history = history
        self.export = export
        self.best = float("inf")

    def state_dict(self) -> dict[str, Any]:
        """Lowest validation loss so far, and the global random states."""
        return {"best": self.best, "random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best loss; the random states are restored when training starts."""
        self.best = float(state_dict["best"])
        self._random = state_dict["random"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the random states of a continued run, after all its preparations, also within an epoch."""
        if (state := self.__dict__.pop("_random", None)) is not None:
            restore_random_state(state)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save latest, and best when the validation loss fell."""
        check_finite(pl_module, trainer.global_step, self.folder)
        loss = self.history.rows[-1]["val_loss"]
        improved = loss < self.best
        self.best = min(self.best, loss)
        # Best first: a run that is cut off between the two repeats the epoch and writes it again.
        if improved and trainer.is_global_zero:
            save_atomic(self.export(trainer.current_epoch + 1), self.folder / BEST)
        trainer.save_checkpoint(self.folder / LATEST)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final weights, if the run is complete."""
        if trainer.is_global_zero and len(self.history.rows) == trainer.max_epochs:
            self.save_final()

    def save_final(self) -> None:
        """Write the final weights."""
        save_atomic(self.export(len(self.history.rows)), self.folder / FINAL)


def find_resumable(folder: Path) -> Path | None:
    """The checkpoint to continue from: the latest, or the one before where the latest is damaged.

    Returns:
        None for a run that ended before its first checkpoint: there is nothing to continue from, and nothing to lose.

    Raises:
        FileNotFoundError: there is no run, or only its final weights.
        ValueError: there are only damaged ones.
    """
    candidates = [folder / name for name in (LATEST, PREVIOUS) if (folder / name).is_file()]
    if not candidates and (weights := finished_weights(folder)) is not None:
        raise FileNotFoundError(
            f"--c: {folder} holds {weights.name} and no {LATEST}, so the run cannot be continued. Use its weights, or "
            "choose another folder with -o."
        )
    if not candidates and (folder / CONFIG).is_file():
        log.warning("--c: the run in %s ended before its first checkpoint. It begins anew.", folder)
        return None
    if not candidates:
        raise FileNotFoundError(
            f"--c: there is no {LATEST} in {folder} to continue from. Start the run without --c, or give its folder "
            "with -o."
        )
    for candidate in candidates:
        fault = fault_of(candidate)
        if fault is None:
            return candidate
        log.warning("%s is damaged (%s).", candidate, fault)
        if candidate != candidates[-1]:
            log.warning("Falling back to the checkpoint before it: %s.", candidates[-1])
    raise ValueError(
        f"--c: no checkpoint in {folder} can be read ({', '.join(c.name for c in candidates)}). Start again without "
        "--c in another folder (-o)."
    )


def finished_weights(folder: Path) -> Path | None:
    """Weights in a folder that beginning anew would replace.

    The best weights after a first epoch are not among them: they are written just before the first checkpoint, and a
    run that ends between the two has nothing else.
    """
    if (folder / FINAL).is_file():
        return folder / FINAL
    best = folder / BEST
    if not best.is_file():
        return None
    try:
        epochs = torch.load(best, map_location="cpu", mmap=True, weights_only=True)["pretraining"]["epoch"]
    except Exception:  # damaged, or not of ours: nothing to throw away without asking
        return best
    return best if epochs != 1 else None


def fault_of(file: Path) -> str | None:
    """Why a checkpoint cannot be continued from, or None."""
    if not zipfile.is_zipfile(file):
        return "it is cut off, or no checkpoint"
    if (fault := archive_fault(file)) is not None:
        return fault
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    missing = [name for name in ENTRIES if not isinstance(content, dict) or name not in content]
    return f"it has no {', '.join(missing)}" if missing else None


def check_fits(checkpoint: Path, module: nn.Module) -> None:
    """Refuse to continue from a checkpoint of another network, before anything of it is restored.

    Raises:
        ValueError: names the first tensor that is missing, too much, or of another shape.
    """
    stored = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    here = module.state_dict()
    for name in dict.fromkeys([*here, *stored]):
        shapes = [tuple(part[name].shape) if name in part else "missing" for part in (stored, here)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{checkpoint} is of another network: {name} is {shapes[0]} in the file, {shapes[1]} in the network. "
                "Continue with the version of this library that wrote it, or choose another folder with -o."
            )


def random_state() -> dict[str, Any]:
    """States of the global generators of Python, NumPy and PyTorch, in plain containers."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`; states of GPUs that are not there are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
