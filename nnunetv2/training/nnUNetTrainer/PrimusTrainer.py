"""nnU-Net trainers for Primus: ``nnUNetv2_train … -p PLANS_PrimusM -tr PrimusTrainer_ft -pretrained_weights FILE``.

The recipe is the published one, see ``ssl_pretrain.transfer.transformers``; ``_scratch`` has the higher learning rate.
"""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ssl_pretrain.networks.primus import PRIMUS_SIZES, TOKEN, primus_network, primus_size
from ssl_pretrain.transfer.hook import install_hook
from ssl_pretrain.transfer.transformers import TransformerMixin, planned_patch

install_hook()


class PrimusTrainer_ft(TransformerMixin, nnUNetTrainer):
    """Fine-tunes the Primus that the plans name, or Primus-M where they name another network."""

    size: str | None = None
    drop_path = 0.2

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.use_recipe()

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


class PrimusTrainer_scratch(PrimusTrainer_ft):
    """The same from scratch: what fine-tuning is to be compared with."""

    learning_rate = 3e-4


class PrimusTrainer_S_ft(PrimusTrainer_ft):
    """Fine-tunes Primus-S, whatever the plans name."""

    size = "S"


class PrimusTrainer_B_ft(PrimusTrainer_ft):
    """Fine-tunes Primus-B, whatever the plans name."""

    size = "B"


class PrimusTrainer_M_ft(PrimusTrainer_ft):
    """Fine-tunes Primus-M, whatever the plans name."""

    size = "M"


class PrimusTrainer_L_ft(PrimusTrainer_ft):
    """Fine-tunes Primus-L, whatever the plans name."""

    size = "L"


class PrimusTrainer_S_scratch(PrimusTrainer_scratch):
    """Primus-S from scratch."""

    size = "S"


class PrimusTrainer_B_scratch(PrimusTrainer_scratch):
    """Primus-B from scratch."""

    size = "B"


class PrimusTrainer_M_scratch(PrimusTrainer_scratch):
    """Primus-M from scratch."""

    size = "M"


class PrimusTrainer_L_scratch(PrimusTrainer_scratch):
    """Primus-L from scratch."""

    size = "L"
