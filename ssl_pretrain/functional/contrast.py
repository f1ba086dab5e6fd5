"""Contrast of embeddings: the NT-Xent loss, and what tells a collapsed embedding from a learned one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-6
"""Least of what a logarithm is taken of, and least sum of overlaps, as in VoCo's code."""


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast: embeddings of an untrained network are alike to more digits than bfloat16 has."""
    # Devices that compute nothing have no autocast.
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def nt_xent(
    own: Tensor, everyone: Tensor, first: int, partner: Tensor, temperature: float, image: Tensor | None = None
) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, equation 1), mean over ``own``.

    Each embedding is to be told from all others but itself by its likeness to its partner.

    Args:
        own: (N, E) unit vectors of this process.
        everyone: (M, E) unit vectors of all processes, ``own`` among them.
        first: place of ``own`` in ``everyone``.
        partner: (N,) places of the partners in ``everyone``.
        temperature: of the softmax over cosines; greater than 0.
        image: (M,) number of the image that each embedding is of; those of the same image, other than the partner, are
            then no negatives. None: they are.

    Returns:
        Scalar, float32 whatever the precision of the embeddings is.
    """
    with full_precision(own.device):
        cosines = own.float() @ everyone.float().T / temperature
    places = torch.arange(len(everyone), device=own.device)
    ignored = places == (first + places[: len(own)])[:, None]
    if image is not None:
        ignored |= image == image[first : first + len(own), None]
    ignored &= places != partner[:, None]
    return F.cross_entropy(cosines.masked_fill(ignored, -torch.inf), partner)


def partners(first: int, count: int, device: torch.device) -> Tensor:
    """Places of the partners of embeddings, where pairs follow one another: 0 and 1, 2 and 3.

    Args:
        first: place of the first embedding, even.
        count: of embeddings, even.
        device: of the result.

    Returns:
        (count,) int64.
    """
    return torch.arange(first, first + count, device=device) ^ 1


def located(crops: Tensor, bases: Tensor) -> Tensor:
    """Where crops lie among base crops: cosines of unit vectors (…, T, E) and (…, N, E), none below 0 -> (…, T, N)."""
    with full_precision(crops.device):
        return (crops.float() @ bases.float().transpose(-1, -2)).clamp(0, 1)


def overlap_loss(true: Tensor, found: Tensor, *, squared: bool) -> Tensor:
    """Distance of found shares of overlap from the true ones (VoCo, Wu et al. 2024, equation 4), mean over images.

    Base crops that a crop overlaps weigh as much as they do; those that it does not are a term of their own.

    Args:
        true: (B, T, N), shares of T crops of an image that lie in N others.
        found: (B, T, N), between 0 and 1.
        squared: where there is no overlap, the square of what is found counts, as in OpenMind's code; otherwise its
            logarithm as everywhere.
    """
    surprise, apart = -(1 - (true - found).abs() + TINY).log(), true == 0
    together = (true * surprise).sum((1, 2)) / true.sum((1, 2)).clamp_min(TINY)
    wrong = (found.square() if squared else surprise) * apart
    return (together + wrong.sum((1, 2)) / apart.sum((1, 2)).clamp_min(1)).mean()


def likeness(vectors: Tensor, *, squared: bool) -> Tensor:
    """Mean over images and pairs of the cosines of unit vectors (B, N, E), those below 0 as 0, or of their squares."""
    first, second = torch.triu_indices(vectors.shape[1], vectors.shape[1], 1, device=vectors.device)
    cosines = located(vectors, vectors)[:, first, second]
    return (cosines.square() if squared else cosines).mean()


def effective_rank(embeddings: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values (N, E) -> scalar between 1 and min(N, E) (Roy & Vetterli 2007).

    Of the embeddings minus their mean; 0 where all are the same.
    """
    values = torch.linalg.svdvals((embeddings - embeddings.mean(0)).float())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    # Rounding leaves something of the mean even where all are the same.
    return torch.where(values[0] > 1e-6 * embeddings.float().norm().clamp_min(1e-12), rank, 0.0)


def uniformity(embeddings: Tensor) -> Tensor:
    """Logarithm of the mean Gaussian potential of pairs of unit vectors (N, E) -> scalar (Wang & Isola 2020, t = 2).

    0 where all are the same; the lower, the more evenly they are spread.
    """
    distances = torch.pdist(embeddings.float())
    return torch.logsumexp(-2 * distances**2, 0) - log(len(distances))
