"""One fine-tuning through nnU-Net, in a process of its own."""

from __future__ import annotations

import logging
import math
import multiprocessing
import random
from collections.abc import Callable, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_pretrain.study.arms import Arm
from ssl_pretrain.study.design import StudySettings
from ssl_pretrain.study.outcomes import dice_of
from ssl_pretrain.study.stored import Metrics
from ssl_pretrain.transfer.hook import install_hook

log = logging.getLogger("ssl_pretrain")

SAVES = 5
"""Times that a run is saved in its course, unless nnU-Net would save it more often."""
SAVE_EVERY = 50
VAL_SHARE = 5
"""Training steps per step of nnU-Net's validation during training; nnU-Net's own ratio."""


def seed_everything(seed: int) -> None:
    """Seed every generator that nnU-Net draws from in this process."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that batchgenerators uses
    torch.manual_seed(seed)


def build_trainer(
    settings: StudySettings, dataset: str, arm: Arm, number: int, seed: int, checkpoint: Path | None
) -> tuple[Any, float | None]:
    """nnU-Net's trainer, initialised, with pretrained weights or the state of a run that was stopped.

    Args:
        settings: of the study.
        dataset: name.
        arm: how it begins.
        number: fold of the study's own splits.
        seed: of the run.
        checkpoint: of the run that was stopped; None to begin.

    Returns:
        The trainer, and the share of the network's parameters that pretrained weights replaced, if any did.

    Raises:
        ValueError: the weights changed nothing.
    """
    from nnunetv2.run import run_training as nnunet

    seed_everything(seed)
    device = torch.device(settings.device)
    resumed = checkpoint is not None
    trainer = nnunet.get_trainer_from_args(
        dataset, settings.configuration, number, arm.trainer, arm.plans, resumed, device
    )
    set_length(trainer, settings)
    leave_out_extras(trainer)
    # Of nnU-Net's own trainers as well; a trainer with a loader of its own puts that in place when it is initialised.
    install_hook()
    trainer.initialize()
    weights = str(arm.weights) if arm.weights and not resumed else None
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()} if weights else {}
    nnunet.maybe_load_checkpoint(trainer, resumed, False, weights)
    if weights is None:
        return trainer, None
    share = changed_share(before, trainer.network)
    if share == 0:
        raise ValueError(f"{arm.weights} changed nothing in the network of {arm.plans}: its weights do not fit.")
    return trainer, share


def set_length(trainer: Any, settings: StudySettings) -> None:
    """Give a trainer that is not initialised yet the study's epochs and steps."""
    if settings.epochs is not None:
        trainer.num_epochs = settings.epochs
    if settings.iters is not None:
        trainer.num_iterations_per_epoch = settings.iters
        trainer.num_val_iterations_per_epoch = max(1, settings.iters // VAL_SHARE)
    if settings.val_iters is not None:
        trainer.num_val_iterations_per_epoch = settings.val_iters
    trainer.save_every = min(SAVE_EVERY, max(1, trainer.num_epochs // SAVES))


def leave_out_extras(trainer: Any) -> None:
    """Keep nnU-Net from what takes time in short runs and is not needed, and let no checkpoint be half a file.

    Left out are the plots of all epochs but the last, the drawing of the network, and the best checkpoint.
    """
    draw: Callable[[str], None] = trainer.logger.plot_progress_png
    save: Callable[[str], None] = trainer.save_checkpoint

    def draw_at_the_end(folder: str) -> None:
        if trainer.current_epoch + 1 >= trainer.num_epochs:
            draw(folder)

    def save_whole(filename: str) -> None:
        if Path(filename).name != "checkpoint_best.pth":
            save(f"{filename}.tmp")
            Path(f"{filename}.tmp").replace(filename)

    trainer.logger.plot_progress_png = draw_at_the_end
    trainer.save_checkpoint = save_whole
    trainer.plot_network_architecture = lambda: None


def changed_share(before: Mapping[str, Tensor], network: nn.Module) -> float:
    """Share of the numbers in a network's parameters that differ from what they were, tensor by tensor."""
    parameters = {name for name, _ in network.named_parameters()}
    now = {name: value for name, value in network.state_dict().items() if name in parameters}
    total = sum(value.numel() for value in now.values())
    changed = sum(value.numel() for name, value in now.items() if not torch.equal(value, before[name]))
    return float(changed / max(1, total))


class _Threads:
    """``multiprocessing`` with pools of threads."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str | None = None) -> _Threads:  # noqa: ARG002 - threads are not started in any way
        return self

    def Pool(self, processes: int | None = None) -> ThreadPool:  # noqa: N802 - as it is called there
        return ThreadPool(processes)


def validate_in_threads() -> None:
    """Let nnU-Net's final validation of this process export and compare in a thread instead of in new processes.

    Each of the two pools would import PyTorch and nnU-Net again; in a run of minutes that counts.
    """
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    threads = _Threads()
    nnUNetTrainer.multiprocessing = threads
    evaluate_predictions.multiprocessing = threads


def validate_as_preprocessed(trainer: Any, labels: Mapping[str, str]) -> dict[str, Any]:
    """Dice of a trainer's network on its validation cases as they are preprocessed.

    nnU-Net's own validation mirrors, resamples each prediction to the spacing of its image, writes and reads it. Here
    prediction and truth are compared at the network's spacing, in a fraction of the time: enough to see a course.

    Args:
        trainer: whose network is left in evaluation mode, without deep supervision.
        labels: key of a label, or of a region, in nnU-Net's ``summary.json`` -> its name.

    Returns:
        See :func:`~.outcomes.dice_of`.
    """
    from nnunetv2.evaluation import evaluate_predictions as nnunet
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    manager = trainer.label_manager
    # As nnU-Net's validation builds it.
    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    planned = trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json
    predictor.manual_initialization(trainer.network, *planned, type(trainer).__name__, None)
    found: dict[str, dict[str, Metrics]] = {}
    cases = trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[1])
    for case in cases.identifiers:
        image, target, _, _ = cases.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:])).cpu()
        predicted, truth = np.asarray(manager.convert_logits_to_segmentation(logits)), target[:][0]
        ignored = truth == manager.ignore_label if manager.has_ignore_label else None
        found[case] = {}
        for label in manager.foreground_regions if manager.has_regions else manager.foreground_labels:
            sides = (nnunet.region_or_label_to_mask(side, label) for side in (truth, predicted))
            both, extra, missed, _ = (int(count) for count in nnunet.compute_tp_fp_fn_tn(*sides, ignored))
            dice = 2 * both / (2 * both + extra + missed) if both + extra + missed else math.nan
            found[case][nnunet.label_or_region_to_key(label)] = Metrics(Dice=dice, n_ref=both + missed)
    return dice_of(found, labels)


def seed_readers(seed: int) -> None:
    """Let the reading processes of this process's trainings draw from seeds that follow from the run's.

    nnU-Net leaves them to chance. Batches still come in the order in which they are ready: runs of one seed see the
    same crops in the same order only with one reading process, or none.
    """
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    class Seeded(NonDetMultiThreadedAugmenter):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            drawn = np.random.SeedSequence(seed).generate_state(int(kwargs["num_processes"]))
            super().__init__(*args, **{**kwargs, "seeds": [int(number) for number in drawn]})

    nnUNetTrainer.NonDetMultiThreadedAugmenter = Seeded
