import numpy as np
import pytest
import torch

from ssl_pretrain.functional.genesis import GenesisConfig, apply_flips, corrupt, draw_flips
from ssl_pretrain.functional.intensity import apply_intensity_, draw_intensity, value_ranges
from ssl_pretrain.functional.painting import apply_painting_, draw_painting
from ssl_pretrain.functional.shuffling import apply_shuffling, draw_shuffling

PATCH = (20, 33, 40)
OFF = {"shuffle_p": 0.0, "intensity_p": 0.0, "paint_p": 0.0}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_of(samples=2, channels=2):
    return normal(samples, channels, *PATCH, seed=7)


def test_shuffling_intensity_and_painting_follow_each_other_in_this_order():
    image, again = image_of(6), generator(1)
    shuffling = draw_shuffling(6, PATCH, again)
    curves = draw_intensity(6, 2, again)
    painting = draw_painting(6, PATCH, again)
    ranges = value_ranges(image)
    changed = apply_intensity_(apply_shuffling(image, shuffling), curves, ranges)
    expected = apply_painting_(changed, painting, ranges)
    assert torch.equal(corrupt(image, generator(1), GenesisConfig()), expected)


def test_corruption_leaves_the_image_alone_and_stays_within_its_range():
    image = image_of()
    kept = image.clone()
    corrupted = corrupt(image, generator(), GenesisConfig(shuffle_p=1.0, intensity_p=1.0, paint_p=1.0))
    assert torch.equal(image, kept)
    assert corrupted.shape == image.shape and corrupted.dtype == image.dtype
    for changed, original in zip(corrupted.flatten(0, 1), image.flatten(0, 1), strict=True):
        assert not torch.equal(changed, original)
        assert changed.min() >= original.min() - 1e-5 and changed.max() <= original.max() + 1e-5


def test_the_generator_decides():
    image = image_of()
    first, again, other = (corrupt(image, generator(s), GenesisConfig()) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_everything_can_be_switched_off():
    image = image_of()
    corrupted = corrupt(image, generator(), GenesisConfig(**OFF))
    assert torch.equal(corrupted, image)
    assert corrupted.data_ptr() != image.data_ptr()


@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle_p": 1.0},
        {"shuffle_p": 1.0, "shuffle_side": 0.3},
        {"shuffle_p": 1.0, "shuffle_patterns": 20},
        {"shuffle_p": 1.0, "shuffle_rounds": 7},
        {"intensity_p": 1.0},
        {"intensity_p": 1.0, "falling_p": 1.0},
        {"paint_p": 1.0},
        {"paint_p": 1.0, "inpaint_p": 1.0},
        {"paint_p": 1.0, "paint_windows": 1},
        {"paint_p": 1.0, "paint_next_p": 0.0},
        {"paint_p": 1.0, "paint_margin": 0},
        {"paint_p": 1.0, "inpaint_p": 1.0, "inpaint_min": 0.3},
        {"paint_p": 1.0, "inpaint_p": 1.0, "inpaint_max": 0.6},
        {"paint_p": 1.0, "inpaint_p": 0.0, "outpaint_min": 0.2},
        {"paint_p": 1.0, "inpaint_p": 0.0, "outpaint_max": 0.9},
    ],
)
def test_every_field_has_an_effect(changes):
    *before, last = changes
    config = GenesisConfig(**OFF | changes)
    without = GenesisConfig(**OFF | {name: changes[name] for name in before})
    assert getattr(config, last) != getattr(without, last)
    assert not torch.equal(corrupt(image_of(), generator(), config), corrupt(image_of(), generator(), without))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip_p": 1.2}, "flip_p must lie between 0 and 1, got 1.2"),
        ({"paint_next_p": -0.1}, "paint_next_p must lie between 0 and 1, got -0.1"),
        ({"shuffle_rounds": 0}, "shuffle_rounds must be at least 1, got 0; to do without, set the probability to 0"),
        ({"paint_windows": 0}, "paint_windows must be at least 1"),
        ({"flip_times": -1}, "flip_times must not be negative, got -1"),
        ({"shuffle_side": 0.0}, "shuffle_side must lie between 0 and 1 .* set shuffle_p to 0"),
        ({"inpaint_min": 0.5}, "0 < inpaint_min <= inpaint_max <= 1 must hold .* got 0.5 and 0.333"),
        ({"outpaint_max": 1.5}, "0 < outpaint_min <= outpaint_max <= 1 must hold .* a window must fit"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GenesisConfig(**wrong)


def test_flips_follow_the_published_chain():
    # Up to three flips, each with 0.4 after the one before, each along an axis at random: an axis is reversed when an
    # odd number of them fell on it.
    published = 0.24 / 3 + 0.096 * 4 / 9 + 0.064 * 13 / 27
    flips = torch.tensor(draw_flips(20_000, generator(), GenesisConfig()))
    assert (flips.double().mean(0) - published).abs().max() < 0.01
    assert abs((flips.sum(1) == 0).double().mean() - (0.6 + 0.096 / 3)) < 0.015
    assert not any(any(axes) for axes in draw_flips(50, generator(), GenesisConfig(flip_p=0.0)))
    assert not any(any(axes) for axes in draw_flips(50, generator(), GenesisConfig(flip_times=0)))


def test_flips_reverse_the_axes_of_each_sample_for_images_and_masks_alike():
    image = image_of(3)
    flips = ((False, False, False), (True, False, True), (False, True, False))
    flipped = apply_flips(image, flips)
    assert torch.equal(flipped[0], image[0])
    assert torch.equal(flipped[1], image[1].flip(1, 3))
    assert torch.equal(flipped[2], image[2].flip(2))
    assert torch.equal(apply_flips(image > 0, flips), flipped > 0)
    assert torch.equal(apply_flips(flipped, flips), image)
