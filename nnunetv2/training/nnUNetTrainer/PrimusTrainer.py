"""nnU-Net trainers for Primus: ``nnUNetv2_train … -p PLANS_PrimusM -tr PrimusTrainer_ft -pretrained_weights FILE``.

All of ``PrimusTrainer[_S|_B|_M|_L]_<ft|scratch>[_<N>ep][_<schedule>]``, see ``ssl_pretrain.finetuning.names``.
The recipe is the published one, see ``ssl_pretrain.finetuning.transformers``.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.finetuning.on_demand import trainers_of
from ssl_pretrain.finetuning.transformers import TransformerMixin, planned_patch
from ssl_pretrain.networks.primus import PRIMUS_SIZES, TOKEN, primus_network, primus_size
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class _Primus(TransformerMixin, nnUNetTrainer):
    """Trains the Primus that the plans name, or Primus-M where they name another network; or one of a given size."""

    family = "Primus"
    size: str | None = None
    drop_path = 0.2

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
        planned = primus_size(configuration_manager.configuration["architecture"])
        size = PRIMUS_SIZES[cls.size] if cls.size else planned or PRIMUS_SIZES["M"]
        patch = planned_patch(configuration_manager.patch_size, TOKEN, f"Primus{cls.size or 'M'}")
        return primus_network(size, num_input_channels, num_output_channels, patch, cls.drop_path)


__getattr__ = trainers_of(_Primus, __name__)
