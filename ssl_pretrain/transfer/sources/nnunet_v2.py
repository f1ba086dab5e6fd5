"""``checkpoint_final.pth`` and ``checkpoint_best.pth`` of nnU-Net v2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.transfer.images import images_of_plans
from ssl_pretrain.transfer.sources.base import Opened, Reading, patch_in

ORIGIN = "nnU-Net v2"


def recognise(opened: Opened) -> bool:
    """It has the weights and the arguments of the trainer."""
    return bool(opened.entry("network_weights")) and bool(opened.entry("init_args"))


def read(opened: Opened) -> Reading:
    """The whole network; its segmentation heads are those of its dataset."""
    arguments = opened.entry("init_args")
    plans, configuration = arguments.get("plans"), arguments.get("configuration")
    plans = plans if isinstance(plans, Mapping) else {}
    said = {
        "trainer_name": opened.value("trainer_name"),
        "dataset_name": plans.get("dataset_name"),
        "plans_name": plans.get("plans_name"),
        "configuration": configuration,
        "fold": None if arguments.get("fold") is None else str(arguments.get("fold")),
    }
    metadata = {name: value for name, value in said.items() if isinstance(value, str)}
    images = images_of_plans(plans, configuration)
    return Reading(ORIGIN, opened.tensors, patch=_patch(plans, configuration), metadata=metadata, images=images)


def _patch(plans: Mapping[str, Any], configuration: Any) -> Triple | None:
    """The patch size of a configuration, or of the one that it inherits from."""
    configurations = plans.get("configurations") or {}
    for _ in range(len(configurations)):
        entry = configurations.get(configuration)
        if not isinstance(entry, Mapping):
            return None
        if "patch_size" in entry:
            return patch_in(entry["patch_size"])
        configuration = entry.get("inherits_from")
    return None
