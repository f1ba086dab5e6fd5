import pytest
import torch

from ssl_pretrain.functional.painting import Painting, apply_painting, draw_painting

PATCH = (28, 35, 42)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covered(windows, patch=PATCH):
    """Boolean (D, H, W), True in any of the windows."""
    mask = torch.zeros(patch, dtype=torch.bool)
    for window in windows:
        mask[window] = True
    return mask


@pytest.mark.parametrize("kind", ["in", "out"])
def test_painted_voxels_are_noise_of_the_channels_own_range_and_the_others_stay(kind):
    image = torch.randn(3, 2, *PATCH, generator=generator()) * torch.tensor([1.0, 40.0]).view(1, 2, 1, 1, 1) - 2
    kept = image.clone()
    painting = draw_painting(3, PATCH, generator(), p=1.0, inside_p=float(kind == "in"))
    painted = apply_painting(image, painting)
    assert torch.equal(image, kept)
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
    image = torch.randn(1, 1, *PATCH, generator=generator()).expand(3, -1, -1, -1, -1)
    painting = draw_painting(3, PATCH, generator(), p=1.0)
    painted = apply_painting(image, painting)
    assert torch.equal(apply_painting(image, painting), painted)
    assert not torch.equal(painted[0], painted[1])
    other = apply_painting(image, painting._replace(seeds=(9, *painting.seeds[1:])))
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
    image = torch.randn(4, 1, *patch, generator=generator())
    for inside in (0.0, 1.0):
        assert apply_painting(image, draw_painting(4, patch, generator(), p=1.0, inside_p=inside)).isfinite().all()


def test_nothing_is_painted_without_a_kind():
    image = torch.randn(1, 1, *PATCH, generator=generator())
    painting = draw_painting(1, PATCH, generator(), p=0.0)
    assert painting.kinds == ("none",)
    assert torch.equal(apply_painting(image, painting), image)


def test_where_windows_overlap_noise_is_drawn_anew_and_the_original_stays_the_original():
    image = torch.arange(64.0).view(1, 1, 4, 4, 4)
    whole = (slice(0, 4),) * 3
    assert torch.equal(apply_painting(image, Painting(("out",), ((whole, whole),), (1,))), image)
    once, twice = (apply_painting(image, Painting(("in",), ((whole,) * n,), (1,))) for n in (1, 2))
    assert not torch.equal(once, twice)
