"""Which code plans may name: what building a network imports and calls, checked before anything is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pkgutil import iter_modules
from typing import Any

from ssl_pretrain.networks.dotted import is_layer

TRUSTED = ("torch.nn", "dynamic_network_architectures", "monai.networks", "ssl_pretrain", "nnunetv2")
"""Packages whose layers and networks any plans may name."""


def refuse_foreign_code(architecture: Mapping[str, Any], *, trust_plans: bool = False) -> None:
    """Refuse plans whose network is not made of layers of well-known packages.

    nnU-Net looks every such name up by walking through attributes, and calls what it finds: ``os.system`` with
    ``nonlin_kwargs`` as its arguments is as good to it as ``torch.nn.ReLU``.

    Args:
        architecture: the configuration's ``architecture`` entry: ``network_class_name``, ``arch_kwargs``,
            ``_kw_requires_import``.
        trust_plans: whether the user vouches for the plans; then nothing is looked at.

    Raises:
        ValueError: a name that is no text, is outside :data:`TRUSTED`, or is no class of layers there.
    """
    if trust_plans:
        return
    kwargs = architecture.get("arch_kwargs") or {}
    wanted = {name: kwargs.get(name) for name in architecture.get("_kw_requires_import") or ()}
    wanted["network_class_name"] = architecture.get("network_class_name")
    named = {entry: str(path) for entry, path in wanted.items() if path is not None}
    known = tuple(f"{package}." for package in TRUSTED)
    if foreign := [f"{entry} {path!r}" for entry, path in named.items() if not path.startswith(known)]:
        raise ValueError(
            f"The plans name code that we do not know: {', '.join(foreign)}. Building their network would run it. "
            f"Known are classes of {', '.join(TRUSTED)}. If you trust the plans and what they name, say so: "
            "-trust_plans (in Python: trust_plans=True)."
        )
    absent = [
        f"{entry} {path!r}"
        for entry, path in named.items()
        if not is_layer(path) and not (entry == "network_class_name" and has_moved(path))
    ]
    if absent:
        raise ValueError(
            f"The plans name {', '.join(absent)}, which is no class of layers in the packages that are installed. "
            "Correct the name, or install the version of the package that has it."
        )


def has_moved(path: str) -> bool:
    """Whether a network is elsewhere in its package by now: nnU-Net looks for the class in all of its modules."""
    import dynamic_network_architectures.architectures as home

    module, _, name = path.rpartition(".")
    others = [f"{home.__name__}.{found.name}" for found in iter_modules(home.__path__)]
    is_old = re.fullmatch(rf"{re.escape(home.__name__)}\.\w+", module) is not None and module not in others
    return is_old and any(is_layer(f"{other}.{name}") for other in others)
