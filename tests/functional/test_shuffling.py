"""Shuffling against a reference that goes through the boxes one by one, as the published one does."""

import numpy as np
import pytest
import torch

from ssl_pretrain.functional.shuffling import Shuffling, apply_shuffling, draw_shuffling

SHAPE = (30, 44, 61)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbered(shape, samples=1):
    """Every voxel holds its own number: where it came from can be read off."""
    voxels = shape[0] * shape[1] * shape[2]
    return torch.arange(voxels, dtype=torch.float32).view(1, 1, *shape).repeat(samples, 1, 1, 1, 1)


def sources(shuffled):
    """Coordinates that each voxel's value came from: (3, D, H, W)."""
    return np.stack(np.unravel_index(shuffled.numpy().astype(np.int64), shuffled.shape))


def boxes_of(shuffling, sample=0):
    """(corner, sides) of each box in the order in which they are laid."""
    for corners in shuffling.corners[sample].tolist():
        yield from zip(corners, shuffling.sides[sample].tolist(), strict=True)


def slices(corner, sides):
    return tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))


def statistics(shuffled):
    """Share of voxels displaced, mean displacement per axis, quantiles of the length of displacements."""
    away = sources(shuffled) - np.indices(shuffled.shape)
    moved = away.any(axis=0)
    length = np.sqrt((away[:, moved] ** 2).sum(0))
    return np.array([moved.mean(), *np.abs(away[:, moved]).mean(1), *np.quantile(length, [0.1, 0.5, 0.9])])


def one_by_one(image, boxes, rng):
    result = image.copy()
    for _ in range(boxes):
        sides = [rng.integers(1, n // 10, endpoint=True) for n in image.shape]
        corner = [rng.integers(0, n - s, endpoint=True) for n, s in zip(image.shape, sides, strict=True)]
        box = slices(corner, sides)
        result[box] = rng.permutation(image[box].ravel()).reshape(sides)
    return result


def test_statistics_are_those_of_ten_thousand_boxes_one_by_one():
    rng = np.random.default_rng(0)
    image = numbered(SHAPE)
    naive = [statistics(torch.from_numpy(one_by_one(image[0, 0].numpy(), 10_000, rng))) for _ in range(4)]
    shuffling = draw_shuffling(8, SHAPE, generator(), p=1.0)
    ours = [statistics(s[0]) for s in apply_shuffling(image.expand(8, -1, -1, -1, -1), shuffling)]
    np.testing.assert_allclose(np.mean(ours, 0), np.mean(naive, 0), rtol=0.04)


def test_statistics_are_those_that_the_published_code_gave():
    # MrGiovanni/ModelsGenesis at 32b7b5e, pytorch/utils.py, seeds 0, means of 5 volumes: share of voxels displaced,
    # mean displacement per axis, 10 %, 50 % and 90 % quantiles of its length in voxels.
    published = [0.7847, 0.888, 1.3788, 2.093, 1.4142, 3.0, 5.3474]
    shape = (40, 64, 96)
    shuffling = draw_shuffling(4, shape, generator(), p=1.0)
    ours = [statistics(s[0]) for s in apply_shuffling(numbered(shape, 4), shuffling)]
    np.testing.assert_allclose(np.mean(ours, 0), published, rtol=0.04)


@pytest.mark.parametrize(("side", "patterns", "rounds"), [(0.1, 40, 10), (0.35, 30, 4), (1.0, 3, 3)])
def test_each_voxel_comes_from_the_last_box_over_it_and_stays_where_there_is_none(side, patterns, rounds):
    shuffling = draw_shuffling(2, SHAPE, generator(), p=1.0, side=side, patterns=patterns, rounds=rounds)
    shuffled = apply_shuffling(numbered(SHAPE, 2), shuffling)
    for sample in range(2):
        low, high = (np.broadcast_to(np.indices(SHAPE), (3, *SHAPE)).copy() for _ in range(2))
        for corner, sides in boxes_of(shuffling, sample):
            box = (slice(None), *slices(corner, sides))
            low[box] = np.reshape(corner, (3, 1, 1, 1))
            high[box] = np.reshape(np.add(corner, sides) - 1, (3, 1, 1, 1))
        source = sources(shuffled[sample, 0])
        assert (low <= source).all() and (source <= high).all()


def test_voxels_of_a_box_that_no_other_touches_are_permuted():
    shuffling = draw_shuffling(1, SHAPE, generator(3), p=1.0, side=0.2, patterns=12, rounds=2)
    image = normal(1, 2, *SHAPE)
    shuffled = apply_shuffling(image, shuffling)
    layers = np.zeros(SHAPE, dtype=int)
    for corner, sides in boxes_of(shuffling):
        layers[slices(corner, sides)] += 1
    alone = [slices(*box) for box in boxes_of(shuffling) if layers[slices(*box)].max() == 1]
    assert len(alone) >= 5
    for box in alone:
        before, after = (volume[(0, 0, *box)].flatten() for volume in (image, shuffled))
        assert torch.equal(before.sort().values, after.sort().values)
        assert len(before) < 8 or not torch.equal(before, after)


def test_every_permutation_is_equally_likely():
    patterns = 1200
    sides = torch.tensor([1, 1, 3]).expand(1, patterns, 3)
    corners = torch.zeros(1, 1, patterns, 3, dtype=torch.int64)
    corners[0, 0, :, 0] = torch.arange(patterns)
    shuffling = Shuffling((True,), sides, corners, (5,))
    shuffled = apply_shuffling(torch.arange(3.0).expand(1, 1, patterns, 1, 3), shuffling)
    orders, counts = shuffled.view(patterns, 3).unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts / patterns - 1 / 6).abs().max() < 0.04


def test_sides_are_uniform_within_their_limits_and_places_up_to_the_border():
    shuffling = draw_shuffling(40, (20, 40, 60), generator(), p=1.0)
    assert shuffling.corners.shape == (40, 40, 250, 3)
    for axis, longest in enumerate((2, 4, 6)):
        share = torch.bincount(shuffling.sides[..., axis].flatten(), minlength=longest + 1) / 10_000
        assert len(share) == longest + 1
        assert (share[1:] - 1 / longest).abs().max() < 0.01
        ends = shuffling.corners[..., axis] + shuffling.sides[:, None, :, axis]
        assert shuffling.corners[..., axis].min() == 0
        assert ends.max() == (20, 40, 60)[axis]
    a, b = shuffling.sides[..., 0].double(), shuffling.sides[..., 2].double()
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 0.05


def test_each_sample_has_about_as_many_patterns_of_every_side():
    sides = draw_shuffling(30, (20, 40, 60), generator(), patterns=120).sides
    for axis, longest in enumerate((2, 4, 6)):
        numbers = torch.nn.functional.one_hot(sides[..., axis], longest + 1).sum(1)[:, 1:]
        assert (numbers - 120 / longest).abs().max() < 2


def test_sides_are_uniform_even_where_there_are_few_patterns():
    sides = draw_shuffling(4000, (20, 40, 60), generator(), patterns=3, rounds=1).sides
    for axis, longest in enumerate((2, 4, 6)):
        assert (torch.bincount(sides[..., axis].flatten())[1:] / 12_000 - 1 / longest).abs().max() < 0.02


def test_a_patch_too_small_for_boxes_stays_as_it_is():
    image = numbered((12, 9, 16))
    assert torch.equal(apply_shuffling(image, draw_shuffling(1, (12, 9, 16), generator(), p=1.0)), image)


def test_only_chosen_samples_change_and_all_channels_alike():
    image = torch.cat([numbered(SHAPE, 4), numbered(SHAPE, 4) + 0.5], dim=1)
    kept = image.clone()
    shuffling = draw_shuffling(4, SHAPE, generator(), p=1.0)._replace(chosen=(True, False, True, False))
    shuffled = apply_shuffling(image, shuffling)
    assert torch.equal(image, kept)
    assert torch.equal(shuffled[1::2], image[1::2])
    assert not torch.equal(shuffled[0], shuffled[2])
    assert torch.equal(shuffled[:, 1], shuffled[:, 0] + 0.5)
    assert torch.equal(apply_shuffling(image, shuffling), shuffled)


def test_memory_order_of_the_image_does_not_matter():
    image = normal(2, 3, *SHAPE)
    shuffling = draw_shuffling(2, SHAPE, generator(), p=1.0)
    last = image.to(memory_format=torch.channels_last_3d)
    assert torch.equal(apply_shuffling(last, shuffling), apply_shuffling(image, shuffling))


def test_samples_are_shuffled_with_their_probability():
    assert abs(sum(draw_shuffling(2000, (4, 4, 4), generator(), patterns=1, rounds=1).chosen) / 2000 - 0.5) < 0.05


def test_only_what_is_seen_is_shuffled_and_as_it_would_be_in_the_whole():
    image = normal(2, 2, *SHAPE)
    shuffling = draw_shuffling(2, SHAPE, generator(), p=1.0)
    windows = [[(slice(3, 9), slice(0, 44), slice(20, 61)), (slice(12, 30), slice(5, 6), slice(0, 7))], []]
    seen = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    for sample, boxes in zip(seen, windows, strict=True):
        for box in boxes:
            sample[0][box] = True
    expected = torch.where(seen, apply_shuffling(image, shuffling), image)
    assert torch.equal(apply_shuffling(image, shuffling, windows), expected)


def test_patterns_that_would_fill_the_memory_are_refused():
    with pytest.raises(ValueError, match=r"250 patterns of up to \(160, 160, 160\) voxels .* smaller shuffle_side"):
        draw_shuffling(1, (160, 160, 160), generator(), side=1.0)
