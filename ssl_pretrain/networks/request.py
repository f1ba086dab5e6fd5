"""What a network is built from, besides its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

from ssl_pretrain.functional.geometry import Triple

Downsample = Literal["merging", "mergingv2"]
"""How neighbours are merged in a Swin transformer."""

Setting = int | bool | tuple[int, int, int, int] | Downsample
"""A value after ``-network_settings``."""

Size = TypeVar("Size")
"""A frozen dataclass that says how large a network is, and checks itself."""


@dataclass(frozen=True)
class NetworkRequest:
    """What a network is built from.

    Attributes:
        architecture: ``architecture`` entry of the plans' configuration.
        input_channels: channels of the image.
        num_classes: segmentation heads of the dataset.
        patch: voxels of the patch per axis.
        settings: fields of the network's size that are to differ from the published one, such as ``depth``.
        trust_plans: whether the architecture may name code of any package.
    """

    architecture: Mapping[str, Any]
    input_channels: int
    num_classes: int
    patch: Triple
    settings: Mapping[str, Any] = field(default_factory=dict)
    trust_plans: bool = False


def with_settings(size: Size, settings: Mapping[str, Any], network: str) -> Size:
    """A published size with some of its fields changed.

    Args:
        size: the published one.
        settings: new values by field.
        network: what the user calls it, for messages.

    Raises:
        ValueError: no such field, or a value that the size refuses.
    """
    known = [entry.name for entry in fields(cast("Any", size))]
    check_settings(settings, known, network)
    return cast("Size", replace(cast("Any", size), **settings))


def settings_suffix(settings: Mapping[str, Any]) -> str:
    """Settings as a part of the name of plans: ``_depths2-2-6-2_heads3``."""
    texts = {n: "-".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for n, v in settings.items()}
    return "".join(f"_{name}{text}" for name, text in sorted(texts.items()))


def check_settings(settings: Mapping[str, Any], known: list[str], network: str) -> None:
    """Refuse settings that a network does not have.

    Raises:
        ValueError: names them, and those that there are.
    """
    unknown = [name for name in settings if name not in known]
    if unknown:
        has = f"It has {', '.join(known)}" if known else "It has none: its size is in the plans, or in its name"
        raise ValueError(f"Network {network} has no setting {', '.join(map(repr, unknown))}. {has}.")


def check_counts(**values: int) -> None:
    """Refuse sizes that are not positive whole numbers.

    Raises:
        ValueError: names the size.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
