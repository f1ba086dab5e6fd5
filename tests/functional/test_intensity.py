import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_pretrain.functional.intensity import (
    IntensityCurves,
    apply_intensity_,
    curve_table,
    draw_intensity,
    value_ranges,
)

PLACES = [0.1, 0.3, 0.5, 0.7, 0.9]
PUBLISHED = [
    (((0.2, 0.8), (0.7, 0.1)), False, [0.25588, 0.4221, 0.47025, 0.54462, 0.76679]),
    (((0.2, 0.8), (0.7, 0.1)), True, [0.70808, 0.50955, 0.45508, 0.39353, 0.20515]),
    (((0.9, 0.3), (0.1, 0.6)), False, [0.03598, 0.13422, 0.4625, 0.82779, 0.9525]),
    (((0.9, 0.3), (0.1, 0.6)), True, [0.9525, 0.82779, 0.4625, 0.13422, 0.03598]),
    (((0.05, 0.95), (0.4, 0.9)), False, [0.561, 0.82308, 0.91171, 0.95378, 0.98417]),
    (((0.05, 0.95), (0.4, 0.9)), True, [0.9317, 0.81433, 0.64488, 0.42324, 0.15269]),
]
"""Inner control points, whether the curve falls, and what the published map (MrGiovanni/ModelsGenesis at 32b7b5e,
pytorch/utils.py, 100 000 points) makes of the places."""

coordinate = st.floats(0, 1)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changed_copy(image, curves):
    return apply_intensity_(image.clone(), curves)


def curves_of(points, falling=False):
    """The same curve for one sample of one channel."""
    return IntensityCurves((True,), torch.tensor([[points]], dtype=torch.float64), torch.tensor([[falling]]))


def by_points(points, falling, x):
    """The map from points along the curve, by interpolation between their sorted abscissae."""
    t = np.linspace(0, 1, 200_001)[:, None]
    (x1, y1), (x2, y2) = points
    along = 3 * t * (1 - t) ** 2 * [x1, y1] + 3 * t**2 * (1 - t) * [x2, y2] + t**3
    ordinates = along[::-1, 1] if falling else along[:, 1]
    return np.interp(x, along[:, 0], ordinates)


@pytest.mark.parametrize(("points", "falling", "published"), PUBLISHED)
def test_the_curve_is_the_published_one(points, falling, published):
    image = torch.tensor([0.0, *PLACES, 1.0]).view(1, 1, 7, 1, 1) * 8 - 3
    changed = (changed_copy(image, curves_of(points, falling)).flatten() + 3) / 8
    expected = torch.tensor([float(falling), *published, float(not falling)])
    torch.testing.assert_close(changed, expected, atol=2e-4, rtol=0)


@given(points=st.tuples(*[st.tuples(coordinate, coordinate)] * 2), falling=st.booleans())
def test_curves_are_monotone_and_run_from_corner_to_corner(points, falling):
    table = curve_table(torch.tensor(points, dtype=torch.float64), torch.tensor(falling), steps=256)
    if falling:
        table = table.flip(-1)
    assert table.diff().min() >= -1e-12
    torch.testing.assert_close(table[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_z_scored_image_is_mapped_over_its_own_range_and_not_clamped(seed):
    image = normal(1, 1, 12, 13, 14, seed=seed) * 1.7 - 0.4
    curves = draw_intensity(1, 1, generator(seed), p=1.0)
    low, high = image.min(), image.max()
    unit = ((image - low) / (high - low)).double().numpy()
    expected = by_points(curves.points[0, 0].tolist(), bool(curves.falling), unit)
    changed = (changed_copy(image, curves) - low) / (high - low)
    assert np.abs(changed.numpy() - expected).max() < 2e-3
    assert np.abs(changed.numpy() - expected).mean() < 1e-5
    outside = (image < 0) | (image > 1)
    assert changed_copy(image, curves)[outside].unique().numel() > 0.99 * image[outside].unique().numel()


def test_control_points_on_the_diagonal_change_nothing_and_falling_turns_the_range_round():
    image = normal(1, 1, 8, 8, 8)
    third = ((1 / 3, 1 / 3), (2 / 3, 2 / 3))
    torch.testing.assert_close(changed_copy(image, curves_of(third)), image, atol=1e-5, rtol=0)
    turned = image.min() + image.max() - image
    torch.testing.assert_close(changed_copy(image, curves_of(third, True)), turned, atol=1e-5, rtol=0)


def test_every_channel_of_every_sample_has_its_own_curve_and_range():
    image = normal(3, 2, 6, 7, 8) * torch.tensor([1.0, 50.0]).view(1, 2, 1, 1, 1)
    curves = draw_intensity(3, 2, generator(), p=1.0)._replace(chosen=(True, False, True))
    changed = changed_copy(image, curves)
    assert torch.equal(changed[1], image[1])
    for sample, channel in ((0, 0), (0, 1), (2, 0), (2, 1)):
        alone = IntensityCurves(
            (True,),
            curves.points[sample : sample + 1, channel : channel + 1],
            curves.falling[sample : sample + 1, channel : channel + 1],
        )
        assert torch.equal(changed[sample, channel], changed_copy(image[sample, channel][None, None], alone)[0, 0])
    torch.testing.assert_close(changed.amin((2, 3, 4)), image.amin((2, 3, 4)), atol=1e-4, rtol=0)
    torch.testing.assert_close(changed.amax((2, 3, 4)), image.amax((2, 3, 4)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("falling", [False, True])
def test_a_channel_of_one_value_stays_as_it_is(falling):
    image = torch.full((1, 1, 3, 4, 5), -0.7)
    assert torch.equal(changed_copy(image, curves_of(((0.1, 0.9), (0.2, 0.3)), falling)), image)


def test_a_voxel_that_is_no_number_stays_one_and_ends_nothing():
    image = normal(1, 1, 4, 4, 4)
    image[0, 0, 1, 2, 3] = torch.nan
    assert changed_copy(image, curves_of(((0.1, 0.9), (0.2, 0.3))))[0, 0, 1, 2, 3].isnan()


def test_samples_and_directions_follow_their_probabilities():
    curves = draw_intensity(4000, 2, generator(), p=0.9, falling_p=0.5)
    assert abs(sum(curves.chosen) / 4000 - 0.9) < 0.02
    assert abs(curves.falling.double().mean() - 0.5) < 0.03
    assert 0 <= curves.points.min() < 0.01 and 0.99 < curves.points.max() < 1


def test_only_what_is_seen_changes_and_the_given_range_counts():
    image = normal(2, 2, 12, 13, 14)
    curves = draw_intensity(2, 2, generator(), p=1.0)
    windows = [[(slice(0, 4), slice(2, 13), slice(1, 9)), (slice(4, 9), slice(0, 5), slice(0, 14))], []]
    expected, seen = changed_copy(image, curves), torch.zeros(2, 1, 12, 13, 14, dtype=torch.bool)
    for sample, boxes in zip(seen, windows, strict=True):
        for box in boxes:
            sample[0][box] = True
    changed = apply_intensity_(image.clone(), curves, value_ranges(image), windows)
    assert torch.equal(changed, torch.where(seen, expected, image))
    part = image[..., :5]
    wider = apply_intensity_(part.clone(), curves, value_ranges(image))
    assert torch.equal(wider, expected[..., :5])


def test_ranges_are_those_of_each_channel():
    image = normal(2, 3, 5, 6, 7)
    assert torch.equal(value_ranges(image), torch.stack([image.amin((2, 3, 4)), image.amax((2, 3, 4))], dim=2))
