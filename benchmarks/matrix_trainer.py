"""A plug-in folder for nnU-Net with one trainer: another one, cut to an epoch of a few steps, that says what it got."""

from __future__ import annotations

from pathlib import Path

NAME = "ShortTrainer"

SOURCE = """
import json
import os
from pathlib import Path

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


class {name}(recursive_find_trainer_class_by_name("{base}")):
    def initialize(self):
        self.num_epochs, self.num_val_iterations_per_epoch = 1, 1
        self.num_iterations_per_epoch = {steps}
        super().initialize()

    def on_train_start(self):
        super().on_train_start()
        content = torch.load(os.environ["MATRIX_WEIGHTS"], weights_only=True)
        keys = content["pretraining"]["pretrained_keys"]
        here, there = self.network.state_dict(), content["network_weights"]
        equal = sum(torch.equal(here[key], there[key]) for key in keys if key in here)
        self.facts = {{"arrived": equal, "offered": len(keys)}}

    def on_train_end(self):
        super().on_train_end()
        loss = self.logger.get_value("train_losses", step=0)
        facts = {{**self.facts, "loss": float(loss), "trainer": "{base}"}}
        Path(os.environ["MATRIX_FACTS"]).write_text(json.dumps(facts))

    def perform_actual_validation(self, save_probabilities=False):
        pass  # hours of predicting whole cases for a network that has seen a few crops
"""
"""The pretrained tensors are counted when training starts: nnU-Net has loaded the weights by then."""


def write_trainer(folder: Path, base: str, steps: int) -> Path:
    """Write the plug-in; returns the folder that ``nnUNet_extTrainer`` has to name.

    Args:
        folder: its parent.
        base: the trainer to cut short.
        steps: of the one epoch.
    """
    target = folder / f"trainer_{base}"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{NAME}.py").write_text(SOURCE.format(name=NAME, base=base, steps=steps), encoding="utf-8")
    return target
