"""nnU-Net trainers for STU-Net: ``nnUNetv2_train … -tr STUNetTrainer_base_ft -pretrained_weights FILE``.

The recipe is the published one: nnU-Net's own with SGD at 1e-2 from scratch, and at 1e-3 for fine-tuning (``_ft``).
"""

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.networks.stunet import STUNet, stunet_kwargs
from ssl_pretrain.transfer.finetune import PretrainedWeightsMixin
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class STUNetTrainer(PretrainedWeightsMixin, nnUNetTrainer):
    """Trains an STU-Net with the strides of the plans, whatever network the plans name."""

    size = "base"
    learning_rate = 1e-2

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

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,  # noqa: ARG003 - nnU-Net passes it
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network for training and for inference."""
        kwargs = stunet_kwargs(cls.size, configuration_manager.pool_op_kernel_sizes)
        return STUNet(num_input_channels, num_output_channels, deep_supervision=enable_deep_supervision, **kwargs)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        # STU-Net has six stages, also where the plans have more or fewer: nnU-Net's own scales would not match.
        if not self.enable_deep_supervision:
            return None
        strides = stunet_kwargs(self.size, self.configuration_manager.pool_op_kernel_sizes)["strides"]
        return (1 / np.cumprod(np.vstack(strides), axis=0))[:-1].tolist()


class STUNetTrainer_small(STUNetTrainer):
    """STU-Net small (14.6 M parameters) from scratch."""

    size = "small"


class STUNetTrainer_base(STUNetTrainer):
    """STU-Net base (58.3 M parameters) from scratch."""

    size = "base"


class STUNetTrainer_large(STUNetTrainer):
    """STU-Net large (440 M parameters) from scratch."""

    size = "large"


class STUNetTrainer_huge(STUNetTrainer):
    """STU-Net huge (1457 M parameters) from scratch."""

    size = "huge"


class STUNetTrainer_small_ft(STUNetTrainer_small):
    """STU-Net small, fine-tuning."""

    learning_rate = 1e-3


class STUNetTrainer_base_ft(STUNetTrainer_base):
    """STU-Net base, fine-tuning."""

    learning_rate = 1e-3


class STUNetTrainer_large_ft(STUNetTrainer_large):
    """STU-Net large, fine-tuning."""

    learning_rate = 1e-3


class STUNetTrainer_huge_ft(STUNetTrainer_huge):
    """STU-Net huge, fine-tuning."""

    learning_rate = 1e-3
