import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from ssl_pretrain.functional.augment import (
    Augmentation,
    AugmentConfig,
    Change,
    apply_augmentation_,
    draw_augmentation,
    draw_cutouts,
)

SHAPE = (14, 17, 12)
ONE = torch.tensor([1])


def volumes(batch: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 + 1


def theirs(transform, image, **parameters):
    """What batchgeneratorsv2 makes of one channel for the same parameters."""
    return transform._apply_to_image(image[None].clone(), **parameters)[0]


REFERENCES = {
    "blur": (
        (0.5, 0.8, 1.7),
        lambda x, v: theirs(GaussianBlurTransform(1.0), x, apply_to_channel=torch.tensor([True]), sigmas=[list(v)]),
    ),
    "brightness": (
        (1.2,),
        lambda x, v: theirs(
            MultiplicativeBrightnessTransform(1.0, False), x, apply_to_channel=ONE - 1, multipliers=torch.tensor(v)
        ),
    ),
    "contrast": (
        (0.8,),
        lambda x, v: theirs(
            ContrastTransform(1.0, True, False), x, apply_to_channel=ONE - 1, multipliers=torch.tensor(v)
        ),
    ),
    "low_resolution": (
        (0.5, 0.7, 0.9),
        lambda x, v: theirs(
            SimulateLowResolutionTransform(1.0, False, False, ()), x, apply_to_channel=ONE - 1, scales=torch.tensor([v])
        ),
    ),
    **{
        name: (
            (0.7,),
            lambda x, v, inverted=inverted: theirs(
                GammaTransform(1.0, 0, False, 1, 1),
                x,
                apply_to_channel=ONE - 1,
                retain_stats=ONE.bool(),
                invert_image=torch.tensor([inverted]),
                gamma=torch.tensor(v),
            ),
        )
        for name, inverted in (("gamma", False), ("inverted_gamma", True))
    },
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_transform_is_that_of_batchgeneratorsv2_for_the_same_parameters(name):
    values, reference = REFERENCES[name]
    images = volumes()
    changed = apply_augmentation_(images.clone(), Augmentation(**{name: [Change(1, 0, values)]}))
    torch.testing.assert_close(changed[1, 0], reference(images[1, 0], values), rtol=1e-5, atol=1e-5)
    assert not torch.equal(changed[1, 0], images[1, 0])
    assert torch.equal(changed[0], images[0]), "what is not chosen stays as it is"
    assert torch.equal(changed[1, 1], images[1, 1])


def test_noise_has_its_deviation_and_is_that_of_its_seed():
    images = torch.zeros(1, 2, 40, 40, 40)
    twice = [apply_augmentation_(images.clone(), Augmentation(noise=[Change(0, 1, (0.3,), 7)])) for _ in range(2)]
    assert torch.equal(*twice)
    assert float(twice[0][0, 1].std()) == pytest.approx(0.3, rel=0.02)
    assert float(twice[0][0, 0].abs().max()) == 0.0


def test_a_blur_fits_an_axis_that_is_shorter_than_its_kernel():
    thin = torch.randn(1, 1, 2, 20, 20)
    changed = apply_augmentation_(thin.clone(), Augmentation(blur=[Change(0, 0, (2.0, 1.0, 1.0))]))
    assert changed.isfinite().all()
    assert float(changed.std()) < float(thin.std())


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_channel_of_one_value_stays_finite(value):
    images = torch.full((1, 1, *SHAPE), value)
    every = {name: [Change(0, 0, values)] for name, (values, _) in REFERENCES.items()}
    assert apply_augmentation_(images, Augmentation(**every)).isfinite().all()


def test_everything_is_drawn_within_its_range_and_about_as_often_as_asked_for():
    config = AugmentConfig()
    drawn = draw_augmentation(2000, 2, np.random.default_rng(0), config)
    rates = {name: len(changes) / 4000 for name, changes in vars(drawn).items()}
    asked = {name: getattr(config, f"{name}_p") for name in rates}
    assert rates == pytest.approx(asked, abs=0.02)
    for name, (low, high) in {"blur": (0.5, 1), "brightness": (0.75, 1.25), "gamma": (0.7, 1.5)}.items():
        values = np.array([change.values for change in getattr(drawn, name)])
        assert low <= values.min() < values.max() <= high
    assert max(change.values[0] for change in drawn.noise) <= config.noise_variance**0.5
    exponents = np.array([change.values[0] for change in drawn.gamma])
    assert (exponents < 1).mean() == pytest.approx(0.5, abs=0.05), "below and above 1 equally often"
    assert all(len(set(change.values)) == 1 for change in drawn.low_resolution), "one zoom for all axes"


def test_the_same_generator_gives_the_same_crops():
    config = AugmentConfig(noise_p=1, blur_p=0.5, gamma_p=1)
    pair = [apply_augmentation_(volumes(), draw_augmentation(2, 2, np.random.default_rng(5), config)) for _ in range(2)]
    assert torch.equal(*pair)
    assert not torch.equal(pair[0][0], volumes()[0])


def test_cutouts_cover_up_to_their_share_with_boxes_of_their_sides():
    patch = (40, 20, 30)
    crops = draw_cutouts(200, patch, np.random.default_rng(0), smallest=0.05, largest=0.25, most=0.3)
    shares = []
    for boxes in crops:
        covered = np.zeros(patch, dtype=bool)
        for box in boxes:
            covered[box] = True
            assert all(
                1 <= b.stop - b.start <= round(0.25 * n) and b.stop <= n for b, n in zip(box, patch, strict=True)
            )
        shares.append(covered.mean())
    assert max(shares) < 0.3 + 0.25**3
    assert np.mean(shares) == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"blur_p": 1.5}, "blur_p must lie between 0 and 1, got 1.5"),
        ({"gamma": (0.0, 1.0)}, "gamma must be two numbers, 0 < smallest <= largest, got 0.0 and 1.0"),
        ({"low_resolution": (0.5, 2.0)}, "low_resolution must not enlarge: at most 1, got 2.0"),
        ({"noise_variance": -1.0}, "noise_variance must not be negative, got -1.0"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**setting)


def test_cutouts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="0 < smallest <= largest <= 1"):
        draw_cutouts(1, SHAPE, np.random.default_rng(0), smallest=0.5, largest=0.2, most=0.3)
