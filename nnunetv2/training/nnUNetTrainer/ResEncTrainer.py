"""nnU-Net trainers for the network that the plans name: ``nnUNetv2_train … -tr ResEncTrainer_ft``.

All of ``ResEncTrainer_<ft|scratch>[_<N>ep][_<schedule>]``, see ``ssl_pretrain.finetuning.names``.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ssl_pretrain.finetuning.mixins import FineTuningMixin
from ssl_pretrain.finetuning.on_demand import trainers_of
from ssl_pretrain.transfer.hook import install_hook

install_hook()


class _ResEnc(FineTuningMixin, nnUNetTrainer):
    family = "ResEnc"


__getattr__ = trainers_of(_ResEnc, __name__)
