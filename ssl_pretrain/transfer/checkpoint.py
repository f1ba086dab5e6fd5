"""The checkpoint for the world: what ``nnUNetv2_train -pretrained_weights`` and other consumers load."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import Backbone

PACKAGES = ("anatomask", "torch", "nnunetv2", "lightning", "dynamic-network-architectures")
PLAN_ENTRIES = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)


@dataclass(frozen=True)
class Provenance:
    """Where weights come from.

    Attributes:
        method: name of the pretraining method.
        network: what the user passed as ``-network``.
        config: resolved configuration of the run.
        plans: the plans file.
        configuration: name of its configuration.
        patch: voxels of the crops per axis.
        citations: what to cite.
        epoch: epochs that were trained.
        seed: seed of the run.
    """

    method: str
    network: str
    config: Mapping[str, Any]
    plans: Mapping[str, Any]
    configuration: str
    patch: Triple
    citations: tuple[str, ...]
    epoch: int
    seed: int


def build_checkpoint(
    backbone: Backbone, pretrained: set[int], provenance: Provenance, replaced: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Everything ``checkpoint_final.pth`` holds; plain containers and tensors, so ``weights_only=True`` opens it.

    Args:
        backbone: the network; its ``state_dict`` is exported under its own keys, complete.
        pretrained: ``id`` of the parameters and buffers that the pretext task trained.
        provenance: where the weights come from.
        replaced: tensors to export instead of the network's own, by key; they count as fresh.
    """
    network = backbone.network
    named = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    trained = {name for name, tensor in named if id(tensor) in pretrained} - set(replaced or ())
    source = {**network.state_dict(), **(replaced or {})}
    weights = {key: value.detach().cpu() for key, value in source.items()}
    return {
        "network_weights": _with_shared_storage(weights, source),
        "nnssl_adaptation_plan": adaptation_plan(backbone, provenance),
        "pretraining": {
            "format": 1,
            "method": provenance.method,
            "network": provenance.network,
            "config": dict(provenance.config),
            "plans": dict(provenance.plans),
            "configuration": provenance.configuration,
            "patch_size": list(provenance.patch),
            "epoch": provenance.epoch,
            "seed": provenance.seed,
            "input_channels": backbone.input_channels,
            "pretrained_keys": sorted(k for k in weights if k in trained),
            "fresh_keys": sorted(k for k in weights if k not in trained),
            "encoder_keys": sorted(backbone.encoder_keys),
            "versions": installed_versions(),
            "citations": list(provenance.citations),
        },
        "citations": [{"type": "Method", "name": provenance.method, "apa_citations": list(provenance.citations)}],
        "trainer_name": provenance.method,
    }


def adaptation_plan(backbone: Backbone, provenance: Provenance) -> dict[str, Any]:
    """``nnssl_adaptation_plan``, the entry by which nnU-Net's nnssl road recognises and adapts a checkpoint."""
    class_name = backbone.architecture.rpartition(".")[2]
    configuration = dict(provenance.plans["configurations"].get(provenance.configuration, {}))
    configuration["patch_size"] = list(provenance.patch)
    configuration.pop("architecture", None)
    return {
        "architecture_plans": {
            "arch_class_name": class_name,
            "arch_kwargs": backbone.architecture_kwargs,
            "arch_kwargs_requiring_import": list(backbone.architecture_imports),
        },
        "pretrain_plan": {
            **{entry: provenance.plans.get(entry) for entry in PLAN_ENTRIES},
            "configurations": {provenance.configuration: configuration},
        },
        "pretrain_num_input_channels": backbone.input_channels,
        "recommended_downstream_patchsize": list(provenance.patch),
        "key_to_encoder": backbone.encoder_key,
        "key_to_stem": backbone.stem_key,
        "keys_to_in_proj": list(backbone.input_projection_keys),
        "key_to_lpe": backbone.position_keys[0] if backbone.position_keys else None,
    }


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _with_shared_storage(weights: dict[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let aliases of one parameter be one tensor again, so that the file holds it once."""
    first: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for key, value in source.items():
        weights[key] = first.setdefault((value.data_ptr(), tuple(value.shape)), weights[key])
    return weights
