"""Plans files that name another network, so that nnU-Net builds it with ``-p``."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_pretrain.files import read_json, validated, write_json, write_or_spare
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.stunet import STUNET_PATH, stunet_kwargs

PREPROCESSING = ("data_identifier", "spacing", "preprocessor_name", "normalization_schemes", "use_mask_for_norm")
"""Entries of a configuration that say which preprocessed files it reads and how they were made."""


def write_network_plans(
    plans_file: Path, configuration: str, network: str, backbone: Backbone, patch: Triple, spare: Path | None = None
) -> Path:
    """Write ``<PLANS>_<network>.json`` beside a plans file: the same plans with the network that was pretrained.

    The patch size of the plans stays where the network can work on it. It becomes that of pretraining where the network
    has an embedding of positions, which is made for one patch size, or where its strides do not divide the planned one.

    Preprocessed data are shared with the original plans. A file that is there already gets this configuration added; a
    configuration that it already describes with this network stays as it is, edits included.

    Args:
        plans_file: a plans file of nnU-Net, in the folder of the preprocessed dataset.
        configuration: a 3-D configuration of these plans, such as ``3d_fullres``; only its own entry is changed.
        network: what ``-network`` calls it; becomes part of the file's name.
        backbone: the network.
        patch: voxels of the patch that it was pretrained with.
        spare: folder where the file goes, with a warning, if it cannot be written beside the plans.

    Returns:
        The file; its stem is what ``-p`` of nnU-Net's commands takes.

    Raises:
        FileNotFoundError: no such plans file.
        ValueError: unknown configuration, not 3-D, not JSON, or an existing file that contradicts.
        OSError: the file cannot be written; what was there is intact.
    """
    plans_file = Path(plans_file)
    plans = _read(plans_file)
    resolved = resolve_configuration(plans, configuration, plans_file)
    _check_volume(resolved, configuration, plans_file, network)
    entry: dict[str, Any] = {
        "architecture": {
            "network_class_name": backbone.architecture,
            "arch_kwargs": backbone.architecture_kwargs or {},
            "_kw_requires_import": list(backbone.architecture_imports),
        }
    }
    stride = backbone.feature_maps[-1].stride
    fits = all(int(n) % s == 0 for n, s in zip(resolved["patch_size"], stride, strict=True))
    if backbone.position_keys or not fits:
        entry["patch_size"] = list(patch)
    return _write(plans_file, plans, configuration, network, entry, spare)


def write_stunet_plans(plans_file: Path, configuration: str, size: str) -> Path:
    """:func:`write_network_plans` for an STU-Net that is not built, with the strides of the plans.

    Args:
        plans_file: a plans file of nnU-Net, in the folder of the preprocessed dataset.
        configuration: a 3-D configuration of these plans.
        size: ``small``, ``base``, ``large`` or ``huge``.

    Raises:
        FileNotFoundError: no such plans file.
        ValueError: unknown size or configuration, not 3-D, not JSON, or an existing file that contradicts.
        OSError: the file cannot be written; what was there is intact.
    """
    plans_file = Path(plans_file)
    plans = _read(plans_file)
    resolved = resolve_configuration(plans, configuration, plans_file)
    architecture = {
        "network_class_name": STUNET_PATH,
        "arch_kwargs": stunet_kwargs(size, _strides(resolved, configuration, plans_file)),
        "_kw_requires_import": [],
    }
    return _write(plans_file, plans, configuration, f"STUNet_{size}", {"architecture": architecture})


def _write(
    plans_file: Path,
    plans: dict[str, Any],
    configuration: str,
    network: str,
    entry: Mapping[str, Any],
    spare: Path | None = None,
) -> Path:
    """Write the plans with ``entry`` in a configuration, or leave the file that says so already."""
    resolved = resolve_configuration(plans, configuration, plans_file)
    architecture = json.loads(json.dumps(entry["architecture"]))
    target = plans_file.with_name(f"{plans_file.stem}_{network}{plans_file.suffix}")
    if spare and not target.exists() and (spare / target.name).exists():
        target = spare / target.name
    written = _read(target) if target.exists() else copy.deepcopy(plans)
    if target.exists():
        if configuration not in written["configurations"]:
            written["configurations"][configuration] = copy.deepcopy(plans["configurations"][configuration])
        present = resolve_configuration(written, configuration, target)
        _check_agreement(target, plans_file, configuration, present, resolved)
        if present.get("architecture") == architecture:
            return target
        if present.get("architecture") != resolved.get("architecture"):
            raise ValueError(
                f"{target} already describes another network for {configuration}: {present.get('architecture')}. "
                f"{network} of these plans would be {architecture}. Rename or delete that file."
            )
    written["plans_name"] = target.stem
    written["configurations"][configuration].update(entry)
    advice = f"nnU-Net finds it in {plans_file.parent} only: copy it there before fine-tuning."
    return write_or_spare(target, spare, lambda file: write_json(written, file), advice)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no plans file {file}. nnUNetv2_plan_and_preprocess makes it; -p chooses among several."
        )
    plans = read_json(file, remedy="Make it anew.")
    if not isinstance(plans.get("configurations"), dict):
        raise ValueError(f"{file} is not a plans file of nnU-Net: it has no 'configurations'.")
    validated(plans["configurations"], dict[str, dict[str, Any]], file)
    return plans


def resolve_configuration(plans: dict[str, Any], configuration: str, file: Path) -> dict[str, Any]:
    """Return a configuration of a plans file with everything it inherits.

    Raises:
        ValueError: the plans have no such configuration, or it inherits from itself.
    """
    chain: list[str] = []
    name: str | None = configuration
    while name is not None:
        if not isinstance(name, str) or name not in plans["configurations"]:
            known = ", ".join(plans["configurations"])
            raise ValueError(f"{file} has no configuration {name!r}. It has {known}.")
        if name in chain:
            raise ValueError(f"{file}: configuration {configuration!r} inherits from itself ({' → '.join(chain)}).")
        chain.append(name)
        name = plans["configurations"][name].get("inherits_from")
    resolved: dict[str, Any] = {}
    for name in reversed(chain):
        resolved.update(plans["configurations"][name])
    return resolved


def _strides(resolved: dict[str, Any], configuration: str, file: Path) -> list[list[int]]:
    arch_kwargs = resolved.get("architecture", {}).get("arch_kwargs", {})
    # Plans older than nnU-Net 2.5 describe the U-Net by entries of the configuration itself.
    strides = arch_kwargs.get("strides", resolved.get("pool_op_kernel_sizes"))
    if not strides:
        raise ValueError(
            f"Configuration {configuration!r} of {file} names no strides, so no STU-Net can be planned from it. "
            "Use plans of a U-Net (nnUNetPlans, nnUNetResEncUNetMPlans, …)."
        )
    _check_volume(resolved, configuration, file, "STU-Net")
    return [list(stride) for stride in strides]


def _check_volume(resolved: dict[str, Any], configuration: str, file: Path, network: str) -> None:
    if len(resolved.get("patch_size", [])) != 3:
        raise ValueError(
            f"Configuration {configuration!r} of {file} is not 3-D (patch size {resolved.get('patch_size')}); "
            f"{network} is. Choose a 3-D configuration such as 3d_fullres."
        )


def _check_agreement(
    target: Path, plans_file: Path, configuration: str, present: dict[str, Any], wanted: dict[str, Any]
) -> None:
    for key in PREPROCESSING:
        if present.get(key) != wanted.get(key):
            raise ValueError(
                f"{target} disagrees with {plans_file} about {key} of {configuration}: {present.get(key)} and "
                f"{wanted.get(key)}. The dataset was planned again since; rename or delete {target.name}."
            )
