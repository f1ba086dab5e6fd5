import numpy as np
import pytest
import torch

from ssl_pretrain.functional.disruption import DisruptionConfig, add_noise, draw_kept, reduced, reductions


def crops(*size: int) -> torch.Tensor:
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))


def test_noise_has_its_variance_and_follows_from_the_seed_of_each_crop():
    image = crops(16, 24, 32)
    noisy = add_noise(image, 0.1, [5, 6])
    assert float((noisy - image).var()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(add_noise(image[1:], 0.1, [6])[0], noisy[1])
    assert torch.equal(add_noise(image, 0.0, [5, 6]), image)


@pytest.mark.parametrize("size", [(16, 24, 32), (6, 24, 32), (8, 9, 10)])
def test_a_nearest_reduction_repeats_the_first_voxel_of_each_block(size):
    image, factors = crops(*size), reductions(size, 4)
    low = reduced(image, factors, "nearest")
    smaller = [side // factor for side, factor in zip(size, factors, strict=True)]
    expected = image
    for axis, (side, count) in enumerate(zip(size, smaller, strict=True)):
        there = (torch.arange(count) * side) // count
        back = (torch.arange(side) * count) // side
        expected = expected.index_select(axis + 2, there[back])
    assert torch.equal(low, expected)
    assert len(low[0, 0].unique()) == np.prod(smaller)


def test_trilinear_keeps_a_ramp_and_size():
    ramp = torch.arange(32.0).expand(1, 1, 8, 8, 32)
    low = reduced(ramp, (1, 1, 4), "trilinear")
    assert low.shape == ramp.shape
    # Away from the ends a straight line stays one.
    torch.testing.assert_close(low[..., 2:-2], ramp[..., 2:-2])


def test_short_axes_are_reduced_as_far_as_two_voxels_stay():
    assert reductions((96, 6, 3), 4) == (4, 3, 1)
    assert reductions((2, 1, 8), 4) == (1, 1, 4)


def test_lost_channels_are_as_many_and_drawn_by_each_generator():
    def drawn(*seeds):
        return draw_kept([np.random.default_rng(s) for s in seeds], 48, 28, torch.device("cpu"))

    kept = drawn(1, 2)
    assert kept.sum(1).tolist() == [20, 20]
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(drawn(2)[0], kept[1])


@pytest.mark.parametrize(
    ("choice", "disruption"), [("denoise", "denoise"), ("superres", "superres"), ("LD", "local"), ("all", "all")]
)
def test_published_choices_are_disruptions(choice, disruption):
    config = DisruptionConfig(choice=choice)
    assert (config.disruption, config.choice) == (disruption, None)
    assert config.has("local") == (disruption in ("all", "local"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variance": -1.0}, "variance must not be negative, and finite, got -1.0"),
        ({"interpolate": 0}, "interpolate must be at least 1, got 0"),
        ({"mask_ratio": 1.0}, "mask_ratio must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        DisruptionConfig(**settings)
