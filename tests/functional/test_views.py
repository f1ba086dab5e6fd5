"""What crops of a sample have in common, against counting voxels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_pretrain.data.spatial import Transform, affine_of, rotation_matrix
from ssl_pretrain.functional.views import (
    Views,
    common_boxes,
    field_of,
    fit_grid,
    mosaic,
    moved_onto,
    overlaps,
    shared_points,
)

SIZE = (6, 9, 12)
FLIPS = st.tuples(*[st.booleans()] * 3)


def voxels_within(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which voxels of a crop have their centre within another one, counted one by one."""
    half = (np.array(SIZE) - 1) / 2
    offsets = np.stack(np.meshgrid(*[np.arange(p) - h for p, h in zip(SIZE, half, strict=True)], indexing="ij"), -1)
    places = offsets @ ours[:, :3].T + ours[:, 3]
    seen = (places - theirs[:, 3]) @ np.linalg.inv(theirs[:, :3]).T
    return (np.abs(seen) < np.array(SIZE) / 2).all(-1)


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    scale=st.tuples(*[st.floats(0.7, 1.4)] * 3),
    moved=st.booleans(),
    starts=st.lists(st.tuples(*[st.integers(-15, 15)] * 3), min_size=2, max_size=2),
    mirrors=st.lists(FLIPS, min_size=2, max_size=2),
)
@settings(deadline=None, max_examples=150)
def test_what_crops_have_in_common_is_the_box_that_counting_gives(angles, scale, moved, starts, mirrors):
    matrix = np.array(scale)[:, None] * rotation_matrix(angles) if moved else None
    transforms = [Transform(matrix, mirror) for mirror in mirrors]
    affine = np.stack([affine_of(t, start, SIZE) for t, start in zip(transforms, starts, strict=True)])
    shift = np.linalg.inv(affine[0, :, :3]) @ (affine[1] - affine[0])[:, 3]
    # Centres that lie on a face, where rounding decides.
    if (np.abs(np.abs(shift) % 1 - 0.5) < 1e-3).any():
        return
    boxes = common_boxes(torch.from_numpy(affine)[None], SIZE)
    shares = overlaps(torch.from_numpy(affine)[None], SIZE)
    assert boxes.shape == (1, 2, 2, 3, 2)
    for i, j in np.ndindex(2, 2):
        counted = voxels_within(affine[i].astype(float), affine[j].astype(float))
        filled = np.zeros(SIZE, dtype=bool)
        filled[tuple(slice(*ends) for ends in boxes[0, i, j].tolist())] = True
        if counted.any():
            np.testing.assert_array_equal(filled, counted)
        assert float(shares[0, i, j]) == pytest.approx(counted.mean(), abs=1e-6)


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    scale=st.tuples(*[st.floats(0.7, 1.4)] * 3),
    moved=st.booleans(),
    shift=st.tuples(*[st.integers(-4, 4)] * 3),
    mirrors=st.lists(FLIPS, min_size=2, max_size=2),
)
@settings(deadline=None, max_examples=100)
def test_shared_points_are_the_same_places_of_the_case(angles, scale, moved, shift, mirrors):
    """Crops of a case whose intensities say where each voxel is, read at the points one by one."""
    matrix = np.array(scale)[:, None] * rotation_matrix(angles) if moved else None
    transforms = [Transform(matrix, mirror) for mirror in mirrors]
    starts = ((20, 20, 20), tuple(20 + step for step in shift))
    affine = np.stack([affine_of(t, start, SIZE) for t, start in zip(transforms, starts, strict=True)]).astype(float)
    boxes = common_boxes(torch.from_numpy(affine)[None], SIZE)[0]
    first, stop = boxes[0, 1].unbind(-1)
    count = 2
    # Interpolation between voxels is exact for places; beyond the outermost ones there is nothing to interpolate.
    if (stop - first < 2 * count).any():
        return
    points = shared_points(torch.from_numpy(affine)[None], SIZE, count)
    assert points.shape == (1, 2, count, count, count, 3)
    half = (np.array(SIZE) - 1) / 2
    offsets = np.stack(np.meshgrid(*[np.arange(p) - h for p, h in zip(SIZE, half, strict=True)], indexing="ij"), -1)
    crops = torch.from_numpy(np.stack([np.moveaxis(offsets @ a[:, :3].T + a[:, 3], -1, 0) for a in affine]))
    seen = torch.nn.functional.grid_sample(crops, points[0], align_corners=False)
    for place in np.ndindex(count, count, count):
        # The middle of a part of the box, in the first crop's voxels.
        share = (np.array(place) + 0.5) / count
        offset = first.numpy() + share * (stop - first).numpy() - 0.5 - half
        expected = affine[0, :, :3] @ offset + affine[0, :, 3]
        for crop in (0, 1):
            np.testing.assert_allclose(seen[(crop, slice(None), *place)].numpy(), expected, atol=1e-6)


def test_the_boxes_of_two_views_show_the_same_voxels():
    case = torch.arange(20.0 * 22 * 24).reshape(20, 22, 24)
    starts, mirrors = [(2, 3, 4), (5, 1, 9)], [(True, False, False), (False, False, True)]
    affine = np.stack([affine_of(Transform(None, m), s, SIZE) for s, m in zip(starts, mirrors, strict=True)])
    boxes = common_boxes(torch.from_numpy(affine)[None], SIZE)[0]
    parts = []
    for view, other in ((0, 1), (1, 0)):
        crop = case[tuple(slice(s, s + p) for s, p in zip(starts[view], SIZE, strict=True))]
        axes = [axis for axis, flip in enumerate(mirrors[view]) if flip]
        part = crop.flip(axes)[tuple(slice(*ends) for ends in boxes[view, other].tolist())]
        parts.append(part.flip(axes))
    assert parts[0].shape == (3, 7, 7)
    assert torch.equal(*parts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"overlap": 1.1}, r"overlap must lie .* got 1\.1"),
        ({"count": 5, "together": True, "grid": (1, 2, 3)}, r"A grid \(1, 2, 3\) is of 6 crops .* got 5"),
        ({"count": 6, "grid": (1, 2, 3)}, "together True"),
    ],
)
def test_impossible_views_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Views(**wrong)


@pytest.mark.parametrize("mirrored", [(), (1,), (0, 2), (0, 1, 2)])
def test_a_crop_is_moved_to_where_it_overlaps_another(mirrored):
    volume = torch.randn(2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    size, starts = (6, 5, 4), ((2, 3, 1), (4, 2, 3))
    first, second = (volume[:, d : d + size[0], h : h + size[1], w : w + size[2]] for d, h, w in starts)
    affine = torch.eye(3, 4).repeat(2, 1, 1)
    for axis in range(3):
        for crop in (0, 1):
            affine[crop, axis, 3] = starts[crop][axis] + (size[axis] - 1) / 2
        if axis in mirrored:
            affine[1, axis, axis] = -1.0
    moved = moved_onto(second.flip([axis + 1 for axis in mirrored]), affine)
    common = ~moved.isnan()
    assert common[0].sum() == 4 * 4 * 2
    assert torch.equal(moved[common], first[common])


TRIPLES = st.tuples(*[st.integers(1, 9)] * 3)


@given(room=st.tuples(*[st.integers(1, 200)] * 3), wanted=TRIPLES, step=TRIPLES, least=TRIPLES, more=TRIPLES)
@settings(deadline=None)
def test_a_grid_fits_and_cannot_be_larger(room, wanted, step, least, more):
    low = tuple(by * count for by, count in zip(step, least, strict=True))
    high = tuple(side + by * count for side, by, count in zip(low, step, more, strict=True))
    for count, side, axis in zip(*fit_grid(room, wanted, low, high, step), range(3), strict=True):
        whole, shortest = room[axis], low[axis]
        assert side % step[axis] == 0
        if whole >= shortest:
            assert shortest <= side <= high[axis]
            assert count * side <= whole
            assert count == wanted[axis] or (count + 1) * shortest > whole
            assert side == high[axis] or count * (side + step[axis]) > whole
        else:
            assert count == 1


@pytest.mark.parametrize("first", [(False, False, False), (True, False, True)])
def test_a_mosaic_of_base_crops_is_their_field_as_the_first_is_mirrored(first):
    size, grid = (4, 3, 5), (2, 1, 3)
    field = field_of(grid, size)
    case = torch.randn(2, *field, generator=torch.Generator().manual_seed(0))
    starts = [*(np.array(cell) * size for cell in np.ndindex(grid)), np.array([3, 0, 7])]
    mirrors = [first, *[(False, True, False), (True, True, True), (False, False, False)] * 2]
    crops, affine = [], []
    for start, mirror in zip(starts, mirrors, strict=True):
        part = case[(slice(None), *(slice(s, s + p) for s, p in zip(start, size, strict=True)))]
        crops.append(part.flip([axis + 1 for axis, flip in enumerate(mirror) if flip]))
        affine.append(torch.from_numpy(affine_of(Transform(None, mirror), tuple(start + 11), size)))
    crops, affine = torch.stack(crops), torch.stack(affine)
    turned = case.flip([axis + 1 for axis, flip in enumerate(first) if flip])
    assert torch.equal(mosaic(crops[:6], affine[:6], field), turned)
    assert torch.equal(mosaic(crops, affine, field), turned), "what overlaps shows the same"
    one = torch.cat([torch.full_like(crops[:6], torch.nan), crops[6:]])
    alone = mosaic(one, affine, field)
    assert (~alone.isnan()).sum() == crops[6].numel()
    assert torch.equal(alone[~alone.isnan()], turned[~alone.isnan()])
