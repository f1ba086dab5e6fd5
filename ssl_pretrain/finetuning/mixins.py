"""What our nnU-Net trainers share: the hook for pretrained weights, and the schedules of fine-tuning."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssl_pretrain.finetuning.names import TrainerName
from ssl_pretrain.finetuning.parts import freeze, not_pretrained, parts_of
from ssl_pretrain.finetuning.progress import phases_in_figures
from ssl_pretrain.finetuning.schedules import Course, Phase, Schedule, course_of
from ssl_pretrain.networks.anatomy import unwrap
from ssl_pretrain.transfer.hook import Dispatcher, install_hook
from ssl_pretrain.transfer.images import images_of_plans
from ssl_pretrain.transfer.report import Report

FACTOR = "layer_factor"
"""Entry of a parameter group: what its learning rate is multiplied with."""

EXEMPT = "never_frozen"
"""Entry of a parameter group: names of the encoder's parameters that are trained while the encoder is frozen."""


class CourseLR(LRScheduler):
    """The learning rates of a course, as a scheduler that nnU-Net steps at the beginning of every epoch.

    They depend on the epoch alone, so a resumed run needs nothing but its epoch: ``step(epoch)`` as nnU-Net calls it
    sets that epoch's rates, ``step()`` goes on to the next one. A warm-up also rises within an epoch (:meth:`rise`):
    that of a short run is a single epoch, which would begin at the peak.

    Args:
        optimizer: a group's rate is that of the course times the group's factor, if it has one.
        course: of the run.
        peak: the highest learning rate.
    """

    def __init__(self, optimizer: Optimizer, course: Course, peak: float) -> None:
        self.course, self.peak, self.done = course, peak, 1.0
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the rate of the current epoch for every parameter group."""
        rate = self.course.rate(self.last_epoch, self.peak, self.done)
        return [rate * group.get(FACTOR, 1.0) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of ``epoch``, or of the next one."""
        # PyTorch's own step() warns about a given epoch and about being called before the optimiser; nnU-Net does both.
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self.rise(1.0)

    def rise(self, done: float) -> None:
        """Set the rates of the current epoch when so much of its steps is done, the one that comes included."""
        self.done = done
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PretrainedWeightsMixin:
    """Lets ``-pretrained_weights`` of an nnU-Net trainer go through our hook; put it before ``nnUNetTrainer``.

    A subclass that wants a loader of its own says ``load_pretrained_weights = staticmethod(function)`` with
    ``function(network, fname, verbose=False)``.
    """

    load_pretrained_weights: ClassVar[Callable[..., Any] | None] = None

    def initialize(self) -> None:
        """Build network and optimiser as nnU-Net does; from now on the process loads weights as this trainer says."""
        # nnU-Net loads pretrained weights right after it has initialised a trainer: this is the last moment at which it
        # is known whose loader has to run. The process outlives the trainer, and must not keep its network in memory.
        dispatcher, owner = Dispatcher(type(self).load_pretrained_weights), weakref.ref(self)

        def load(network: nn.Module, fname: str, verbose: bool = False) -> Any:
            trainer = owner()
            if trainer is None or trainer.network is not network:  # type: ignore[attr-defined]
                return dispatcher(network, fname, verbose)
            images = images_of_plans(trainer.plans_manager.plans, trainer.configuration_name)  # type: ignore[attr-defined]
            result = dispatcher(network, fname, verbose, images)
            trainer.on_pretrained_weights(result)
            return result

        install_hook(load)
        super().initialize()  # type: ignore[misc]

    def on_pretrained_weights(self, result: Any) -> None:
        """Called after pretrained weights were loaded, with what the loader returned: a Report, if it is ours."""
        for line in result.warnings if isinstance(result, Report) else ():
            # The console has it from the log of the library.
            self.print_to_log_file(f"WARNING: {line}", also_print_to_console=False)  # type: ignore[attr-defined]


class FineTuningMixin(PretrainedWeightsMixin):
    """A training as the trainer's name says; put it before ``nnUNetTrainer``.

    There is one optimiser, whose groups stay as they are for the whole run. What an epoch trains, and how fast, follows
    from its number, so ``--c`` goes on in the middle of any phase as if nothing had happened.

    Attributes:
        family: of the names, see ``ssl_pretrain.finetuning.names``.
        peak_rates: the highest learning rate when fine-tuning, and from scratch.
        decay: weight decay.
        deep_supervision: whether the network is trained with it.
        setting: what the name says; ``ssl_pretrain.finetuning.on_demand`` sets this and the next one.
        learning_rate: the highest one of this trainer.
    """

    family: ClassVar[str]
    peak_rates: ClassVar[tuple[float, float]] = (1e-3, 1e-2)
    decay: ClassVar[float] = 3e-5
    deep_supervision: ClassVar[bool] = True
    setting: ClassVar[TrainerName]
    learning_rate: ClassVar[float]
    # Set by nnU-Net's trainer.
    network: nn.Module
    optimizer: Optimizer
    lr_scheduler: CourseLR
    current_epoch: int
    num_iterations_per_epoch: int
    num_epochs: int
    print_to_log_file: Callable[..., None]

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        self.initial_lr = self.learning_rate
        self.weight_decay = self.decay
        self.enable_deep_supervision = self.deep_supervision
        self.num_epochs = self.setting.epochs_or_default
        self.phase: Phase | None = None
        self.steps = 0

    @property
    def schedule(self) -> Schedule:
        """What the name says, or the family's own."""
        return self.setting.schedule_or_default

    @property
    def course(self) -> Course:
        """The schedule over the epochs of this run."""
        return course_of(self.schedule, self.num_epochs)

    def configure_optimizers(self) -> tuple[Optimizer, CourseLR]:
        """Return the optimiser with its groups, and the schedule."""
        optimizer = self.build_optimizer(self.parameter_groups())
        return optimizer, CourseLR(optimizer, self.course, self.initial_lr)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Return nnU-Net's SGD for groups of parameters, or AdamW where the name says so."""
        named = self.setting.optimizer
        if named is not None and named.kind == "adamw":
            return AdamW(groups, self.initial_lr, weight_decay=self.weight_decay)
        return SGD(groups, self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, in one group or, for layer-wise decay, in one per layer; the decoder's is the first."""
        schedule = self.schedule
        named = {name: p for name, p in unwrap(self.network).named_parameters() if p.requires_grad}
        if schedule.kind != "llrd":
            # A group's entries are saved with the state of the optimiser: a resumed run knows what was loaded.
            return [{"params": list(named.values()), **({EXEMPT: []} if schedule.freezes else {})}]
        parts = parts_of(self.network)
        layers = [(*parts.decoder, *parts.between), *reversed(parts.layers)]
        groups = [
            {"params": [named[name] for name in layer if name in named], FACTOR: schedule.layer_factor(depth)}
            for depth, layer in enumerate(layers)
        ]
        return [group for group in groups if group["params"]]

    def on_pretrained_weights(self, result: Any) -> None:
        """Remember which of the encoder's parameters the file did not have as they are: they will not be frozen."""
        super().on_pretrained_weights(result)
        group = self.optimizer.param_groups[0]
        if EXEMPT not in group or not isinstance(result, Report):
            return
        group[EXEMPT] = not_pretrained(self.network, result)
        if group[EXEMPT]:
            self.print_to_log_file(
                f"Not frozen with the encoder, because the file did not have them so: {', '.join(group[EXEMPT])}"
            )

    def on_train_epoch_start(self) -> None:
        """Begin an epoch, and a phase where one begins."""
        course = self.course
        begins = course.phase(self.current_epoch) != self.phase
        self.phase = course.phase(self.current_epoch)
        self.steps = 0
        if begins:
            self._freeze(self.phase)
        super().on_train_epoch_start()  # type: ignore[misc]
        if begins:
            number, count = course.phases.index(self.phase) + 1, len(course.phases)
            name, start, end, _ = self.phase
            self.print_to_log_file(f"Phase {number} of {count}: {name}, epochs {start} to {end - 1}")

    def train_step(self, batch: dict[str, Any]) -> Any:
        """One step, at the rate that a warm-up has reached."""
        self.steps += 1
        self.lr_scheduler.rise(self.steps / self.num_iterations_per_epoch)
        return super().train_step(batch)  # type: ignore[misc]

    def _freeze(self, phase: Phase) -> None:
        if not self.schedule.freezes:
            return
        groups = self.optimizer.param_groups
        exempt = {name for group in groups for name in group.get(EXEMPT, ())}
        frozen = set(parts_of(self.network).encoder) - exempt if phase.frozen else set()
        self.network = freeze(self.network, [p for group in groups for p in group["params"]], frozen)

    def on_epoch_end(self) -> None:
        """End an epoch; nnU-Net draws ``progress.png``, in which the phases are shown."""
        with phases_in_figures(self.course.phases, self.print_to_log_file):
            super().on_epoch_end()  # type: ignore[misc]
