import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from ssl_pretrain.data.spatial import (
    CropConfig,
    Transform,
    affine_of,
    box_to_read,
    draw_transform,
    mirrored,
    resample,
    rotation_matrix,
    within,
)

PATCH = (8, 10, 12)


def smooth(shape: tuple[int, int, int]) -> torch.Tensor:
    grid = torch.meshgrid(*[torch.linspace(0, 3, n) for n in shape], indexing="ij")
    return (torch.sin(grid[0]) + torch.cos(2 * grid[1]) * grid[2])[None]


def crop(volume: torch.Tensor, transform: Transform, start: tuple[int, int, int], patch=PATCH) -> torch.Tensor:
    """What the pipeline does, on a volume in memory."""
    box = box_to_read(transform, start, patch)
    inside = [slice(max(lo, 0), max(min(hi, n), 0)) for lo, hi, n in zip(*box, volume.shape[1:], strict=True)]
    voxels = torch.zeros(1, *(hi - lo for lo, hi in zip(*box, strict=True)))
    target = tuple(slice(p.start - lo, p.stop - lo) for p, lo in zip(inside, box[0], strict=True))
    voxels[(slice(None), *target)] = volume[(slice(None), *inside)]
    if transform.matrix is None:
        return mirrored(voxels, transform)
    return resample(voxels[None], torch.from_numpy(within(affine_of(transform, start, patch), box[0]))[None], patch)[0]


@given(
    angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    scale=st.floats(0.7, 1.4),
    start=st.tuples(*[st.integers(-4, 20)] * 3),
)
@settings(deadline=None, max_examples=40)
def test_the_box_that_is_read_holds_all_the_transform_needs(angles, scale, start):
    """Reading only the box gives what resampling the whole volume gives."""
    volume = smooth((24, 26, 28))
    matrix = rotation_matrix(np.array(angles)) * scale
    ours = crop(volume, Transform(matrix, (False, False, False)), start)
    offsets = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in PATCH], indexing="ij"))
    centre = np.array(start) + (np.array(PATCH) - 1) / 2
    coordinates = np.tensordot(matrix, offsets, 1) + centre[:, None, None, None]
    whole = map_coordinates(volume[0].numpy(), coordinates, order=1, mode="grid-constant", cval=0.0)
    np.testing.assert_allclose(ours[0].numpy(), whole, atol=2e-4)


def test_without_rotation_and_scaling_only_the_patch_is_read():
    transform = Transform(None, (True, False, True))
    assert box_to_read(transform, (3, 4, 5), PATCH) == ((3, 4, 5), (11, 14, 17))
    volume = smooth((24, 26, 28))
    expected = volume[:, 3:11, 4:14, 5:17].flip(1, 3)
    assert torch.equal(crop(volume, transform, (3, 4, 5)), expected)


def test_a_quarter_turn_in_the_plane_is_exact():
    volume = smooth((12, 12, 12))
    quarter = Transform(rotation_matrix([np.pi / 2, 0, 0]), (False, False, False))
    ours = crop(volume, quarter, (0, 0, 0), (12, 12, 12))
    candidates = [torch.rot90(volume, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(ours, c, atol=1e-4) for c in candidates)


@pytest.mark.parametrize("mirror", [(True, False, False), (False, True, True), (True, True, True)])
def test_mirroring_is_part_of_the_affine_map_and_the_same_as_turning_the_axes_round(mirror):
    volume = smooth((24, 26, 28))
    matrix = rotation_matrix([0.2, -0.3, 0.4]) * 1.2
    plain, flipped = (crop(volume, Transform(matrix, m), (5, 6, 7)) for m in ((False,) * 3, mirror))
    axes = [axis + 1 for axis, is_flipped in enumerate(mirror) if is_flipped]
    torch.testing.assert_close(flipped, plain.flip(axes), atol=1e-4, rtol=0)


def test_a_batch_of_boxes_of_several_sizes_gives_what_each_gives_alone():
    patch, rng = (8, 10, 12), np.random.default_rng(0)
    config = CropConfig(rotation_p=1.0, scale_p=1.0)
    alone, boxes, maps = [], [], []
    for _ in range(4):
        transform = draw_transform(config, patch, rng)
        box = box_to_read(transform, (3, 4, 5), patch)
        voxels = torch.randn(2, *(hi - lo for lo, hi in zip(*box, strict=True)))
        affine = torch.from_numpy(within(affine_of(transform, (3, 4, 5), patch), box[0]))
        alone.append(resample(voxels[None], affine[None], patch)[0])
        boxes.append(voxels)
        maps.append(affine)
    assert len({b.shape for b in boxes}) > 1
    sizes = [max(b.shape[a] for b in boxes) for a in range(4)]
    filled = torch.zeros(4, *sizes)
    for target, voxels in zip(filled, boxes, strict=True):
        target[tuple(slice(n) for n in voxels.shape)] = voxels
    together = resample(filled, torch.stack(maps), patch)
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-3, rtol=0)


def test_a_rotation_keeps_lengths():
    matrix = rotation_matrix([0.3, -0.2, 0.5])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)


def test_scaling_above_one_shows_more_of_the_volume():
    box = box_to_read(Transform(np.eye(3) * 1.4, (False,) * 3), (20, 20, 20), (10, 10, 10))
    assert all(hi - lo > 13 for lo, hi in zip(*box, strict=True))


def test_events_are_as_frequent_as_published():
    drawn = [draw_transform(CropConfig(), (32, 32, 32), np.random.default_rng(i)) for i in range(4000)]
    assert np.mean([t.matrix is None for t in drawn]) == pytest.approx(0.64, abs=0.03)
    assert np.mean([t.mirror for t in drawn], axis=0) == pytest.approx([0.5] * 3, abs=0.03)
    factors = [np.cbrt(np.linalg.det(t.matrix)) for t in drawn if t.matrix is not None]
    scaled = [f for f in factors if abs(f - 1) > 1e-9]
    assert len(scaled) / 4000 == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= min(scaled) < 0.75
    assert 1.35 < max(scaled) <= 1.4


def test_very_anisotropic_patches_are_turned_and_scaled_in_the_plane_only():
    config = CropConfig(rotation_p=1.0, scale_p=1.0)
    for i in range(20):
        matrix = draw_transform(config, (8, 64, 64), np.random.default_rng(i)).matrix
        np.testing.assert_allclose(matrix[0], [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 0], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rotation_p": 1.1}, "rotation_p must lie between 0 and 1"),
        ({"scale_min": 0.0}, "scale_min"),
        ({"scale_min": 2.0}, "scale_min"),
        ({"rotation": 200.0}, "between 0 and 180"),
        ({"oversample_foreground": -0.1}, "oversample_foreground"),
        ({"sample_in": "brain"}, "sample_in must be image or anatomy, got 'brain'"),
    ],
)
def test_impossible_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        CropConfig(**settings_)
