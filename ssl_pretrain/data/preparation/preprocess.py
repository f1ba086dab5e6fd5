"""One image -> preprocessed files, with nnU-Net's own reader, preprocessor and file format."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.cases import OURS, MaskKind
from ssl_pretrain.data.mask_doubts import doubt_about
from ssl_pretrain.data.preparation.checks import read_checked, read_mask
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError
from ssl_pretrain.data.preparation.stored import PreprocessedCase, discard, store
from ssl_pretrain.data.preprocessing import digest, preprocessing_of
from ssl_pretrain.functional.geometry import as_triple

ANATOMY_VOXELS = 10_000
"""Voxels of the anatomy mask that are kept with a case, for crops to be centred on."""


NO_RESAMPLING = "no_resampling_hack"
"""nnU-Net's name of the function that leaves an image as it is, in plans with ``-spacing none``."""

SMALLEST_SHARE = 8
"""An image has at least an eighth of the patch along every axis; with less, most of each crop is padding. nnU-Net pads
any image. Of a patch of 128 voxels this is 16, one cell of the masks; of a patch of 7 slices it is a single one."""


@dataclass(frozen=True)
class Made:
    """What there is to say of a case that was preprocessed.

    Attributes:
        shape: voxels per axis after preprocessing.
        seconds: it took.
        warnings: what is odd about it, though it can be used.
        doubts: of each kind of mask that it has, what speaks for its being the other way round; None if nothing does.
    """

    shape: tuple[int, int, int]
    seconds: float
    warnings: tuple[str, ...]
    doubts: Mapping[MaskKind, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Preprocesses cases exactly as nnU-Net would for a dataset, plans and configuration, and stores them.

    Attributes:
        plans: the plans file.
        configuration: name of the configuration.
        dataset: ``dataset.json``.
        channels: channels of every case.
        folder: where the cases go.
        staging: a folder on the same disk for what is not complete; it is nobody else's.
    """

    plans: dict[str, Any]
    configuration: str
    dataset: dict[str, Any]
    channels: int
    folder: Path
    staging: Path

    def __call__(self, case: ImageCase) -> Made:
        """Read, preprocess and store a case. One that was there before is gone first, whatever happens then.

        Raises:
            ImageError: the image cannot be used.
            OSError: the case cannot be written.
        """
        start = time.monotonic()
        discard(self.folder, case.identifier)
        result, warnings = self.preprocess(case)
        patch = as_triple(list(self._configuration.patch_size), "patch_size in the plans")
        store(result, self.folder, case.identifier, patch, self.staging)
        d, h, w = result.image.shape[1:]
        doubts = {kind: about["doubt"] for kind, about in result.properties[OURS].get("masks", {}).items()}
        return Made((d, h, w), time.monotonic() - start, tuple(warnings), doubts)

    def preprocess(self, case: ImageCase) -> tuple[PreprocessedCase, list[str]]:
        """The arrays of a case, and warnings in words.

        Raises:
            ImageError: the image cannot be used.
        """
        data, properties, warnings = read_checked(case, self._reader, self.channels)
        read: dict[MaskKind, npt.NDArray[np.bool_]] = {}
        about_masks: dict[MaskKind, dict[str, Any]] = {}
        for kind, file in masks_of(case).items():
            inverted = kind in case.inverted
            read[kind], said = read_mask(file, case, data.shape[1:], self._reader)
            if inverted:
                read[kind] = ~read[kind]
            about_masks[kind] = {"inverted": inverted, "doubt": doubt_about(kind, read[kind][0], data)}
            warnings += said
        order = self._plans.transpose_forward
        whole, spacing = ([values[axis] for axis in order] for values in (data.shape[1:], properties["spacing"]))
        # Before the work, and because nnU-Net cannot make an image of no slices; cropping may leave still less.
        self._check_size(case, whole, spacing, self._resampled(whole, spacing))
        image, segmentation, properties = self._preprocessor.run_case_npy(
            data, None, properties, self._plans, self._configuration, self.dataset
        )
        self._check_size(case, properties["shape_after_cropping_and_before_resampling"], spacing, image.shape[1:])
        if not np.isfinite(image).all():
            raise ImageError(
                f"{', '.join(map(str, case.images))}: preprocessing made NaN or Inf of it. Its intensities or its "
                "spacing are out of the ordinary; leave it out."
            )
        masks = {kind: self._like_image(mask, properties, image.shape[1:]) for kind, mask in read.items()}
        if "anatomy" in masks and not masks["anatomy"].any():
            warnings.append(f"{case.anatomy_mask} marks nothing, so crops of this case are not centred on anatomy")
        if "anonymization" in masks and masks["anonymization"].all():
            warnings.append(f"{case.anonymization_mask} marks the whole image, so that nothing may be left to learn")
        return PreprocessedCase(
            image=np.asarray(image, dtype=np.float32),
            segmentation=np.asarray(segmentation, dtype=np.int16),
            properties={**properties, OURS: self._ours(case, masks, about_masks)},
            masks=masks,
        ), warnings

    def _resampled(self, shape: Sequence[int], spacing: Sequence[float]) -> Sequence[int]:
        """Voxels per axis of an image after resampling, by nnU-Net's rule; axes as they are preprocessed."""
        from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

        if self._configuration.configuration["resampling_fn_data"] == NO_RESAMPLING:
            return shape
        new: Sequence[int] = compute_new_shape(shape, spacing, self._configuration.spacing).tolist()
        return new

    def _check_size(
        self, case: ImageCase, before: Sequence[int], spacing: Sequence[float], after: Sequence[int]
    ) -> None:
        patch = self._configuration.patch_size
        least = [-(-size // SMALLEST_SHARE) for size in patch]
        if any(size < needed for size, needed in zip(after, least, strict=True)):
            raise ImageError(
                f"{', '.join(map(str, case.images))}: {_times(before)} voxels of {_times(spacing)} mm become "
                f"{_times(after)} by the plans, but at least {_times(least)} are needed, an eighth of their patch of "
                f"{_times(patch)}: most of a crop would be padding. If the spacing in its header is wrong, correct it; "
                "else leave the image out, or take plans with a smaller patch or a finer spacing."
            )

    def _like_image(
        self, mask: npt.NDArray[np.bool_], properties: dict[str, Any], shape: tuple[int, ...]
    ) -> npt.NDArray[np.uint8]:
        """A mask taken through what the preprocessor did to the image; 0 or 1, and nothing else."""
        order = self._plans.transpose_forward
        mask = mask.transpose(0, *(axis + 1 for axis in order))
        box = tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])
        spacing = [properties["spacing"][axis] for axis in order]
        resample = self._configuration.resampling_fn_seg
        cropped = mask[(slice(None), *box)].astype(np.int8)
        resampled = np.asarray(resample(cropped, shape, spacing, self._configuration.spacing))
        return (resampled > 0).astype(np.uint8)

    def _ours(
        self, case: ImageCase, masks: dict[MaskKind, npt.NDArray[np.uint8]], about_masks: dict[MaskKind, dict[str, Any]]
    ) -> dict[str, Any]:
        entries: dict[str, Any] = {
            "info": case.info.to_dict(),
            "made_with": digest(preprocessing_of(self.plans, self.configuration)),
            "sources": [str(file.absolute()) for file in case.images],
        }
        if about_masks:
            entries["masks"] = about_masks
        if "anatomy" in masks:
            seed = zlib.crc32(case.identifier.encode())
            entries["anatomy_voxels"] = sample_voxels(masks["anatomy"][0], ANATOMY_VOXELS, seed)
        return entries

    # Looked up in nnU-Net once per process; what is cached is not pickled, because that happens before the first case.
    @cached_property
    def _plans(self) -> Any:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)

    @cached_property
    def _configuration(self) -> Any:
        return self._plans.get_configuration(self.configuration)

    @cached_property
    def _reader(self) -> Any:
        return self._plans.image_reader_writer_class()

    @cached_property
    def _preprocessor(self) -> Any:
        return self._configuration.preprocessor_class(verbose=False)


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def masks_of(case: ImageCase) -> dict[MaskKind, Path]:
    """The masks that a case comes with."""
    masks: dict[MaskKind, Path | None] = {"anonymization": case.anonymization_mask, "anatomy": case.anatomy_mask}
    return {kind: file for kind, file in masks.items() if file is not None}


def sample_voxels(mask: npt.NDArray[np.uint8], most: int, seed: int) -> npt.NDArray[np.int32]:
    """Voxels of a mask, drawn without replacement: ``(n, 3)``, all of them if there are no more than ``most``.

    Args:
        mask: ``(D, H, W)``.
        most: how many to draw.
        seed: the same draws the same.
    """
    counts = np.array([np.count_nonzero(layer) for layer in mask])
    ends = np.cumsum(counts)
    total = int(ends[-1])
    drawn = np.arange(total)
    if total > most:
        drawn = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    layers = np.searchsorted(ends, drawn, side="right")
    # Layer by layer: the places of all voxels of a large mask at once would take more memory than the image.
    found = [np.empty((0, 3), dtype=np.int32)]
    for layer in np.unique(layers):
        chosen = np.argwhere(mask[layer])[drawn[layers == layer] - (ends[layer] - counts[layer])]
        found.append(np.insert(chosen, 0, layer, axis=1).astype(np.int32))
    return np.concatenate(found)
