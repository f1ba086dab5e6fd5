"""What the two pretrained Swin transformers of MONAI's world have in common: names that its ``SwinUNETR`` changed."""

from __future__ import annotations

import re

SWIN = "swinViT."
"""Where MONAI's ``SwinUNETR`` keeps its encoder."""

MLP = re.compile(r"\.mlp\.fc([12])\.")


def modern(name: str) -> str:
    """Name of a tensor of the encoder in today's MONAI, which calls the layers of an MLP otherwise."""
    return MLP.sub(r".mlp.linear\1.", name)
