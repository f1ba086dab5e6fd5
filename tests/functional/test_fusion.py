import numpy as np
import pytest
import torch

from ssl_pretrain.functional.fusion import Fusion, FusionConfig, apply_fusion, draw_fusion, fuse

PATCH = (16, 24, 32)
WHOLE = tuple(slice(0, n) for n in PATCH)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(samples=2, channels=2):
    foreground, background = normal(2, samples, channels, *PATCH, seed=5).unbind()
    return foreground, background


def test_images_and_labels_are_those_of_boxes_painted_one_by_one():
    foreground, background = pair(3)
    fusion = draw_fusion(3, PATCH, generator(), FusionConfig())
    images, labels = apply_fusion(foreground, background, fusion)
    assert labels.dtype == torch.int64 and labels.shape == (3, *PATCH)
    for sample in range(3):
        alpha, label = np.zeros(PATCH), np.zeros(PATCH, dtype=int)
        for window, k in zip(fusion.windows[sample], fusion.labels[sample], strict=True):
            alpha[window], label[window] = k / 4, k
        f, b = foreground[sample].numpy(), background[sample].numpy()
        np.testing.assert_array_equal(labels[sample].numpy(), label)
        np.testing.assert_allclose(images[sample].numpy(), alpha * f + (1 - alpha) * b, atol=1e-6)


def test_full_weight_is_exactly_the_foreground_and_none_exactly_the_background():
    foreground, background = pair(1)
    foreground *= 1e4
    box = (slice(2, 9), slice(0, 24), slice(5, 30))
    fused = apply_fusion(foreground, background, Fusion(((box,),), ((4,),), 5))
    inside = torch.zeros(PATCH, dtype=torch.bool)
    inside[box] = True
    assert torch.equal(fused.images[..., inside], foreground[..., inside])
    assert torch.equal(fused.images[..., ~inside], background[..., ~inside])
    nothing = apply_fusion(foreground, background, Fusion(((box,),), ((0,),), 5))
    assert torch.equal(nothing.images, background)
    assert not nothing.labels.any()


def test_later_boxes_cover_earlier_ones():
    foreground, background = pair(1)
    inner = (slice(4, 8), slice(4, 8), slice(4, 8))
    fused = apply_fusion(foreground, background, Fusion(((WHOLE, inner),), ((2, 1),), 3))
    assert (fused.labels[0][inner] == 1).all()
    assert (fused.labels == 2).sum() == 16 * 24 * 32 - 64
    torch.testing.assert_close(fused.images[0, :, 5, 5, 5], (foreground + background)[0, :, 5, 5, 5] / 2)


def test_numbers_sides_and_classes_are_uniform_within_the_published_limits():
    fusion = draw_fusion(600, (160, 160, 80), generator(), FusionConfig())
    numbers = torch.tensor([len(windows) for windows in fusion.windows])
    assert (numbers.min(), numbers.max()) == (10, 39)
    assert abs(numbers.double().mean() - 24.5) < 1.2
    for axis, (shortest, longest) in enumerate([(8, 100), (8, 100), (4, 50)]):
        sides = torch.tensor([w[axis].stop - w[axis].start for windows in fusion.windows for w in windows])
        assert (sides.min(), sides.max()) == (shortest, longest)
        assert abs(sides.double().mean() - (shortest + longest) / 2) < 1.0
    labels = torch.tensor([label for sample in fusion.labels for label in sample])
    assert (torch.bincount(labels) / len(labels) - 0.2).abs().max() < 0.015


def test_the_share_of_each_label_is_that_of_the_published_code():
    # nnssl (as in jwutsetro/nnssl_etro at 41751bc, volume_fusion_transform.py) with the limits of its trainer, seed 0,
    # mean of 2000 label volumes of 160 voxels; boxes of a patch of 40 are a quarter as long.
    published = torch.tensor([0.6277, 0.0946, 0.0899, 0.0939, 0.0939])
    zeros = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 40, 40, 40)
    fusion = draw_fusion(800, (40, 40, 40), generator(), FusionConfig())
    share = torch.zeros(5)
    for sample in range(800):
        alone = Fusion(fusion.windows[sample : sample + 1], fusion.labels[sample : sample + 1], 5)
        share += torch.bincount(apply_fusion(zeros, zeros, alone).labels.flatten(), minlength=5) / 40**3 / 800
    assert (share - published).abs().max() < 0.02


def test_the_generator_decides_and_samples_differ():
    foreground, background = (image[:1].expand(2, -1, -1, -1, -1) for image in pair())
    first, again, other = (fuse(foreground, background, generator(s), FusionConfig()) for s in (1, 1, 2))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert not torch.equal(first.labels[0], first.labels[1])


def test_every_field_has_an_effect():
    foreground, background = pair()
    usual = fuse(foreground, background, generator(), FusionConfig())
    for name, value in {"classes": 3, "boxes_min": 30, "boxes_max": 12, "side_min": 0.4, "side_max": 0.2}.items():
        changed = fuse(foreground, background, generator(), FusionConfig(**{name: value}))
        assert not torch.equal(changed.labels, usual.labels), name


@pytest.mark.parametrize("patch", [(1, 1, 1), (3, 12, 200)])
def test_sides_scale_with_a_small_patch(patch):
    fused = fuse(*torch.zeros(2, 1, 1, *patch).unbind(), generator(), FusionConfig())
    assert fused.labels.shape == (1, *patch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"boxes_min": 40}, "1 <= boxes_min <= boxes_max must hold, got 40 and 39"),
        ({"boxes_min": 0}, "1 <= boxes_min <= boxes_max must hold, got 0 and 39"),
        ({"side_max": 1.1}, "a box must fit into it.* got 0.05 and 1.1"),
        ({"side_min": 0.7}, "0 < side_min <= side_max <= 1 must hold.* got 0.7 and 0.625"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FusionConfig(**wrong)


def test_images_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="must have the same shape: fuse crops of one patch size"):
        fuse(torch.zeros(2, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4), generator(), FusionConfig())
