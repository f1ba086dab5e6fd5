"""What is done to single tensors so that they fit another network."""

import pytest
import torch
from torch.nn import functional

from ssl_pretrain.transfer.fitting import (
    average_channels,
    check_channels,
    fit_kernel,
    fit_step,
    repeated_channels,
    spread_channels,
)
from ssl_pretrain.transfer.matching import kernel_fits, step_fits


def answer(weight, *channels):
    """A convolution's answer to an image of these channels, each (D, H, W)."""
    padding = [size // 2 for size in weight.shape[2:]]
    return functional.conv3d(torch.stack(channels)[None], weight, padding=padding)


@pytest.fixture
def image():
    return torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def other(image):
    return image.flip(0) + 1


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------- input channels


@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (1, 5), (2, 4), (2, 3), (3, 4), (2, 7)])
def test_repeated_channels_keep_the_answer_to_identical_channels(theirs, ours, image):
    weight = weights(4, theirs, 3, 3, 3)
    spread = spread_channels(weight, repeated_channels(ours, theirs))
    assert spread.shape == (4, ours, 3, 3, 3)
    torch.testing.assert_close(answer(spread, *[image] * ours), answer(weight, *[image] * theirs))


@pytest.mark.parametrize(("theirs", "ours"), [(2, 1), (3, 2), (4, 3), (3, 1)])
def test_averaged_channels_keep_the_answer_to_identical_channels(theirs, ours, image):
    weight = weights(4, theirs, 3, 3, 3)
    averaged = average_channels(weight, ours)
    assert averaged.shape == (4, ours, 3, 3, 3)
    torch.testing.assert_close(answer(averaged, *[image] * ours), answer(weight, *[image] * theirs))
    assert torch.equal(averaged[:, :1].expand_as(averaged), averaged), "no channel is preferred"


def test_channels_are_repeated_in_turn():
    assert repeated_channels(3, 2) == (0, 1, 0)
    assert repeated_channels(4, 2) == (0, 1, 0, 1)
    weight = weights(4, 2, 1, 1, 1)
    spread = spread_channels(weight, repeated_channels(3, 2))
    torch.testing.assert_close(spread, torch.stack((weight[:, 0] / 2, weight[:, 1], weight[:, 0] / 2), 1))


@pytest.mark.parametrize("channels", [(0, 0, 1), (1, 0), (1, 0, 0, 1)])
def test_mapped_channels_answer_as_the_file_does_to_the_images_they_are_said_to_be(channels, image, other):
    weight, images = weights(4, 2, 3, 3, 3), (image, other)
    spread = spread_channels(weight, channels)
    torch.testing.assert_close(answer(spread, *[images[number] for number in channels]), answer(weight, image, other))


def test_a_channel_that_is_left_out_counts_as_zero(image, other):
    weight = weights(4, 2, 3, 3, 3)
    expected = answer(weight, torch.zeros_like(image), other)
    torch.testing.assert_close(answer(spread_channels(weight, (1,)), other), expected)


def test_a_mapping_that_does_not_fit_is_refused():
    assert check_channels([0, 0, 1], ours=3, theirs=2) == (0, 0, 1)
    with pytest.raises(ValueError, match=r"channels '0 1' names 2 channels, but the network has 3 input channels"):
        check_channels([0, 1], ours=3, theirs=2)
    with pytest.raises(ValueError, match=r"'0 2 1' asks for channel 2 of the file, which has 2 .* from 0 to 1\."):
        check_channels([0, 2, 1], ours=3, theirs=2)
    with pytest.raises(ValueError, match="asks for channel -1"):
        check_channels([-1], ours=1, theirs=2)


# ---------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("size", [(3, 3, 3), (1, 5, 3), (1, 3, 7)])
def test_a_kernel_that_grows_computes_what_it_computed(size, image):
    weight = weights(4, 1, 1, 3, 3)
    torch.testing.assert_close(answer(fit_kernel(weight, size), image), answer(weight, image))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_kernel_that_shrinks_is_the_mean_along_that_axis(axis):
    weight, size = weights(4, 2, 3, 3, 3), [3, 3, 3]
    size[axis] = 1
    fitted = fit_kernel(weight, size)
    assert tuple(fitted.shape[2:]) == tuple(size)
    planes = weight.unbind(axis + 2)
    torch.testing.assert_close(fitted.squeeze(axis + 2), sum(planes) / 3)


def test_after_a_normalisation_the_mean_is_as_good_as_the_sum(image):
    """What the axis does not change is seen as before: a normalisation takes the factor of the mean out."""
    weight = weights(4, 1, 3, 3, 3)
    flat = image[:1].expand(9, -1, -1).contiguous()
    seen = answer(weight, flat)[:, :, 1:-1]  # without the border, where the file's network pads that axis with zeros
    fitted = answer(fit_kernel(weight, (1, 3, 3)), flat)[:, :, 1:-1]
    torch.testing.assert_close(3 * fitted, seen)
    normalised = [functional.instance_norm(x, eps=1e-12) for x in (fitted, seen)]
    torch.testing.assert_close(*normalised, atol=1e-5, rtol=1e-4)


def test_one_axis_may_shrink_while_another_grows():
    fitted = fit_kernel(weights(2, 2, 3, 1, 3), (1, 3, 3))
    assert fitted.shape == (2, 2, 1, 3, 3)
    assert not fitted[:, :, :, ::2].any(), "centred along the second axis"


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [
        ((3, 3, 3), (1, 3, 3), True),
        ((1, 3, 3), (3, 3, 3), True),
        ((5, 3, 3), (1, 3, 3), True),
        ((3, 3, 3), (5, 3, 3), True),
        ((5, 3, 3), (3, 3, 3), False),
        ((8, 8, 8), (1, 8, 8), False),
        ((2, 2, 2), (3, 3, 3), False),
        ((8, 8, 8), (16, 8, 8), False),
    ],
)
def test_which_kernels_fit(theirs, ours, fits):
    assert kernel_fits(theirs, ours) is fits
    if fits:
        assert fit_kernel(weights(2, 3, *theirs), ours).shape == (2, 3, *ours)


# ------------------------------------------------------------------------------------------------ steps of upsampling


def upsampled(weight, coarse):
    return functional.conv_transpose3d(coarse[None, None], weight, stride=weight.shape[2:])


def test_a_step_that_is_gone_gives_the_mean_of_the_finer_voxels(image):
    weight = weights(1, 3, 2, 2, 2)
    fine = upsampled(weight, image)
    fitted = upsampled(fit_step(weight, (1, 2, 2)), image)
    torch.testing.assert_close(fitted, functional.avg_pool3d(fine, (2, 1, 1)))


def test_a_new_step_repeats_voxels(image):
    weight = weights(1, 3, 1, 2, 2)
    fitted = upsampled(fit_step(weight, (2, 2, 2)), image)
    torch.testing.assert_close(fitted, upsampled(weight, image).repeat_interleave(2, 2))


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [
        ((2, 2, 2), (1, 2, 2), True),
        ((1, 2, 2), (2, 2, 2), True),
        ((4, 2, 2), (1, 2, 2), True),
        ((4, 2, 2), (2, 2, 2), False),
        ((2, 2, 2), (3, 2, 2), False),
    ],
)
def test_which_steps_fit(theirs, ours, fits):
    assert step_fits(theirs, ours) is fits
