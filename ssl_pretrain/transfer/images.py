"""How the images of a network were prepared, and what of that weights and the images to fine-tune on do not share.

Weights load into any network of their shape, whatever its voxels are. Pretrained at 1 mm, they know nothing of what
0.5 mm shows; and what was a slice of the body lies across where the axes are in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssl_pretrain.functional.geometry import Triple

MOST_SPACING = 1.5
"""The largest factor between the spacings along an axis about which nothing is said."""


@dataclass(frozen=True)
class Images:
    """What a network's images are, as plans say it.

    Attributes:
        spacing: mm per voxel along the network's axes; None where nothing is said of it or images keep their own.
        normalization: nnU-Net's schemes, one per channel of the image; empty where nothing is said of it.
        transpose: axis of the image file, (z, y, x), that each of the network's axes is; None where nothing is said.
        image_channels: how many input channels are the image's, where those after them are the segmentation of an
            earlier stage; None where there is no earlier stage.
    """

    spacing: tuple[float, float, float] | None = None
    normalization: tuple[str, ...] = ()
    transpose: Triple | None = None
    image_channels: int | None = None


def images_of_plans(plans: Mapping[str, Any], configuration: Any) -> Images:
    """What plans say of a configuration's images; nothing of what they do not have as it should be."""
    resolved: dict[str, Any] = {}
    configurations = plans.get("configurations")
    entries, name = configurations if isinstance(configurations, Mapping) else {}, configuration
    for _ in range(len(entries)):
        entry = entries.get(name) if isinstance(name, str) else None
        if not isinstance(entry, Mapping):
            break
        resolved = {**entry, **resolved}
        name = entry.get("inherits_from")
    return _images(plans, resolved)


def images_of_file(metadata: Mapping[str, Any]) -> Images:
    """What a file of weights says of the images that it was pretrained with, before it was adapted if it was.

    The input channels are those that its tensors have now.

    Args:
        metadata: what it says besides its tensors: ``pretraining`` as ours do, or ``nnssl_adaptation_plan``.
    """
    origin, about = metadata, _mapping(metadata.get("pretraining"))
    inputs = images_of_plans(_mapping(about.get("plans")), about.get("configuration")).image_channels
    while "adaptation" in about:
        origin = about = _mapping(_mapping(about["adaptation"]).get("source"))
    if isinstance(about.get("plans"), Mapping):
        return replace(images_of_plans(about["plans"], about.get("configuration")), image_channels=inputs)
    prepared = _mapping(_mapping(origin.get("nnssl_adaptation_plan")).get("pretrain_plan"))
    configurations = _mapping(prepared.get("configurations"))
    return replace(_images(prepared, _mapping(next(iter(configurations.values()), None))), image_channels=inputs)


def differences(
    theirs: Images, ours: Images, file: object = "the file", channels: Sequence[int] | None = None
) -> tuple[str, ...]:
    """What of the images differs so much that pretrained weights lose by it, a line each, with what to do about it.

    Args:
        theirs: of the pretraining.
        ours: of the network that the weights are loaded into.
        file: of the weights, for the lines.
        channels: for each channel of ours the channel of theirs, where that is known.
    """
    lines = []
    spacing = _in_our_order(theirs, ours)
    if spacing is not None and ours.spacing is not None:
        factors = [max(a / b, b / a) for a, b in zip(spacing, ours.spacing, strict=True)]
        if max(factors) > MOST_SPACING:
            transpose = ours.transpose or (0, 1, 2)
            # nnU-Net's planner takes it in the order of the image file.
            wanted = [spacing[transpose.index(axis)] for axis in range(3)]
            lines.append(
                f"{file} was pretrained at a spacing of {_mm(spacing)}, and this network works at {_mm(ours.spacing)}: "
                f"up to {max(factors):.2g} times another size of voxel. Plan with the spacing of the pretraining "
                f"(nnUNetv2_plan_experiment -d DATASET -overwrite_target_spacing {' '.join(f'{n:g}' for n in wanted)} "
                "-overwrite_plans_name NAME, for 3d_fullres), or pretrain with the plans of this network."
            )
    if line := _normalisation(theirs.normalization, ours.normalization, file, channels):
        lines.append(line)
    if None not in (theirs.transpose, ours.transpose) and theirs.transpose != ours.transpose:
        lines.append(
            f"{file} was pretrained with the image's axes in the order {_listed(theirs.transpose)} "
            f"(transpose_forward), and this network has them in the order {_listed(ours.transpose)}: what lay along "
            "one axis lies along another. Plan with the plans of the pretraining "
            "(nnUNetv2_move_plans_between_datasets), or pretrain with the plans of this network."
        )
    return tuple(lines)


def _images(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Images:
    spacing, transpose = configuration.get("spacing"), plans.get("transpose_forward")
    schemes = configuration.get("normalization_schemes")
    numbers = [float(n) for n in _items(spacing) if isinstance(n, (int, float)) and 0 < n < float("inf")]
    names, axes = _items(schemes), _items(transpose)
    order = [axis for axis in (0, 1, 2) if axis in axes]
    return Images(
        (numbers[0], numbers[1], numbers[2]) if len(numbers) == len(_items(spacing)) == 3 else None,
        tuple(names) if all(isinstance(name, str) for name in names) else (),
        (axes[0], axes[1], axes[2]) if len(order) == len(axes) == 3 else None,
        (len(names) or None) if configuration.get("previous_stage") else None,
    )


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _in_our_order(theirs: Images, ours: Images) -> tuple[float, ...] | None:
    """Spacing of the pretraining along our axes: of the same axis of the image file, where both say which that is."""
    if theirs.spacing is None or theirs.transpose is None or ours.transpose is None:
        return theirs.spacing
    return tuple(theirs.spacing[theirs.transpose.index(axis)] for axis in ours.transpose)


def _normalisation(
    theirs: Sequence[str], ours: Sequence[str], file: object, channels: Sequence[int] | None
) -> str | None:
    """A line if channels are normalised in ways in which those of the pretraining that they take were not."""
    if not theirs or not ours:
        return None
    if channels is not None and all(0 <= number < len(theirs) for number in channels):
        before = [theirs[number] for number in channels]
    else:
        before = list(theirs)
    agree = before == list(ours) if len(before) == len(ours) else set(before) >= set(ours)
    if agree:
        return None
    return (
        f"{file} was pretrained on intensities after {_listed(before)}, and this network gets them after "
        f"{_listed(ours)}: other numbers for the same tissue. Plan both with the same normalisation (channel_names in "
        "dataset.json decide it), or pretrain with the plans of this network."
    )


def _mm(spacing: Sequence[float]) -> str:
    return f"{' x '.join(f'{n:.4g}' for n in spacing)} mm"


def _listed(values: Sequence[object] | None) -> str:
    return " ".join(map(str, values or ()))
