"""``checkpoint_final.pth`` of this project, and the same as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_pretrain.transfer.sources import nnssl
from ssl_pretrain.transfer.sources.base import Opened, Reading, patch_in, plain_name

ORIGIN = "anatomask"


def recognise(opened: Opened) -> bool:
    """It says which of its tensors are pretrained."""
    return "pretrained_keys" in opened.entry("pretraining")


def read(opened: Opened) -> Reading:
    """What is pretrained in it, and nothing else.

    Raises:
        ValueError: it names tensors that it does not have.
    """
    pretraining: Mapping[str, Any] = opened.entry("pretraining")
    return Reading(
        ORIGIN,
        _pretrained(opened.file, opened.tensors, list(pretraining["pretrained_keys"])),
        ours=True,
        patch=patch_in(pretraining.get("patch_size")) or nnssl.patch_of(opened.entry(nnssl.PLAN)),
        metadata=opened.about,
    )


def _pretrained(file: Path, tensors: Mapping[str, Tensor], keys: list[Any]) -> dict[str, Tensor]:
    names = [plain_name(str(key)) for key in keys]
    absent = [name for name in names if name not in tensors]
    if absent or not names:
        raise ValueError(
            f"{file} says that {len(names)} tensors are pretrained, of which {len(absent)} are not in it "
            f"({', '.join(absent[:3])}): the file is damaged. Export it again."
        )
    return {name: tensors[name] for name in names}
