"""Transformers as Backbones: cells of the image as tokens, and positions that are added where a method wants them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple, check_patch, grid_of
from ssl_pretrain.networks.base import Backbone, Family, FeatureMap, Need


class DropPath(nn.Module):
    """Leaves a residual branch out for a random share of the samples, in training (Huang et al. 2016, 1603.09382).

    Args:
        rate: share of the samples, 0 to below 1; what stays is scaled up, so that the mean is the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path must lie in [0, 1), got {rate}.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) -> the same, whole samples set to 0."""
        if not self.training or self.rate == 0.0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1.0 - self.rate)
        return x * (kept / (1.0 - self.rate))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of the blocks of a transformer: from 0 in the first linearly to ``rate`` in the last."""
    return [rate * block / max(1, depth - 1) for block in range(depth)]


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """Pick tokens of each sample.

    Args:
        tokens: (B, N, E), or (1, N, E) for the same of every sample.
        keep: (B, K) int64, numbers of the tokens in the order in which they are wanted.

    Returns:
        (B, K, E).
    """
    everyone = tokens.expand(len(keep), -1, -1)
    return everyone.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))


def place_tokens(kept: Tensor, keep: Tensor, filler: Tensor, total: int) -> Tensor:
    """Put tokens back where :func:`take_tokens` took them, and a filler everywhere else.

    Args:
        kept: (B, K, E).
        keep: (B, K) int64, where each belongs.
        filler: (E,), (1, 1, E) or (B, total, E); a learned mask token, usually.
        total: tokens of the whole grid, N.

    Returns:
        (B, N, E).
    """
    filled = filler.to(kept.dtype).expand(len(kept), total, -1)
    return filled.scatter(1, keep[..., None].expand(-1, -1, kept.shape[-1]), kept)


def tokens_to_map(tokens: Tensor, grid: Triple) -> Tensor:
    """(B, N, E) -> (B, E, *grid)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def resize_positions(embedding: Tensor, grid: Triple, new_grid: Triple) -> Tensor:
    """Resample a learned position embedding for another patch size, trilinearly.

    Args:
        embedding: (1, N, E), tokens in C-order over ``grid``.
        grid: tokens per axis that it was learned for.
        new_grid: tokens per axis that are wanted.

    Returns:
        (1, M, E); the embedding itself where the grids agree.

    Raises:
        ValueError: the embedding has not as many tokens as its grid.
    """
    if embedding.shape[1] != prod(grid):
        raise ValueError(
            f"A position embedding of {embedding.shape[1]} tokens cannot be one of a grid of {grid}, which has "
            f"{prod(grid)}. Was it learned with another patch size?"
        )
    if grid == new_grid:
        return embedding
    volume = tokens_to_map(embedding.float(), grid)
    resized = functional.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embedding.dtype)


class TokenEncoder(nn.Module, ABC):
    """The encoder side of a transformer; a view, as of a U-Net.

    Attributes:
        token: voxels of a token per axis.
        grid: tokens per axis. Tokens are numbered in C-order over (D, H, W).
        width: channels of a token, E.
    """

    token: Triple
    grid: Triple
    width: int

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E, *grid): each cell by itself, without position."""

    @abstractmethod
    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """See :meth:`TokenBackbone.encode_tokens`."""

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """See :meth:`TokenBackbone.set_drop_path`."""

    def embed(self, x: Tensor) -> Tensor:
        """See :meth:`TokenBackbone.embed`."""
        patch = tuple(n * t for n, t in zip(self.grid, self.token, strict=True))
        if tuple(x.shape[2:]) != patch:
            raise ValueError(
                f"This network was built for patches of {patch} voxels and cannot look at {tuple(x.shape[2:])}: its "
                "position embedding has one entry per token. Build it for that patch size."
            )
        return self.project(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> the tokens of all cells as a feature map, the only one."""
        return [self.to_map(self.encode_tokens(self.embed(x)))]

    def to_map(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, E, *grid)."""
        return tokens_to_map(tokens, self.grid)


class TokenBackbone(Backbone):
    """A segmentation network whose encoder is a transformer on the cells of the image.

    Attributes:
        token: voxels of a token per axis.
        token_grid: tokens per axis; they are numbered in C-order over (D, H, W).
        width: channels of a token.
    """

    encoder: TokenEncoder
    family: Family = "transformer"
    encoder_offers: frozenset[Need] = frozenset({"tokens"})

    def __init__(
        self, network: nn.Module, encoder: TokenEncoder, feature_maps: Sequence[FeatureMap], input_channels: int
    ) -> None:
        super().__init__(network, encoder, feature_maps, input_channels)
        self.token, self.token_grid, self.width = encoder.token, encoder.grid, encoder.width

    def embed(self, x: Tensor) -> Tensor:
        """Image (B, C, D, H, W) -> tokens (B, N, E) without position.

        Raises:
            ValueError: the image has another size than the patch for which the network was built.
        """
        return self.encoder.embed(x)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> feature maps, fine to coarse."""
        return cast("list[Tensor]", self.encoder(x))

    def encode_tokens(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Give tokens their positions, absolute and rotary, and run the blocks and the final norm.

        Args:
            tokens: (B, N, E) of the whole grid, some of them replaced by whatever the method likes.
            keep: (B, K) int64, the tokens of each sample that go through the blocks, with their positions; None for
                all. The order does not matter: each comes out where it went in.

        Returns:
            (B, K, E), or (B, N, E).
        """
        return self.encoder.encode_tokens(tokens, keep)

    def tokens_to_map(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, E, *token_grid)."""
        return self.encoder.to_map(tokens)

    def set_drop_path(self, rate: float) -> None:
        """Drop residual branches in training, at a rate that rises linearly from 0 in the first block to ``rate``.

        It has no tensors: what is exported does not depend on it, and whoever fine-tunes chooses again.

        Raises:
            ValueError: not in [0, 1).
        """
        self.encoder.set_drop_path(rate)


def check_token_patch(patch: Triple, token: Triple) -> Triple:
    """Tokens per axis of a patch.

    Raises:
        ValueError: the patch is not divisible; names the nearest sizes that are.
    """
    check_patch(patch, token)
    return grid_of(patch, token)


def rope_of(table: Tensor, keep: Tensor | None) -> Tensor:
    """Rotary position embedding of the tokens that are kept, in the shape in which attention wants it.

    Args:
        table: (N, R) sines and cosines.
        keep: (B, K) int64; None for all.

    Returns:
        (N, R), or (B, 1, K, R): the same for all heads.
    """
    return table if keep is None else table[keep].unsqueeze(1)


def untyped(module: nn.Module) -> Any:
    """A module of a library whose parts have no types."""
    return cast("Any", module)
