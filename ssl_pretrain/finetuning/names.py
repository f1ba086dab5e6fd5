"""The grammar of our trainers' names: ``ResEncTrainer_ft_150ep_sawtooth`` says all that distinguishes a training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ssl_pretrain.finetuning.schedules import Schedule, course_of
from ssl_pretrain.networks.primus import PRIMUS_SIZES
from ssl_pretrain.networks.stunet import STUNET_SIZES

PATTERN = "<Network>Trainer[_<size>]_<ft|scratch>[_<N>ep][_<schedule>][_<optimizer><rate>]"

EPOCHS = 1000
"""Epochs of a name that does not say how many: nnU-Net's."""


class TrainerFamily(NamedTuple):
    """Networks whose trainers begin with one word.

    Attributes:
        network: what it stands for.
        schedule: of a name that does not say which.
        sizes: that the name can choose.
        sized: whether it must choose one.
    """

    network: str
    schedule: Schedule
    sizes: tuple[str, ...] = ()
    sized: bool = False


FAMILIES = {
    "ResEnc": TrainerFamily("the network that the plans name", Schedule("warmup")),
    "STUNet": TrainerFamily(
        "STU-Net with the strides of the plans", Schedule("default"), tuple(STUNET_SIZES), sized=True
    ),
    "Primus": TrainerFamily(
        "the Primus that the plans name, else M; or of that size", Schedule("warmup"), tuple(PRIMUS_SIZES)
    ),
    "UNETR": TrainerFamily("the UNETR that the plans name, else around ViT-B/16", Schedule("warmup")),
}

SCHEDULES = {
    "default": "nnU-Net's polynomial decay",
    "warmup": "linear warm-up over 50 of 1000 epochs, then the decay",
    "sawtooth": "encoder frozen: warm-up and decay; then whole network: warm-up and decay; 25, 25, 50 of 1000 epochs",
    "frozen<N>": "encoder frozen for N epochs; learning rate as warmup",
    "llrd<γ>": "learning rate times γ for every layer between the decoder and a layer of the encoder; else as warmup",  # noqa: RUF001
}

OPTIMIZERS = ("sgd", "adamw")
"""That a name can choose: nnU-Net's SGD with momentum 0.99, and AdamW."""

SHORT = {
    "STUNetTrainer": "STUNetTrainer_base_scratch",
    **{f"STUNetTrainer_{size}": f"STUNetTrainer_{size}_scratch" for size in STUNET_SIZES},
    "UNETRTrainer": "UNETRTrainer_ft",
}
"""Names that are older than the grammar, which checkpoints have -> what they mean."""


class OptimizerName(NamedTuple):
    """An optimiser as a name says it: ``adamw0.003``.

    Attributes:
        kind: one of :data:`OPTIMIZERS`.
        rate: the highest learning rate.
    """

    kind: str
    rate: float


@dataclass(frozen=True)
class TrainerName:
    """What the name of a trainer says.

    Attributes:
        family: a key of :data:`FAMILIES`.
        pretrained: whether it fine-tunes; else it trains from scratch, with the higher learning rate.
        size: of the network; None for that of the plans.
        epochs: of the run; None for nnU-Net's 1000.
        schedule: None for that of the family.
        optimizer: with its highest learning rate; None for those of the family.

    Raises:
        ValueError: too few epochs for the schedule.
    """

    family: str
    pretrained: bool
    size: str | None = None
    epochs: int | None = None
    schedule: Schedule | None = None
    optimizer: OptimizerName | None = None

    def __post_init__(self) -> None:
        course_of(self.schedule_or_default, self.epochs_or_default)

    @property
    def schedule_or_default(self) -> Schedule:
        """The schedule that is meant."""
        return self.schedule or FAMILIES[self.family].schedule

    @property
    def epochs_or_default(self) -> int:
        """The epochs that are meant."""
        return EPOCHS if self.epochs is None else self.epochs

    def __str__(self) -> str:
        """Return the name."""
        parts = [
            f"{self.family}Trainer",
            self.size,
            "ft" if self.pretrained else "scratch",
            f"{self.epochs}ep" if self.epochs is not None else None,
            self.schedule.kind + _decimal(self.schedule.value) if self.schedule is not None else None,
            self.optimizer.kind + _decimal(self.optimizer.rate) if self.optimizer is not None else None,
        ]
        return "_".join(part for part in parts if part is not None)


def parse_trainer_name(name: str) -> TrainerName | None:
    """Take a trainer's name apart.

    Args:
        name: as after ``-tr``.

    Returns:
        What it says; None if it does not begin like the names of our trainers.

    Raises:
        ValueError: it begins like ours and has a part that is unknown, missing or out of order; shows the grammar.
    """
    first, *parts = SHORT.get(name, name).split("_")
    family = first.removesuffix("Trainer")
    if first == family or family not in FAMILIES:
        return None
    known = FAMILIES[family]
    size = _take(parts, known.sizes, str)
    if size is None and known.sized:
        raise _refused(name, _instead(parts, f"a size ({'|'.join(known.sizes)})"))
    pretrained = _take(parts, ("ft", "scratch"), lambda part: part == "ft")
    if pretrained is None:
        raise _refused(name, _instead(parts, "ft or scratch"))
    epochs = _take(parts, r"[1-9][0-9]{0,5}ep", lambda part: int(part[:-2]))
    try:
        schedule = _take(parts, r"default|warmup|sawtooth|(frozen|llrd).*", _read)
        optimizer = _take(parts, f"({'|'.join(OPTIMIZERS)}).*", _read_optimizer)
        if parts:
            raise ValueError(f"{parts[0]!r} is unknown, or not in its place")
        return TrainerName(family, pretrained, size, epochs, schedule, optimizer)
    except ValueError as error:
        raise _refused(name, str(error).rstrip(".")) from error


def grammar() -> str:
    """The grammar in one line."""
    networks = ", ".join(
        family + (f" ({'' if known.sized else 'or '}{'|'.join(known.sizes)})" if known.sizes else "")
        for family, known in FAMILIES.items()
    )
    return (
        f"Names are {PATTERN} with <Network> one of {networks}; <N> epochs, {EPOCHS} if left out; <schedule> one of "
        f"{', '.join(SCHEDULES)} with 0 < γ < 1; <optimizer> one of {', '.join(OPTIMIZERS)} with its highest learning "  # noqa: RUF001
        "rate. For example ResEncTrainer_ft_150ep_sawtooth or ResEncTrainer_ft_30ep_adamw0.003."
    )


def _take(parts: list[str], allowed: tuple[str, ...] | str, read: Callable[[str], Any]) -> Any:
    """Remove and read the first part if it is allowed; None if it is not, or there is none."""
    if not parts:
        return None
    fits = re.fullmatch(allowed, parts[0]) if isinstance(allowed, str) else parts[0] in allowed
    return read(parts.pop(0)) if fits else None


def _read(part: str) -> Schedule:
    # One setting has one name, or the results of llrd0.75 and llrd0.750 would lie in two folders.
    if part.startswith("frozen") and not re.fullmatch(r"frozen[1-9][0-9]{0,5}", part):
        raise ValueError(f"{part!r} does not say for how many epochs, such as frozen20")
    if part.startswith("llrd") and not re.fullmatch(r"llrd0\.[0-9]{0,5}[1-9]", part):
        raise ValueError(f"{part!r} does not say by which factor between 0 and 1, such as llrd0.75")
    kind = part.rstrip("0123456789.")
    return Schedule(kind, float(part[len(kind) :] or 0))


def _read_optimizer(part: str) -> OptimizerName:
    kind = part.rstrip("0123456789.")
    if not re.fullmatch(r"0\.[0-9]{0,7}[1-9]", part[len(kind) :]):
        raise ValueError(f"{part!r} does not say with which learning rate between 0 and 1, such as {kind}0.003")
    return OptimizerName(kind, float(part[len(kind) :]))


def _decimal(value: float) -> str:
    """A number as a name has it; nothing for 0."""
    return f"{value:.8f}".rstrip("0").rstrip(".") if value else ""


def _instead(parts: list[str], expected: str) -> str:
    return f"{parts[0]!r} stands where {expected} belongs" if parts else f"it ends before {expected}"


def _refused(name: str, reason: str) -> ValueError:
    return ValueError(
        f"There is no trainer {name}: {reason}. {grammar()} Names that begin so are ours: call a trainer of your own "
        "differently."
    )
