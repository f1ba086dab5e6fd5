"""The stock trainer with a schedule of about a minute, for the demo's phantoms."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_demo(nnUNetTrainer):
    """nnU-Net's own training, cut short: every setting but its length is nnU-Net's.

    88 steps are enough to see an organ found and far from enough to compare two ways to initialise a network.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature, which it inspects
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        # Few long epochs: at the end of each one nnU-Net draws progress.png and writes a checkpoint.
        self.num_epochs = 4
        self.num_iterations_per_epoch = 22
        self.num_val_iterations_per_epoch = 3
