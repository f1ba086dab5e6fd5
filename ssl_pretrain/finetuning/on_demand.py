"""Trainers that come into being when somebody asks for their name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ssl_pretrain.finetuning.mixins import FineTuningMixin
from ssl_pretrain.finetuning.names import FAMILIES, TrainerName, parse_trainer_name


def trainers_of(base: type[FineTuningMixin], module: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module in nnU-Net's folder of trainers (PEP 562).

    nnU-Net imports the modules of the folder one by one and asks each for the trainer's name, for training and, with
    the name in a checkpoint, for prediction.

    Args:
        base: the trainer of a family of networks, for which a name sets ``setting``, ``learning_rate`` and ``size``.
        module: ``__name__`` of the module.

    Returns:
        A function from a name to a class of that name. It raises AttributeError for names that are not of the family,
        and ValueError, which stops nnU-Net's search, for one that begins so and does not fit the grammar.
    """

    @cache
    def find(name: str) -> type[FineTuningMixin]:
        setting = parse_trainer_name(name)
        if setting is None or setting.family != base.family:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return make_trainer(base, name, setting, module)

    return find


def make_trainer(base: type[FineTuningMixin], name: str, setting: TrainerName, module: str) -> type[FineTuningMixin]:
    """A subclass of a family's trainer.

    Args:
        base: of the family.
        name: of the class: nnU-Net names the folder of results after it and writes it into checkpoints.
        setting: what the name says.
        module: that the class says it is from.
    """
    about = {
        "__module__": module,
        "__doc__": f"{FAMILIES[setting.family].network}: {setting}.",
        "setting": setting,
        "size": setting.size,
        "learning_rate": setting.optimizer.rate if setting.optimizer else base.peak_rates[not setting.pretrained],
    }
    return type(name, (base,), about)
