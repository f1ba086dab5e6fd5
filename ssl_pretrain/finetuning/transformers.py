"""What our nnU-Net trainers for transformers share: the recipe that Primus was published with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from ssl_pretrain.finetuning.mixins import FineTuningMixin
from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.networks.tokens import check_token_patch

CLIP = 1.0
"""Norm to which gradients are clipped; nnU-Net's own steps clip at 12."""


class TransformerMixin(FineTuningMixin):
    """AdamW, gradients clipped at 1, no deep supervision; put it before nnU-Net's.

    As published (Wald et al. 2025, arXiv 2503.01835): betas 0.9 and 0.98, weight decay 0.05 on every parameter; 1e-4
    after pretraining, 3e-4 from scratch.
    """

    peak_rates = (1e-4, 3e-4)
    decay = 5e-2
    deep_supervision = False
    betas = (0.9, 0.98)
    # Set by nnU-Net's trainer.
    device: torch.device

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Return AdamW, or SGD where the name says so; it clips gradients before each step."""
        parameters = [p for group in groups for p in group["params"]]
        fused = self.device.type in ("cpu", "cuda")
        named = self.setting.optimizer
        if named is not None and named.kind == "sgd":
            optimizer = super().build_optimizer(groups)
        else:
            optimizer = AdamW(groups, self.initial_lr, self.betas, weight_decay=self.weight_decay, fused=fused)
        # nnU-Net's step unscales gradients and clips them at 12; clipping once more there leaves that step as it is.
        optimizer.register_step_pre_hook(lambda *_: _clip(parameters))
        return optimizer

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: these networks have one output."""


def planned_patch(patch: Sequence[int], token: Triple, network: str) -> Triple:
    """The patch size of nnU-Net's plans for a network of tokens.

    Args:
        patch: of the configuration.
        token: voxels of a token per axis.
        network: what ``-network`` of pretraining calls it.

    Raises:
        ValueError: not divisible; says where a patch that is comes from.
    """
    size = as_triple(list(patch), "The patch size of the plans' configuration")
    try:
        check_token_patch(size, token)
    except ValueError as error:
        raise ValueError(
            f"{error} nnU-Net takes the patch from the plans: pretraining with -network {network} and one of these "
            f"sizes writes plans that have it, to be used with -p <PLANS>_{network}."
        ) from error
    return size


def _clip(parameters: Any) -> None:
    clip_grad_norm_(parameters, CLIP)
