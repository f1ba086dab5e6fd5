"""What preprocessed voxels depend on: the entries of the plans that nnU-Net's preprocessor reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ENTRIES = (
    "spacing",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)
"""Entries of a configuration."""

USES_DATASET_STATISTICS = ("CTNormalization",)
"""Normalisations that take intensities of the whole dataset from the plans."""


def preprocessing_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The entries of the plans that the preprocessed images of a configuration depend on."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(dict(plans)).get_configuration(configuration).configuration
    found = {name: resolved.get(name) for name in ENTRIES}
    found["transpose_forward"] = plans.get("transpose_forward")
    statistics = plans.get("foreground_intensity_properties_per_channel", {})
    for channel, scheme in enumerate(resolved.get("normalization_schemes", ())):
        if scheme in USES_DATASET_STATISTICS:
            found[f"intensities of channel {channel}"] = statistics.get(str(channel))
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries in which two results of :func:`preprocessing_of` differ: name -> (here, there)."""
    names = sorted({*ours, *theirs})
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


def digest(entries: Mapping[str, Any]) -> str:
    """A short fingerprint of the entries, kept with every case that is preprocessed by them."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]
