"""Checkpoints of nnssl (MIC-DKFZ) and of OpenMind, which nnssl trained (Wald et al. 2024, arXiv 2412.17041).

``nnssl_adaptation_plan`` says which network they are of and where its encoder is. A Primus is kept without what its
pretext task decoded with: the up-projection saw the output of a decoder that fine-tuning does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.primus import PRIMUS_CLASSES
from ssl_pretrain.transfer.sources.base import Opened, Reading, any_begins, patch_in

ORIGIN = "nnssl"
PLAN = "nnssl_adaptation_plan"
SPARK = "spark_weights"
"""What only its trainers of SparK add; those forget the plan."""

ENCODER, STEM = "eva", "down_projection"
"""Where a Primus has its encoder and its projection of the image."""


def recognise(opened: Opened) -> bool:
    """It has the plan, or one of the two other entries that only nnssl writes."""
    return bool(opened.entry(PLAN)) or SPARK in (opened.content or {}) or "pretrain_json" in opened.entry("init_args")


def read(opened: Opened) -> Reading:
    """A U-Net with its decoder, or the encoder of a Primus, by the names that nnU-Net's network has.

    Raises:
        ValueError: the plan's encoder is not in the file.
    """
    plan = opened.entry(PLAN)
    names = _of_encoder(opened, str(plan.get("key_to_encoder") or ENCODER)) if is_primus(plan) else {}
    left_out = {name: "part of the pretext task" for name in opened.tensors if names and name not in names}
    tensors = {names.get(name, name): value for name, value in opened.tensors.items() if name not in left_out}
    return Reading(ORIGIN, tensors, patch=patch_of(plan), metadata=opened.about, left_out=left_out)


def patch_of(plan: Mapping[str, Any]) -> Triple | None:
    """The patch size of the pretraining."""
    pretraining = plan.get("pretrain_plan") or {}
    configurations = pretraining.get("configurations") or {}
    sizes = (patch_in(entry.get("patch_size")) for entry in configurations.values() if isinstance(entry, Mapping))
    return next((size for size in sizes if size), None)


def architecture_of(plan: Mapping[str, Any]) -> str:
    """Name of the network's class; empty where the plan has none."""
    return str((plan.get("architecture_plans") or {}).get("arch_class_name") or "")


def is_primus(plan: Mapping[str, Any]) -> bool:
    """Whether the plan is that of a Primus."""
    return architecture_of(plan) in PRIMUS_CLASSES


def _of_encoder(opened: Opened, key: str) -> dict[str, str]:
    """Names of encoder and stem, in the network by those in the file.

    Contrastive methods keep both in a wrapper: ``encoder.eva`` and ``encoder.down_projection``.
    """
    wrapper = key.removesuffix(ENCODER)
    parts = (f"{wrapper}{ENCODER}.", f"{wrapper}{STEM}.")
    names = {name: name.removeprefix(wrapper) for name in opened.tensors if name.startswith(parts)}
    if not any_begins(names, parts[0]):
        raise ValueError(
            f"{opened.file} has a plan that calls its encoder {key!r}, and no tensors of that name: the file is "
            "damaged, or its plan is that of another network. Download it again."
        )
    return names
