"""Dotted paths of classes, as plans and files of weights name the layers of a network."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn


def resolved(path: str) -> Any | None:
    """What a dotted path names; None if there is nothing.

    Only the last part is an attribute: ``torch.nn.modules.module.torch.os`` is not a module, although walking through
    attributes leads to one. What a package imports for itself is none of its names.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):  # ValueError: an empty name
        return None


def is_layer(path: str) -> bool:
    """Whether a dotted path names a class of PyTorch's modules; imports what it names."""
    found = resolved(path)
    return isinstance(found, type) and issubclass(found, nn.Module)
