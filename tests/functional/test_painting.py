import numpy as np
import pytest
import torch

from ssl_pretrain.functional.painting import Painting, apply_painting_, draw_painting, seen_windows

PATCH = (28, 35, 42)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def painted_copy(image, painting):
    return apply_painting_(image.clone(), painting)


def covered(windows, patch=PATCH):
    """Boolean (D, H, W), True in any of the windows."""
    mask = torch.zeros(patch, dtype=torch.bool)
    for window in windows:
        mask[window] = True
    return mask


@pytest.mark.parametrize("kind", ["in", "out"])
def test_painted_voxels_are_noise_of_the_channels_own_range_and_the_others_stay(kind):
    image = normal(3, 2, *PATCH) * torch.tensor([1.0, 40.0]).view(1, 2, 1, 1, 1) - 2
    painting = draw_painting(3, PATCH, generator(), p=1.0, inside_p=float(kind == "in"))
    painted = painted_copy(image, painting)
    for sample, windows in enumerate(painting.windows):
        assert windows
        noisy = covered(windows) if kind == "in" else ~covered(windows)
        assert torch.equal(painted[sample][:, ~noisy], image[sample][:, ~noisy])
        for channel in range(2):
            low, high = image[sample, channel].aminmax()
            noise = (painted[sample, channel][noisy] - low) / (high - low)
            assert (painted[sample, channel][noisy] != image[sample, channel][noisy]).float().mean() > 0.99
            assert noise.min() >= -1e-6 and noise.max() <= 1 + 1e-6
            share = torch.histc(noise, bins=4, min=0, max=1) / noise.numel()
            assert (share - 0.25).abs().max() < 0.05


def test_parameters_alone_decide_and_samples_differ():
    image = normal(1, 1, *PATCH).expand(3, -1, -1, -1, -1)
    painting = draw_painting(3, PATCH, generator(), p=1.0)
    painted = painted_copy(image, painting)
    assert torch.equal(painted_copy(image, painting), painted)
    assert not torch.equal(painted[0], painted[1])
    other = painted_copy(image, painting._replace(seeds=(9, *painting.seeds[1:])))
    assert not torch.equal(other[0], painted[0])
    assert torch.equal(other[1:], painted[1:])


def test_kinds_and_numbers_of_windows_follow_their_probabilities():
    painting = draw_painting(2500, PATCH, generator())
    share = {kind: painting.kinds.count(kind) / 2500 for kind in ("none", "in", "out")}
    assert share == pytest.approx({"none": 0.1, "in": 0.18, "out": 0.72}, abs=0.03)
    lengths = {
        k: [len(w) for w, kind in zip(painting.windows, painting.kinds, strict=True) if kind == k] for k in share
    }
    assert set(lengths["none"]) == {0}
    assert set(lengths["out"]) <= {1, 2, 3, 4, 5}
    for kind, first in (("in", 0), ("out", 1)):
        full = lengths[kind].count(5) / len(lengths[kind])
        assert full == pytest.approx(0.95 ** (5 - first), abs=0.04)
        assert lengths[kind].count(first) / len(lengths[kind]) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "sides"), [("in", [(4, 9), (5, 11), (7, 14)]), ("out", [(12, 16), (15, 20), (18, 24)])]
)
def test_sides_are_the_published_shares_of_the_patch_and_keep_off_the_border(kind, sides):
    painting = draw_painting(300, PATCH, generator(), p=1.0, inside_p=float(kind == "in"))
    windows = [window for sample in painting.windows for window in sample]
    for axis, (shortest, longest) in enumerate(sides):
        lengths = {window[axis].stop - window[axis].start for window in windows}
        assert (min(lengths), max(lengths)) == (shortest, longest)
        assert min(window[axis].start for window in windows) == 3
        assert max(window[axis].stop for window in windows) == PATCH[axis] - 3


@pytest.mark.parametrize(
    # Means of 4000 patches of 48 voxels painted by the published rules.
    ("kind", "published"),
    [("in", 0.0619), ("out", 0.3170)],
)
def test_windows_cover_the_published_share_of_a_patch(kind, published):
    painting = draw_painting(250, (48, 48, 48), generator(), p=1.0, inside_p=float(kind == "in"))
    share = torch.tensor([covered(windows, (48, 48, 48)).float().mean() for windows in painting.windows])
    assert share.mean().item() == pytest.approx(published, rel=0.06)


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 8, 5), (6, 64, 64)])
def test_small_patches_are_painted_with_as_much_margin_as_there_is(patch):
    image = normal(4, 1, *patch)
    for inside in (0.0, 1.0):
        assert painted_copy(image, draw_painting(4, patch, generator(), p=1.0, inside_p=inside)).isfinite().all()


def test_nothing_is_painted_without_a_kind():
    image = normal(1, 1, *PATCH)
    painting = draw_painting(1, PATCH, generator(), p=0.0)
    assert painting.kinds == ("none",)
    assert torch.equal(painted_copy(image, painting), image)


def test_where_windows_overlap_noise_is_drawn_once_and_the_original_stays_the_original():
    image = torch.arange(64.0).view(1, 1, 4, 4, 4)
    whole = (slice(0, 4),) * 3
    assert torch.equal(painted_copy(image, Painting(("out",), ((whole, whole),), (1,))), image)
    once, twice = (painted_copy(image, Painting(("in",), ((whole,) * n,), (1,))) for n in (1, 2))
    assert torch.equal(once, twice)
    assert not torch.equal(once, image)


def test_noise_is_of_the_range_that_is_given_and_painting_is_done_in_place():
    image = normal(1, 2, *PATCH)
    ranges = torch.tensor([[[0.0, 1.0], [10.0, 20.0]]])
    whole = tuple(slice(0, n) for n in PATCH)
    assert apply_painting_(image, Painting(("in",), ((whole,),), (1,)), ranges) is image
    torch.testing.assert_close(image.amin((0, 2, 3, 4)), torch.tensor([0.0, 10.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(image.amax((0, 2, 3, 4)), torch.tensor([1.0, 20.0]), atol=1e-2, rtol=0)


def test_noise_of_neighbouring_voxels_is_independent():
    whole = tuple(slice(0, n) for n in PATCH)
    noise = painted_copy(
        torch.linspace(0, 1, 2).repeat(14 * 35 * 42).view(1, 1, *PATCH), Painting(("in",), ((whole,),), (1,))
    )
    noise = noise[0, 0] - 0.5
    for axis in range(3):
        n = PATCH[axis]
        product = noise.narrow(axis, 0, n - 1) * noise.narrow(axis, 1, n - 1)
        assert abs(product.mean() * 12) < 0.03
    assert noise.unique().numel() > 0.99 * noise.numel()


@pytest.mark.parametrize("inside", [0.0, 1.0])
def test_what_is_not_seen_is_painted_over(inside):
    painting = draw_painting(20, PATCH, generator(), p=1.0, inside_p=inside)
    seen = [covered(windows) for windows in seen_windows(painting, PATCH)]
    ones = torch.full((20, 1, *PATCH), 5.0)
    ranges = torch.tensor([0.0, 1.0]).expand(20, 1, 2)
    kept = apply_painting_(ones, painting, ranges)[:, 0] == 5.0
    for shown, untouched in zip(seen, kept, strict=True):
        assert not (untouched & ~shown).any()
    share = torch.stack(seen).float().mean()
    assert share == 1 if inside else share < 0.5
