"""How the crops of one sample lie to each other: what a method asks of the loader."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_pretrain.functional.geometry import Triple


@dataclass(frozen=True, kw_only=True)
class Views:
    """Crops that a sample of a batch is made of.

    Attributes:
        count: crops per sample; in a batch they come one after the other.
        together: whether they are of one case; otherwise each is of a case of its own.
        overlap: least share, along each axis, that every crop has in common with the first; of crops of one case.
        size: voxels of a crop per axis; None for the network's patch.
    """

    count: int = 1
    together: bool = False
    overlap: float = 0.0
    size: Triple | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}.")
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"overlap must lie between 0 and 1, got {self.overlap}.")
