"""nnU-Net trainers for the network that the plans name: ``nnUNetv2_train … -tr ResEncTrainer_ft``."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import SGD, Optimizer

from ssl_pretrain.transfer.finetune import PretrainedWeightsMixin, WarmupPolyLR
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class ResEncTrainer_ft(PretrainedWeightsMixin, nnUNetTrainer):
    """Fine-tunes the network of the plans: linear warm-up over 50 epochs to 1e-3, then polynomial decay."""

    learning_rate = 1e-3
    warmup_epochs = 50

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.learning_rate

    def configure_optimizers(self) -> tuple[Optimizer, WarmupPolyLR]:
        """Return nnU-Net's SGD, and the schedule with warm-up."""
        optimizer = SGD(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True
        )
        return optimizer, WarmupPolyLR(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)


class ResEncTrainer_scratch(ResEncTrainer_ft):
    """The same schedule from scratch, up to nnU-Net's 1e-2: what fine-tuning is to be compared with."""

    learning_rate = 1e-2
