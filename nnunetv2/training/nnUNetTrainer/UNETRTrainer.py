"""nnU-Net trainers for UNETR: ``nnUNetv2_train … -p nnUNetPlans_ViT_B16 -tr UNETRTrainer_ft -pretrained_weights FILE``.

All of ``UNETRTrainer_<ft|scratch>[_<N>ep][_<schedule>]``, see ``ssl_pretrain.finetuning.names``; ``UNETRTrainer`` alone
is the first of them. The loss is nnU-Net's, Dice and cross-entropy, and so is the sliding window: its tiles are patches
of the plans, the one size that the network's position embedding was made for.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.finetuning.on_demand import trainers_of
from ssl_pretrain.finetuning.transformers import TransformerMixin, planned_patch
from ssl_pretrain.networks.vit import TOKEN, UNETR, UNETR_PATH
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class _UNETR(TransformerMixin, nnUNetTrainer):
    """Trains the UNETR that the plans name, or the one around ViT-B/16 where they name another network."""

    family = "UNETR"

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
        planned = configuration_manager.network_arch_class_name == UNETR_PATH
        size = configuration_manager.network_arch_init_kwargs if planned else {}
        patch = planned_patch(configuration_manager.patch_size, TOKEN, "ViT_B16")
        return UNETR(num_input_channels, num_output_channels, patch, **size)


__getattr__ = trainers_of(_UNETR, __name__)
