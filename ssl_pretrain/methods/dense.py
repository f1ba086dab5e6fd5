"""A whole segmentation network with a head of the pretext task in place of its own."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ssl_pretrain.networks.base import Backbone


class DenseNetwork(nn.Module):
    """Encoder and decoder of a segmentation network, and a fresh head: image -> (B, ``channels``, D, H, W).

    Args:
        backbone: the network; what the pretext task does not use of it gets no gradient.
        channels: that come out.
        drop_path: of a transformer.
    """

    def __init__(self, backbone: Backbone, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = backbone.new_head(channels)
        train_only_used(backbone, self.head, drop_path)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, ``channels``, D, H, W)."""
        return cast("Tensor", self.head(self.backbone.dense(image)))


def freeze_all_but(used: set[int], network: nn.Module) -> None:
    """No gradient for the parameters of a network but for those with these ``id``."""
    for parameter in network.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def train_only_used(backbone: Backbone, head: nn.Module, drop_path: float = 0.0, *, decoder: bool = True) -> None:
    """Parameters that the pretext task never touches get no gradient: no optimiser state, no waiting for it in DDP.

    Args:
        backbone: encoder and, with ``decoder``, decoder are used.
        head: of the pretext task; it may share parameters with nothing.
        drop_path: of a transformer's blocks while it is pretrained.
        decoder: whether the network's own decoder is used.
    """
    keys = {*backbone.encoder_keys, *(backbone.decoder_keys if decoder else ())}
    named = backbone.network.named_parameters(remove_duplicate=False)
    used = {id(p) for name, p in named if name in keys} | {id(p) for p in head.parameters()}
    freeze_all_but(used, backbone.network)
    backbone.set_drop_path(drop_path)
