"""Seeded, labelled 3-D phantoms in nnU-Net's raw format: data for the demo and for tests, without a download.

A phantom is a slice of an imaginary trunk: a body with a bright rim and a column, and in it three organs that differ in
shape *and* texture more than in mean brightness, so that a network has to look at more than the grey value. Position,
size and orientation of everything vary from case to case; a bias field, blur and noise do what a scanner does.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatVolume = npt.NDArray[np.floating[Any]]
BoolVolume = npt.NDArray[np.bool_]

LABELS = {"background": 0, "ellipsoid": 1, "tube": 2, "lobes": 3}
"""The organs by shape: a smooth ellipsoid, a striped bent tube, a speckled blob of four lobes."""

CHANNEL_NAME = "phantom"
"""Not one of the names that nnU-Net treats specially (``CT``, …), so it normalises each case to zero mean, unit sd."""

SMALLEST_AXIS = 16
"""Voxels. Below this the tube is thinner than its own stripes."""

_SPACING_MM = 2.0
_SMALLEST_ORGAN = 0.005  # share of the volume; a draw in which one organ covers another is repeated
_BODY_GREY, _RIM_GREY, _COLUMN_GREY = 80.0, 170.0, 200.0
_ORGAN_GREYS = (120.0, 155.0, 130.0)
_NOISE_SD, _TEXTURE_SD = 7.0, 28.0

logger = logging.getLogger(__name__)


def make_phantom(shape: tuple[int, int, int], seed: int, index: int) -> tuple[FloatVolume, npt.NDArray[np.uint8]]:
    """One labelled phantom, a pure function of its arguments.

    Args:
        shape: ``(D, H, W)`` in voxels, each at least 16. The anatomy stretches with it.
        seed: of the dataset, not negative.
        index: of the case, not negative.

    Returns:
        The image, float32 ``(D, H, W)``, and the labels, uint8 ``(D, H, W)``, with the values of :data:`LABELS`.
        Every label occurs in every phantom.

    Raises:
        ValueError: an axis is too short, or the seed or the index is negative.
    """
    if len(shape) != 3 or min(shape) < SMALLEST_AXIS:
        raise ValueError(f"Phantom shape {shape}: three axes of at least {SMALLEST_AXIS} voxels each are needed.")
    if seed < 0 or index < 0:
        raise ValueError(f"Phantom seed {seed}, index {index}: both must be 0 or more.")
    rng = np.random.default_rng([seed, index])
    position = _coordinates(shape)
    depth = _body_depth(position, rng)
    labels = _draw_organs(position, depth > 0.16, rng)
    tissue = _paint(position, depth, labels, rng)
    return _scan(tissue, rng), labels


def write_phantom_dataset(
    folder: Path, *, cases: int = 12, shape: tuple[int, int, int] = (32, 40, 40), seed: int = 0
) -> Path:
    """Write phantoms as a complete raw dataset of nnU-Net, ready for ``nnUNetv2_plan_and_preprocess``.

    Args:
        folder: ``…/DatasetXXX_Name`` inside ``nnUNet_raw``; made when missing, must be empty when not.
        cases: how many, at least 5 because nnU-Net splits them into five folds.
        shape: ``(D, H, W)`` of every case in voxels.
        seed: of the dataset; case *i* depends on ``(seed, i)`` only, whatever ``cases`` is.

    Returns:
        ``folder``. It holds ``imagesTr/phantom_000_0000.nii.gz`` …, ``labelsTr/phantom_000.nii.gz`` … and
        ``dataset.json``, which is written last.

    Raises:
        ValueError: the folder's name, ``cases``, ``shape`` or ``seed`` is not usable.
        FileExistsError: the folder has something in it.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
        raise ValueError(f"'{folder.name}' is no name for a dataset of nnU-Net: use three digits, DatasetXXX_Name.")
    if cases < 5:
        raise ValueError(f"cases={cases}: nnU-Net splits a dataset into five folds, so write at least 5 phantoms.")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Remove it or choose another folder for the phantoms.")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        image, labels = make_phantom(shape, seed, index)
        _write_volume(image, folder / "imagesTr" / f"phantom_{index:03d}_0000.nii.gz")
        _write_volume(labels, folder / "labelsTr" / f"phantom_{index:03d}.nii.gz")
    description = {
        "channel_names": {"0": CHANNEL_NAME},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "description": f"Synthetic phantoms, seed {seed}",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    logger.info("Wrote %d phantoms of %s voxels to %s", cases, "x".join(map(str, shape)), folder)
    return folder


def _write_volume(volume: npt.NDArray[np.generic], path: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing((_SPACING_MM,) * 3)
    SimpleITK.WriteImage(image, str(path))


def _coordinates(shape: tuple[int, int, int]) -> FloatVolume:
    """Centres of the voxels, ``(3, D, H, W)``, each axis scaled to −1 … 1."""
    axes = [((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _body_depth(position: FloatVolume, rng: np.random.Generator) -> FloatVolume:
    """0 on the skin, 1 on the axis, negative in the air: an oval trunk that is a little narrower at one end."""
    half_height, half_width = rng.uniform(0.78, 0.92, size=2)
    taper = 1 + rng.uniform(-0.1, 0.1) * position[0]
    dent = 1 + 0.04 * np.cos(3 * np.arctan2(position[1], position[2]) + rng.uniform(0, 2 * np.pi))
    radius = np.hypot(position[1] / half_height, position[2] / half_width) / (taper * dent)
    depth: FloatVolume = (1 - radius).astype(np.float32)
    return depth


def _draw_organs(position: FloatVolume, inside: BoolVolume, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw until every organ has a visible size; on average that takes little more than one attempt."""
    while True:
        labels = np.zeros(inside.shape, dtype=np.uint8)
        turn = rng.uniform(-0.5, 0.5)
        for label, shape in ((1, _ellipsoid), (2, _tube), (3, _lobes)):
            angle = turn + (label - 1) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25)
            radius = rng.uniform(0.36, 0.44)
            centre = np.array([rng.uniform(-0.35, 0.35), -radius * np.cos(angle), radius * np.sin(angle)])
            local = position - centre.astype(np.float32)[:, None, None, None]
            turned = np.tensordot(_rotation(rng), local, axes=1) / rng.uniform(1.1, 1.5)
            labels[shape(turned, rng) & inside & (labels == 0)] = label
        if min(np.count_nonzero(labels == label) for label in (1, 2, 3)) >= _SMALLEST_ORGAN * labels.size:
            return labels


def _rotation(rng: np.random.Generator) -> FloatVolume:
    """A rotation drawn uniformly, ``(3, 3)``, mirrored in half of the draws."""
    basis, triangle = np.linalg.qr(rng.standard_normal((3, 3)))
    return (basis * np.sign(np.diag(triangle))).astype(np.float32)


def _ellipsoid(local: FloatVolume, rng: np.random.Generator) -> BoolVolume:
    half_axes = np.array([0.42, 0.3, 0.22]) * rng.uniform(0.85, 1.15, size=3)
    inside: BoolVolume = np.sum((local / half_axes[:, None, None, None]) ** 2, axis=0) < 1
    return inside


def _tube(local: FloatVolume, rng: np.random.Generator) -> BoolVolume:
    """Two thirds of a ring that also swings out of its plane, with rounded ends left flat."""
    ring, thickness = rng.uniform(0.26, 0.32), rng.uniform(0.13, 0.16)
    angle = np.arctan2(local[2], local[1])
    from_ring = np.hypot(local[1], local[2]) - ring
    from_plane = local[0] - rng.uniform(0.05, 0.12) * np.sin(2 * angle)
    half_opening = rng.uniform(1.9, 2.4)
    inside: BoolVolume = (np.hypot(from_ring, from_plane) < thickness) & (np.abs(angle) < half_opening)
    return inside


def _lobes(local: FloatVolume, rng: np.random.Generator) -> BoolVolume:
    """Four overlapping balls around the corners of a tetrahedron."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * rng.uniform(0.1, 0.13)
    blob = np.zeros(local.shape[1:], dtype=bool)
    for corner in corners:
        offset = local - corner[:, None, None, None]
        blob |= np.sum(offset**2, axis=0) < rng.uniform(0.15, 0.2) ** 2
    return blob


def _paint(
    position: FloatVolume, depth: FloatVolume, labels: npt.NDArray[np.uint8], rng: np.random.Generator
) -> FloatVolume:
    """Grey value of each voxel's tissue, before the scanner: ``(D, H, W)``."""
    shape = labels.shape
    grey = np.where(depth > 0, _BODY_GREY + 6 * _smooth_noise(shape, 3.0, rng), 0.0)
    grey[(depth > 0) & (depth < 0.1)] = _RIM_GREY
    column = np.hypot((position[1] - 0.52) / 0.16, position[2] / 0.16) < 1
    discs = np.sin(np.pi * (position[0] * rng.uniform(2.5, 3.5) + rng.uniform())) > -0.6
    grey[column & discs & (depth > 0) & (labels == 0)] = _COLUMN_GREY
    textures = (
        0.3 * _smooth_noise(shape, 4.0, rng),
        _stripes(shape, rng),
        np.where(_smooth_noise(shape, 0.8, rng) > 0.6, 1.5, -0.55),
    )
    for label, (mean, texture) in enumerate(zip(_ORGAN_GREYS, textures, strict=True), start=1):
        grey = np.where(labels == label, mean + _TEXTURE_SD * texture, grey)
    return grey.astype(np.float32)


def _stripes(shape: tuple[int, ...], rng: np.random.Generator) -> FloatVolume:
    """Plane waves of unit variance in a random direction, 5 to 6 voxels from crest to crest."""
    direction = _rotation(rng)[0] * 2 * np.pi / rng.uniform(5, 6)
    voxels = np.indices(shape, dtype=np.float32)
    phase = np.tensordot(direction, voxels, axes=1) + rng.uniform(0, 2 * np.pi)
    stripes: FloatVolume = np.float32(np.sqrt(2)) * np.sin(phase, dtype=np.float32)
    return stripes


def _scan(tissue: FloatVolume, rng: np.random.Generator) -> FloatVolume:
    """What a scanner makes of the tissue: blur, a smooth bias field, noise; no value below 0."""
    bias = 1 + 0.1 * _smooth_noise(tissue.shape, max(tissue.shape) / 4, rng)
    noise = _NOISE_SD * rng.standard_normal(tissue.shape)
    return np.abs(_blur(tissue, 0.5) * bias + noise).astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> FloatVolume:
    """Gaussian noise with structures of ``sigma`` voxels, mean 0 and standard deviation 1."""
    noise = _blur(rng.standard_normal(shape).astype(np.float32), sigma)
    standardised: FloatVolume = (noise - noise.mean()) / noise.std()
    return standardised


def _blur(volume: FloatVolume, sigma: float) -> FloatVolume:
    """Gaussian blur of ``sigma`` voxels by way of the Fourier transform, so opposite faces are neighbours."""
    spectrum = np.fft.rfftn(volume)
    for axis, size in enumerate(volume.shape):
        frequency = np.fft.rfftfreq(size) if axis == volume.ndim - 1 else np.fft.fftfreq(size)
        gain = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
        spectrum *= gain.reshape([-1 if other == axis else 1 for other in range(volume.ndim)])
    return np.fft.irfftn(spectrum, s=volume.shape, axes=tuple(range(volume.ndim))).astype(np.float32)
