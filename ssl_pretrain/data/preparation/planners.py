"""nnU-Net's planners, told what they cannot find out where there are no labels: reader, resampling, patch size.

Imports nnU-Net at the top: import it inside a function.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from ssl_pretrain.functional.geometry import Triple

logger = logging.getLogger(__name__)

NO_LIMIT = 999999
"""Poolings per axis, as nnU-Net passes it."""


class UnlabeledPlanner(ExperimentPlanner):  # type: ignore[misc]
    """Mixed into a planner of nnU-Net by :func:`make_planner`; plans and leaves saving them to the caller."""

    reader: Any
    resampled: bool
    patch: Triple | None
    own_identifier: bool
    notes: list[str]

    def determine_reader_writer(self) -> Any:
        """The reader that was found to open the images; nnU-Net would look for one in ``imagesTr``."""
        return self.reader

    def determine_resampling(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's functions, or those with which every image keeps its own spacing."""
        return super().determine_resampling(*args, **kwargs) if self.resampled else (no_resampling_hack, {}) * 2

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`determine_resampling`."""
        if self.resampled:
            return super().determine_segmentation_softmax_export_fn(*args, **kwargs)
        return no_resampling_hack, {}

    def generate_data_identifier(self, configuration_name: str) -> str:
        """nnU-Net's folder for plans that are nnU-Net's own, which several networks share; else one of their own."""
        if self.own_identifier:
            return f"{self.plans_identifier}_{configuration_name}"
        return str(super().generate_data_identifier(configuration_name))

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: Any
    ) -> dict[str, Any]:
        """nnU-Net's plan; ``3d_fullres`` with the patch size asked for."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if self.patch is not None and data_identifier == self.generate_data_identifier("3d_fullres"):
            self._set_topology(plan, self.patch)
            self._set_batch_size(plan, approximate_n_voxels_dataset)
            self._note_padding(self.patch, plan["median_image_size_in_voxels"])
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Make the plans fit for JSON; they are saved by the caller, who writes a file whole or not at all."""
        if not self.resampled:
            # Without resampling the "low resolution" is the full one.
            plans["configurations"] = {n: c for n, c in plans["configurations"].items() if n in ("2d", "3d_fullres")}
            plans["configurations"]["3d_fullres"]["batch_dice"] = False
        recursive_fix_for_json_export(plans)

    def _set_topology(self, plan: dict[str, Any], patch: Triple) -> None:
        """Poolings, kernels and stages for a patch size, by nnU-Net's rule."""
        spacing = [float(s) for s in plan["spacing"]]
        smallest = self.UNet_featuremap_min_edge_length
        fitting = patches_that_work(spacing, patch, smallest)
        if patch not in fitting:
            raise ValueError(
                f"-patch_size {_words(patch)} is not divisible by the strides that nnU-Net plans for it at a spacing "
                f"of {' '.join(f'{s:.4g}' for s in spacing)} mm. These work: "
                f"{' and '.join(_words(p) for p in fitting)}."
            )
        _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, patch, smallest, NO_LIMIT)
        stages = len(strides)
        kwargs = plan["architecture"]["arch_kwargs"]
        encoder = "n_blocks_per_stage" if "n_blocks_per_stage" in kwargs else "n_conv_per_stage"
        widths = [self.UNet_base_num_features * 2**stage for stage in range(stages)]
        kwargs["n_stages"] = stages
        kwargs["features_per_stage"] = tuple(min(width, self.UNet_max_features_3d) for width in widths)
        kwargs["kernel_sizes"] = kernels
        kwargs["strides"] = strides
        kwargs[encoder] = self.UNet_blocks_per_stage_encoder[:stages]
        kwargs["n_conv_per_stage_decoder"] = self.UNet_blocks_per_stage_decoder[: stages - 1]
        plan["patch_size"] = patch

    def _set_batch_size(self, plan: dict[str, Any], voxels_in_dataset: float) -> None:
        """As many samples as nnU-Net's estimate of memory and its share of the data set allow, at least two."""
        network = plan["architecture"]
        estimate = self.static_estimate_VRAM_usage(
            plan["patch_size"],
            len(self.dataset_json["channel_names"]),
            len(self.dataset_json["labels"]),
            network["network_class_name"],
            network["arch_kwargs"],
            network["_kw_requires_import"],
        )
        reference = self.UNet_reference_val_3d * self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        per_sample = estimate / self.UNet_reference_val_corresp_bs_3d
        share = voxels_in_dataset * self.max_dataset_covered / math.prod(plan["patch_size"])
        least = self.UNet_min_batch_size
        plan["batch_size"] = max(min(round(reference / per_sample), round(share)), least)
        if per_sample * least > reference:
            needed = self.UNet_vram_target_GB * per_sample * least / reference
            self.notes.append(
                f"A patch of {_words(plan['patch_size'])} with batch size {least} needs about {needed:.0f} GB by "
                f"nnU-Net's estimate, more than the target of {self.UNet_vram_target_GB:g} GB (-gpu_memory_target)."
            )

    def _note_padding(self, patch: Triple, median: Any) -> None:
        if any(size > extent for size, extent in zip(patch, median, strict=True)):
            self.notes.append(
                f"A patch of {_words(patch)} is larger than the median image of "
                f"{_words(round(float(extent)) for extent in median)} voxels: what is beyond an image is filled with 0."
            )


def make_planner(
    planner_name: str,
    dataset: str,
    *,
    reader: Any,
    spacing: tuple[float, float, float] | None,
    resampled: bool,
    patch: Triple | None,
    memory: float | None,
    plans: str,
    own_identifier: bool,
) -> Any:
    """A planner of nnU-Net for a dataset whose ``dataset.json`` and fingerprint are there.

    Args:
        planner_name: of nnU-Net's class, such as ``ExperimentPlanner``.
        dataset: name of the dataset, ``DatasetXXX_Name``.
        reader: nnU-Net's reader class for the images.
        spacing: mm along each axis of the image array; None for nnU-Net's rule.
        resampled: whether images are resampled to the spacing.
        patch: voxels of ``3d_fullres`` per axis of the preprocessed array; None for nnU-Net's rule.
        memory: GB of GPU memory; None for the planner's own.
        plans: name of the plans.
        own_identifier: whether the preprocessed cases go to a folder that no other plans share.
    """
    base = _planner_class(planner_name)
    # nnU-Net looks the planner up by the name that the plans say; ours has to be called as the one it is made of.
    cls = type(base.__name__, (UnlabeledPlanner, base), {})
    options = {} if memory is None else {"gpu_memory_target_in_gb": memory}
    with quiet():
        planner = cls(dataset, plans_name=plans, overwrite_target_spacing=spacing, **options)
    planner.reader, planner.resampled = reader, resampled
    planner.patch, planner.own_identifier = patch, own_identifier
    planner.notes = []
    return planner


def default_plans_name(planner_name: str, resampled: bool) -> str:
    """What nnU-Net calls the plans of a planner, such as ``nnUNetResEncUNetLPlans``."""
    name = str(inspect.signature(_planner_class(planner_name).__init__).parameters["plans_name"].default)
    return name if resampled else f"{name}_noResampling"


def _planner_class(name: str) -> Any:
    """Found as ``nnUNetv2_plan_experiment -pl`` finds it."""
    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    return recursive_find_python_class(str(folder), name, current_module="nnunetv2.experiment_planning")


def patches_that_work(spacing: list[float], patch: Triple, smallest: int) -> list[Triple]:
    """A patch size below and one above that nnU-Net leaves as they are; one alone if it leaves ``patch`` as it is."""
    larger, smaller = patch, patch
    while (fitted := _fitted(spacing, larger, smallest)[0]) != larger:
        larger = fitted
    while (step := _fitted(spacing, smaller, smallest))[0] != smaller:
        d, h, w = (max(size // by, 1) * by for size, by in zip(smaller, step[1], strict=True))
        smaller = (d, h, w)
    return [smaller] if smaller == larger else [smaller, larger]


def _fitted(spacing: list[float], patch: Triple, smallest: int) -> tuple[Triple, Triple]:
    """A patch size as nnU-Net pads it, and what it must be divisible by."""
    _, _, _, padded, divisors = get_pool_and_conv_props(spacing, patch, smallest, NO_LIMIT)
    d, h, w = (int(size) for size in padded)
    by_d, by_h, by_w = (int(by) for by in divisors)
    return (d, h, w), (by_d, by_h, by_w)


def _words(sizes: Any) -> str:
    return " ".join(str(size) for size in sizes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What nnU-Net prints and warns of goes to the debug log."""
    told = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.debug("nnU-Net says:\n%s", told.getvalue())


def find_reader(files: list[Path], file_ending: str) -> Any:
    """nnU-Net's reader class for a file ending: the first that opens one of ``files``.

    Args:
        files: images to try, in this order.
        file_ending: such as ``.nii.gz``.

    Raises:
        ValueError: nnU-Net has no reader for the ending.
    """
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_dataset_json

    content = {"file_ending": file_ending}
    for example in [*map(str, files), None]:
        with contextlib.suppress(RuntimeError), quiet():
            return determine_reader_writer_from_dataset_json(content, example)
    known = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings})
    raise ValueError(f"nnU-Net has no reader for files that end in {file_ending!r}; it reads {', '.join(known)}.")
