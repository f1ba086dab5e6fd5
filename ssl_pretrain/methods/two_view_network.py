"""What TwoViewMAE puts on MAE's network: vectors of places and of whole crops."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from ssl_pretrain.methods.heads import PROJECTOR_LAYERS, Gather, ProjectorNorm, build_projector, pooled_width, projected
from ssl_pretrain.methods.mae import MaskedDenseNetwork, TokenMAENetwork


class Seen(NamedTuple):
    """What a student makes of masked crops.

    Attributes:
        image: (B, C, D, H, W), reconstructed.
        local: (B, P, E), predicted of places.
        whole: (B, E), predicted of the whole crop.
    """

    image: Tensor
    local: Tensor
    whole: Tensor


class TwoViewNetwork(nn.Module):
    """MAE's network, with a projector and a predictor on the features of places and of whole crops.

    Features of a convolutional network are those of all its encoder's maps; of a transformer, its filled-in tokens.

    Args:
        autoencoder: MAE's network.
        width: channels of the projector's layers, and of all vectors.
        hidden: channels between the predictor's two layers.
        norm: of both; see :func:`~ssl_pretrain.methods.heads.build_projector`.
        gather: see :class:`~ssl_pretrain.methods.heads.GatheredBatchNorm`.
    """

    def __init__(
        self,
        autoencoder: MaskedDenseNetwork | TokenMAENetwork,
        width: int,
        hidden: int,
        norm: ProjectorNorm,
        gather: Gather,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        widths = [pooled_width(autoencoder.backbone), *[width] * PROJECTOR_LAYERS]
        self.projector = build_projector(widths, norm, gather)
        self.predictor = build_projector([width, hidden, width], norm, gather)
        # Whole crops are more alike than places are: statistics of both at once would take out neither's mean.
        self.whole_projector, self.whole_predictor = map(with_own_norms, (self.projector, self.predictor))

    def forward(self, image: Tensor, mask: Tensor, places: Tensor) -> Seen:
        """What the student predicts.

        Args:
            image: (B, C, D, H, W).
            mask: as for MAE's network, True where masked.
            places: (B, d, h, w, 3), as :func:`~ssl_pretrain.functional.views.shared_points` gives them.
        """
        maps = self.autoencoder.features(image, mask)
        local, whole = self.project(maps, places)
        predicted = projected(self.predictor, local.flatten(0, 1)).view_as(local)
        return Seen(self.autoencoder.reconstruct(maps), predicted, projected(self.whole_predictor, whole))

    def project(self, maps: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of places (B, P, E) and of whole crops (B, E), float32 under any precision, of MAE's features."""
        computed = maps[-len(self.autoencoder.backbone.features) :]
        at = [grid_sample(m.float(), places, padding_mode="border", align_corners=False) for m in computed]
        features = torch.cat(at, 1).flatten(2).transpose(1, 2)
        local = projected(self.projector, features.flatten(0, 1))
        return local.view(*features.shape[:2], -1), self.project_whole(maps)

    def project_whole(self, maps: list[Tensor]) -> Tensor:
        """Vectors of whole crops (B, E), of the means of MAE's features."""
        computed = maps[-len(self.autoencoder.backbone.features) :]
        return projected(self.whole_projector, torch.cat([m.float().mean((2, 3, 4)) for m in computed], 1))


def with_own_norms(layers: nn.Sequential) -> nn.Sequential:
    """The same linear layers, with norms that keep statistics of their own."""
    return nn.Sequential(*(layer if isinstance(layer, nn.Linear) else deepcopy(layer) for layer in layers))
