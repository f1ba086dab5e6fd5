"""A pretraining run: Lightning's Trainer, our callbacks, the files in the output folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from pydantic import BaseModel

from ssl_pretrain.allocator import keep_freed_memory
from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.files import locked, read_json, remove_leftovers, write_json
from ssl_pretrain.training.checkpoints import (
    CONFIG,
    FINAL,
    LATEST,
    PREVIOUS,
    AtomicCheckpointIO,
    Checkpoints,
    NonFiniteLossError,
    check_fits,
    continue_with,
    find_resumable,
    finished_weights,
)
from ssl_pretrain.training.display import Bar, Pictures
from ssl_pretrain.training.failures import plain_words
from ssl_pretrain.training.fine_tuning import finetune_command, write_plans
from ssl_pretrain.training.guards import FiniteLoss, PreemptedError, StopSignal, ctrl_c_is_no_exit
from ssl_pretrain.training.history import History
from ssl_pretrain.training.log_files import LogFile, TensorBoard, silent_writers
from ssl_pretrain.training.plateau import JUDGED_FROM, Collapse, Plateau
from ssl_pretrain.training.prepare import Run, find, output_folder, prepare
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint

log = logging.getLogger("ssl_pretrain")

ALIKE = (PreemptedError, NonFiniteLossError, KeyboardInterrupt)
"""What ends all processes of a run alike: the first one speaks for them."""

CASES = "cases.json"
"""The cases of a run, in its folder."""


class StoredCases(BaseModel):
    """``cases.json``: dataset, folder and identifier of every case."""

    train: list[str]
    validation: list[str]


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        folder: the output folder.
        checkpoint: ``checkpoint_final.pth``.
        metrics: one row per epoch: losses, learning rate, pace.
        finetune_command: the command that fine-tunes with the result; with one of our trainers (``-tr``), nnU-Net finds
            it through the environment variable ``nnUNet_extTrainer``.
    """

    folder: Path
    checkpoint: Path
    metrics: list[dict[str, float]]
    finetune_command: str


def pretrain(config: PretrainConfig, *, resume: bool = False, trust_plans: bool = False) -> Result:
    """Pretrain a network and write its checkpoint.

    Args:
        config: every setting of the run.
        resume: continue from ``checkpoint_latest.ckpt`` of the output folder.
        trust_plans: let the plans name code of packages other than torch, nnU-Net, MONAI and this one, and run it. No
            setting of the configuration: a file that lies in a results folder must not say so.

    Raises:
        ValueError, FileNotFoundError: bad input; nothing was written.
        NonFiniteLossError: the loss became NaN or Inf; the last good checkpoint is intact.
        PreemptedError: SIGTERM; the run is saved.
        RunFailedError: memory, a killed process; says what to do. Its cause is the error as it came.
        KeyboardInterrupt: Ctrl-C; the last checkpoint is intact.
        OSError: a file cannot be written; the previous checkpoint is intact.
    """
    if config.device == "cpu":
        keep_freed_memory()
    checkpoint = find_resumable(resolve_folder(config)) if resume else None
    with plain_words(config):
        run = prepare(config, resume=checkpoint is not None, trust_plans=trust_plans)
    run.folder.mkdir(parents=True, exist_ok=True)
    with _alone(run.folder):
        check_output(run, resume)
        if checkpoint is not None:
            check_fits(checkpoint, run.method)
        with _log_file(run.folder), silent_writers(), plain_words(config, run.folder):
            # Before training: a plans file that contradicts must not be found out after a thousand epochs.
            plans_file = write_plans(run)
            history, plateau, collapse = _fit(run, checkpoint)
            final = run.folder / FINAL
            if process_rank() == 0 and not final.is_file():
                raise ValueError(
                    f"The run ended after {len(history.rows)} of {config.epochs} epochs and left no {final}. "
                    f"{continue_with(run.folder)}"
                )
            command = finetune_command(run, final, plans_file)
            warn_if_flat(run, plateau, collapse)
            log.info("Finished: %s", final)
    return Result(run.folder, final, history.rows, command)


def resolve_folder(config: PretrainConfig) -> Path:
    """The output folder of a configuration, without building anything."""
    if config.output_folder is not None:
        return Path(config.output_folder)
    return output_folder(config, *find(config))


def check_output(run: Run, resume: bool) -> None:
    """Protect what an output folder already holds.

    Raises:
        ValueError: it holds another run, or this one was to be continued with other settings.
    """
    stored = run.folder / CONFIG
    holds_weights = any((run.folder / name).exists() for name in (LATEST, PREVIOUS)) or finished_weights(run.folder)
    if holds_weights and not resume:
        raise ValueError(f"{run.folder} already holds a run. Continue it with --c, or choose another folder with -o.")
    if not stored.is_file():
        return
    differences = PretrainConfig.from_file(stored).differences(run.config)
    if differences:
        rows = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in differences.items())
        raise ValueError(
            f"{run.folder} holds a run with other settings: {rows} ({stored}). Continue with the same "
            "settings, or choose another folder with -o."
        )
    check_same_cases(run)


def check_same_cases(run: Run) -> None:
    """Refuse to continue on other cases than those the run began with: what was trained on would be validated on.

    Raises:
        ValueError: names the numbers and an example.
    """
    stored = run.folder / CASES
    if not stored.is_file():
        return
    before = read_json(stored, StoredCases, remedy="Choose another folder with -o.").model_dump()
    for part, now in cases_of(run).items():
        if changed := set(before[part]) ^ set(now):
            raise ValueError(
                f"{run.folder} was begun with {len(before[part])} cases in {part}, now there are "
                f"{len(now)}; {len(changed)} differ, e.g. {min(changed)} ({stored}). Continue with the cases of then "
                "(without new ones: move them elsewhere until the run is over), or choose another folder with -o."
            )


def cases_of(run: Run) -> dict[str, list[str]]:
    """Names of the cases that are trained on and validated on."""
    return {"train": sorted(run.cases.train.names), "validation": sorted(run.cases.validation.names)}


def _fit(run: Run, checkpoint: Path | None) -> tuple[History, Plateau, Collapse]:
    config = run.config
    devices = config.num_gpus * config.num_nodes
    show_every = 10 if config.device == "cuda" else 1
    history = History(run.folder, run.method.length.batch_size * devices, show_every)
    finite = FiniteLoss(run.folder, show_every)
    plateau, collapse = Plateau(), Collapse(history)
    callbacks: list[Any] = [
        collapse,
        history,
        finite,
        plateau,
        StopSignal(run.folder, finite),
        Pictures(run.folder / "pictures", config.picture_every, run.plan.spacing),
        Bar(history, refresh_rate=history.show_every),
        Checkpoints(run.folder, history, lambda epoch: export(run, epoch)),
    ]
    trainer = build_trainer(config, run, callbacks)
    if trainer.is_global_zero:
        write_json(run.config.to_dict(), run.folder / CONFIG)
        write_json(cases_of(run), run.folder / CASES)
    log_start(run, checkpoint)
    path = str(checkpoint) if checkpoint else None
    with ctrl_c_is_no_exit(trainer, run.folder):
        trainer.fit(run.method, datamodule=run.data, ckpt_path=path, weights_only=True)
    if trainer.is_global_zero and len(history.rows) == config.epochs and not (run.folder / FINAL).exists():
        # The run was complete but for this file: continuing it takes no step, and so ends no training.
        callbacks[-1].save_final()
    return history, plateau, collapse


def build_trainer(config: PretrainConfig, run: Run, callbacks: list[Any]) -> Trainer:
    """Lightning's Trainer for a configuration."""
    cuda = config.device == "cuda"
    return Trainer(
        accelerator=config.device,
        devices=config.num_gpus,
        num_nodes=config.num_nodes,
        strategy="ddp" if config.num_gpus * config.num_nodes > 1 else "auto",
        precision=lightning_precision(config),  # type: ignore[arg-type]
        max_epochs=config.epochs,
        gradient_clip_val=run.method.recipe.clip,
        accumulate_grad_batches=config.task.accumulate,
        callbacks=callbacks,
        logger=TensorBoard(run.folder),
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=cuda,
        enable_model_summary=False,
        default_root_dir=run.folder,
        log_every_n_steps=max(1, min(50, config.iters)),
    )


def lightning_precision(config: PretrainConfig) -> str:
    """``-precision`` in Lightning's words; ``auto`` is bf16 where the GPU has it, 16 on older ones, 32 elsewhere."""
    if config.precision == "auto":
        if config.device != "cuda":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[config.precision]


def export(run: Run, epoch: int) -> dict[str, Any]:
    """The checkpoint for the world after ``epoch`` epochs."""
    trained = run.method.trained
    learned = [p for p in trained.parameters() if p.requires_grad]
    provenance = Provenance(
        method=run.config.method,
        network=run.config.network,
        config=run.config.to_dict(),
        plans=run.plan.plans,
        configuration=run.plan.configuration,
        patch=run.patch,
        citations=run.method.citations,
        epoch=epoch,
        seed=run.config.seed,
    )
    pretrained = {id(t) for t in (*learned, *trained.buffers())}
    return build_checkpoint(run.method.backbone, pretrained, provenance, run.untrained)


def log_start(run: Run, checkpoint: Path | None) -> None:
    """Say what is about to happen."""
    config = run.config
    log.info("%s on %s, %s, %s", config.method, config.network, run.files.name, run.plan.configuration)
    log.info(
        "%d cases to train on, %d to validate on (%s)", len(run.cases.train), len(run.cases.validation), run.cases.note
    )
    log.info(
        "patch %s, batch %d, %d workers, precision %s",
        run.patch,
        config.batch_size,
        config.num_workers,
        lightning_precision(config),
    )
    for line in run.method.describe().splitlines():
        log.info("%s", line)
    log.info("%s", config.recipe_text())
    recipe = run.method.recipe
    log.info(
        "%s, %s, peak learning rate %g, weight decay %g",
        recipe.optimizer,
        recipe.schedule,
        recipe.lr,
        recipe.weight_decay,
    )
    log.info("warm-up: %.3g of %d epochs", recipe.warmup_epochs, config.epochs)
    log.info("%s %s", "continuing from" if checkpoint else "results go to", checkpoint or run.folder)


def warn_if_flat(run: Run, plateau: Plateau, collapse: Collapse) -> None:
    """Say so if the network has not learned to look at the image."""
    if run.config.epochs < JUDGED_FROM:
        return
    adamw = "" if run.method.recipe.optimizer == "adamw" else " or -optimizer adamw"
    if collapse.has_collapsed():
        log.warning(
            "The embeddings have collapsed: those of all validation crops are nearly the same, or lie on a line "
            "(effective rank %.3g, uniformity %.3g; metrics.csv has them of every epoch). Such weights may do harm. "
            "Train longer, with larger batches, or try another -lr%s.",
            collapse.rank,
            collapse.uniformity,
            adamw,
        )
    elif plateau.losses is not None and plateau.is_flat():
        log.warning(
            "The network has hardly learned to look at the image: its validation loss is %.4g, and %.4g with every "
            "answer replaced by the mean answer. Such weights may do harm. Look at %s and the pictures beside it; "
            "train longer, or try another -lr%s.",
            *plateau.losses,
            run.folder / "progress.png",
            adamw,
        )


def process_rank() -> int:
    """Number of this process in a distributed run; 0 for the one that speaks."""
    return int(getattr(rank_zero_only, "rank", 0))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder of this one, whose first process does so for all."""
    if process_rank():
        yield
        return
    with locked(folder):
        remove_leftovers(folder)
        yield


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Write the library's log to ``training_log_<time>.txt`` for the duration of a run, and how the run ended.

    Of several processes the first one writes; another one only the error that ends it, to ``…_rank<number>.txt``. The
    error is not shown as a line of the log: who called the run gets it.
    """
    rank = process_rank()
    stamp = datetime.now().astimezone().strftime("%Y_%m_%d_%H_%M_%S")
    name = f"training_log_{stamp}_rank{rank}.txt" if rank else f"training_log_{stamp}.txt"
    handler = LogFile(folder / name, delay=bool(rank))
    handler.setLevel(logging.ERROR if rank else logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    previous = log.level
    if not rank:
        log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if rank and isinstance(error, ALIKE):
            raise
        handler.handle(
            log.makeRecord(log.name, logging.ERROR, __file__, 0, "The run stopped.", (), sys.exc_info())  # type: ignore[arg-type]
        )
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
        log.setLevel(previous)
