"""What an encoder knows without fine-tuning: a linear head on its frozen feature maps, trained for a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.anatomy import unwrap
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.registry import build_backbone, shown_names
from ssl_pretrain.networks.wrap import wrap_network
from ssl_pretrain.study.watch import Watch

RATE = 1e-2
"""Highest learning rate of the head, which AdamW trains; it falls linearly to 0."""
CLIP = 12.0
"""Norm to which gradients are clipped, as nnU-Net does."""


class LinearProbe(nn.Module):
    """A frozen encoder and a linear head: each voxel's classes from the feature vector there, over all maps.

    Maps are standardised by channel, or the rate that suits the features of one encoder would not suit those of
    another. A 1×1×1 convolution of each map, interpolated and summed, is that convolution of all maps interpolated and
    concatenated: both are linear. It needs a fraction of the memory.

    Args:
        backbone: whose encoder is probed; its parameters and modes stay as they are.
        classes: of the logits.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        # In a list, so that neither train() nor parameters() reaches it.
        self._encoder = [backbone.encoder]
        channels = [entry.channels for entry in backbone.feature_maps]
        self.norms = nn.ModuleList(nn.BatchNorm3d(count, affine=False) for count in channels)
        self.heads = nn.ModuleList(nn.Conv3d(count, classes, 1) for count in channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, classes, D, H, W)."""
        with torch.no_grad():
            maps: Sequence[Tensor] = self._encoder[0](image)
        logits = [head(norm(one)) for head, norm, one in zip(self.heads, self.norms, maps, strict=True)]
        return torch.stack([functional.interpolate(one, image.shape[2:], mode="trilinear") for one in logits]).sum(0)


def probe(watch: Watch, steps: int) -> dict[str, Any]:
    """Dice of a linear head on the encoder of a trainer's network, which is left as it is.

    Crops, augmentation and loss are the trainer's, without deep supervision, of which a linear head has no use.

    Args:
        watch: of the trainer, before its training; it validates.
        steps: of the head's optimiser.

    Raises:
        ValueError: the network is none whose feature maps are known.
    """
    trainer = watch.trainer
    network = trainer.network
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    head = LinearProbe(backbone_of(trainer), int(trainer.label_manager.num_segmentation_heads)).to(trainer.device)
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    # With deep supervision the trainer's loss is a wrapper around that of one resolution, and targets are a list.
    loss_of = trainer.loss.loss if trainer.enable_deep_supervision else trainer.loss
    batches, other = trainer.get_dataloaders()
    head.train()
    for _ in range(steps):
        batch = next(batches)
        target = batch["target"][0] if trainer.enable_deep_supervision else batch["target"]
        loss = loss_of(head(batch["data"].to(trainer.device)), target.to(trainer.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), CLIP)
        optimizer.step()
        pace.step()
    for loader in (batches, other):
        if hasattr(loader, "_finish"):
            loader._finish()
    # The validation switches deep supervision off in the trainer's network, and the head is no such network.
    switch = trainer.set_deep_supervision_enabled
    trainer.network, trainer.set_deep_supervision_enabled = head, lambda _: None
    try:
        return watch.validate(steps)
    finally:
        trainer.network, trainer.set_deep_supervision_enabled = network, switch
        for module, training in modes:
            module.training = training


def backbone_of(trainer: Any) -> Backbone:
    """A trainer's network with its feature maps.

    Raises:
        ValueError: it is none of ours.
    """
    from ssl_pretrain.transfer.recognition import Built, recognise

    network, manager = unwrap(trainer.network), trainer.configuration_manager
    channels, classes = int(trainer.num_input_channels), int(trainer.label_manager.num_segmentation_heads)
    try:
        return wrap_network(network, channels)
    except ValueError:
        pass
    patch = cast("Triple", tuple(int(n) for n in manager.patch_size))
    architecture = manager.configuration["architecture"]
    name, _ = recognise(Built(network, architecture, channels, classes, patch))
    if name is None:
        raise ValueError(
            f"-probe needs to know the feature maps of the encoder of {type(network).__name__}, which is none of "
            f"{shown_names()}. Leave -probe out."
        )
    backbone = build_backbone(
        name, architecture=architecture, input_channels=channels, num_classes=classes, patch=patch
    )
    backbone.network.load_state_dict(network.state_dict())
    return backbone.eval().to(trainer.device)
