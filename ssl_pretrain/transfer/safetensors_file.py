"""A checkpoint as a safetensors file: tensors that nobody has to unpickle, and where they come from in the header.

A header holds text by name. ``format`` is ``pt``, as elsewhere; ``anatomask`` is JSON of what our checkpoints say
besides their tensors (:data:`ENTRIES`); ``aliases`` is JSON of the names under which a network registers a tensor once
more, and the name under which the file has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_pretrain.files import write_atomic
from ssl_pretrain.transfer.sources.bounds import refusal

SUFFIX = ".safetensors"

ABOUT, ALIASES = "anatomask", "aliases"
"""What of the header is ours."""

ENTRIES = ("pretraining", "nnssl_adaptation_plan", "citations", "trainer_name")
"""What a checkpoint says besides its tensors."""

LARGEST_HEADER = 16 * 2**20
"""Bytes; a thousand tensors and what a checkpoint of ours says of them are less than one MB."""

Place = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


def save_safetensors(content: Mapping[str, Any], path: Path) -> None:
    """Write what ``checkpoint_final.pth`` holds as a safetensors file; one that is there is replaced.

    Args:
        content: ``network_weights``, and of :data:`ENTRIES` those there are.
        path: the file.

    Raises:
        ValueError: an entry cannot be said in JSON; names it.
        OSError: the file cannot be written; what was there is intact.
    """
    from safetensors.torch import save

    tensors, aliases = _each_once(content["network_weights"])
    header = {"format": "pt", ABOUT: _json(content), ALIASES: json.dumps(aliases)}
    data = save({name: _own(tensor) for name, tensor in tensors.items()}, header)
    write_atomic(path, "wb", lambda handle: handle.write(data))


def load_safetensors(path: Path) -> dict[str, Any]:
    """The inverse of :func:`save_safetensors`; of a stranger's file, its tensors as ``network_weights``.

    Raises:
        ValueError: not a safetensors file, truncated, or with a header that no file of weights has.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if LARGEST_HEADER < length < path.stat().st_size:
        raise refusal(path, f"its header has {length / 2**20:.0f} MB")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        about, aliases = (json.loads(header.get(name, "{}")) for name in (ABOUT, ALIASES))
        tensors.update({alias: tensors[name] for alias, name in aliases.items()})
        entries = {name: about[name] for name in ENTRIES if name in about}
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be opened as a safetensors file ({type(error).__name__}: {error}): it is truncated, or its "
            "header is damaged. Copy or download it again."
        ) from error
    return {"network_weights": tensors, **entries}


def _each_once(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under their first names, and further names of the same tensors."""
    first: dict[Place, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in weights.items():
        # Empty tensors have no place in memory that would tell them apart.
        known = first.setdefault(_place(tensor), name) if tensor.numel() else name
        if known == name:
            tensors[name] = tensor
        else:
            aliases[name] = known
    return tensors, aliases


def _place(tensor: Tensor) -> Place:
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _own(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and with nothing else in its storage: safetensors takes no views."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _json(content: Mapping[str, Any]) -> str:
    about = {name: content[name] for name in ENTRIES if content.get(name) is not None}
    for name, entry in about.items():
        try:
            json.dumps(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The checkpoint's entry {name!r} cannot be written into the header of a {SUFFIX} file ({error}). "
                "Write a .pth file instead."
            ) from error
    return json.dumps(about)
