"""``*.safetensors``: tensors and a header of text, nothing that could run; ours and other people's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_pretrain.transfer.safetensors_file import load_safetensors


def open_safetensors(file: Path) -> dict[str, Any]:
    """Return the content of a file as a checkpoint of ours has it, or with its tensors alone if it is not of ours.

    Raises:
        ValueError: the library is missing, the file is truncated or no safetensors, or its header contradicts it.
    """
    try:
        return load_safetensors(file)
    except ImportError as error:
        raise ValueError(
            f"{file} needs the package safetensors, which is not installed: pip install safetensors."
        ) from error
