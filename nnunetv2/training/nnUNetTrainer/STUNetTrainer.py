"""nnU-Net trainers for STU-Net: ``nnUNetv2_train … -tr STUNetTrainer_base_ft -pretrained_weights FILE``.

All of ``STUNetTrainer_<size>_<ft|scratch>[_<N>ep][_<schedule>]``, see ``ssl_pretrain.finetuning.names``;
``STUNetTrainer_<size>`` alone is from scratch. The recipe is the published one: nnU-Net's own with SGD at 1e-2 from
scratch, and at 1e-3 for fine-tuning.
"""

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.finetuning.mixins import FineTuningMixin
from ssl_pretrain.finetuning.on_demand import trainers_of
from ssl_pretrain.networks.stunet import STUNet, stunet_kwargs
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class _STUNet(FineTuningMixin, nnUNetTrainer):
    """Trains an STU-Net with the strides of the plans, whatever network the plans name."""

    family = "STUNet"
    size = "base"

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


__getattr__ = trainers_of(_STUNet, __name__)
