"""SimMIM3D (thesis of T. Riedel): a Lightning checkpoint of a ViT of MONAI's and the decoder of its pretext task.

Its own fine-tuning drops the projection of the image and the positions, though a UNETR of the same patch has places for
both. Here they are kept.
"""

from __future__ import annotations

from ssl_pretrain.transfer.sources.base import Opened, Reading

ORIGIN = "SimMIM3D"
ENCODER, VIT = "net.encoder.", "vit."
"""Beginnings of the encoder's names: in the file, and in MONAI's and our UNETR."""

REASONS = {"net.encoder.mask_token": "mask token of the pretext task", "net.": "decoder of the pretext task"}
"""Beginnings of what is left out, the longest first."""


def recognise(opened: Opened) -> bool:
    """It has the positions of a ViT in the encoder of a Lightning module's network."""
    return f"{ENCODER}patch_embedding.position_embeddings" in opened.tensors


def read(opened: Opened) -> Reading:
    """The transformer, its projection and its positions by the names of a UNETR."""
    kept, left_out = {}, {}
    for name, value in opened.tensors.items():
        if name.startswith(ENCODER) and not name.startswith(f"{ENCODER}mask_token"):
            kept[VIT + name.removeprefix(ENCODER)] = value
        elif reason := next((text for start, text in REASONS.items() if name.startswith(start)), None):
            left_out[name] = reason
    return Reading(ORIGIN, kept, left_out=left_out)
