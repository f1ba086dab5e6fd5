"""nnU-Net trainers for Swin UNETR: ``nnUNetv2_train … -p nnUNetPlans_SwinUNETR -tr SwinUNETRTrainer_ft``.

All of ``SwinUNETRTrainer_<ft|scratch>[_<N>ep][_<schedule>]``, see ``ssl_pretrain.finetuning.names``. The loss is
nnU-Net's, Dice and cross-entropy, and so is the sliding window: its tiles are patches of the plans, multiples of 32
voxels per axis.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.finetuning.on_demand import trainers_of
from ssl_pretrain.finetuning.transformers import TransformerMixin, planned_patch
from ssl_pretrain.networks.swin import STRIDE, SWIN_PATH, SwinUNETR
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class _SwinUNETR(TransformerMixin, nnUNetTrainer):
    """Trains the Swin UNETR that the plans name, or one of the published size where they name another network."""

    family = "SwinUNETR"

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,  # noqa: ARG003 - nnU-Net passes it
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,  # noqa: ARG003 - there is none
    ) -> nn.Module:
        """Build the network for training and for inference."""
        planned = configuration_manager.network_arch_class_name == SWIN_PATH
        size = configuration_manager.network_arch_init_kwargs if planned else {}
        planned_patch(configuration_manager.patch_size, STRIDE, "SwinUNETR")
        return SwinUNETR(num_input_channels, num_output_channels, **size)


__getattr__ = trainers_of(_SwinUNETR, __name__)
