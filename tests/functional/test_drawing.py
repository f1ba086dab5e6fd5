import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_pretrain.functional.drawing import draw_chosen, draw_seeds, draw_windows, whole_voxels


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(
    patch=st.tuples(*[st.integers(1, 40)] * 3),
    shares=st.tuples(*[st.floats(0.01, 1.0)] * 2).map(sorted),
    margin=st.integers(0, 5),
    seed=st.integers(0, 50),
)
def test_every_window_keeps_to_its_sides_its_margin_and_the_patch(patch, shares, margin, seed):
    smallest, largest = (whole_voxels(patch, share) for share in shares)
    windows = draw_windows(3, 4, patch, smallest, largest, generator(seed), margin)
    assert [len(sample) for sample in windows] == [4, 4, 4]
    for sample in windows:
        for window in sample:
            for axis, side in enumerate(window):
                free = min(margin, (patch[axis] - largest[axis]) // 2)
                assert smallest[axis] <= side.stop - side.start <= largest[axis]
                assert free <= side.start and side.stop <= patch[axis] - free


def test_sides_and_places_are_uniform_up_to_both_ends():
    (windows,) = draw_windows(1, 6000, (6, 6, 6), (2, 2, 2), (4, 4, 4), generator())
    sides = torch.tensor([[s.stop - s.start for s in window] for window in windows])
    starts = torch.tensor([[s.start for s in window] for window in windows])
    for axis in range(3):
        share = torch.bincount(sides[:, axis], minlength=5)[2:] / 6000
        assert (share - 1 / 3).abs().max() < 0.03
        of_side_2 = starts[sides[:, axis] == 2, axis]
        assert (torch.bincount(of_side_2, minlength=5) / len(of_side_2) - 1 / 5).abs().max() < 0.04


def test_boxes_larger_than_the_patch_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) to \(4, 9, 4\) voxels do not fit a patch of \(8, 8, 8\)"):
        draw_windows(1, 1, (8, 8, 8), (2, 2, 2), (4, 9, 4), generator())


def test_shares_become_the_published_whole_numbers():
    assert whole_voxels((160, 96, 20), 0.1) == (16, 9, 2)
    assert whole_voxels((160, 96, 5), 1 / 3) == (53, 32, 1)
    for size in range(7, 300):
        low, high = size - 4 * size // 7, size - 3 * size // 7
        assert whole_voxels((size,) * 3, 3 / 7, up=True)[0] == low
        assert whole_voxels((size,) * 3, 4 / 7, up=True)[0] == high


def test_choices_follow_their_probability_and_the_generator():
    chosen = draw_chosen(5000, 0.3, generator())
    assert abs(sum(chosen) / 5000 - 0.3) < 0.03
    assert not any(draw_chosen(50, 0.0, generator()))
    assert all(draw_chosen(50, 1.0, generator()))
    assert draw_seeds(3, generator(1)) == draw_seeds(3, generator(1))
    assert len(set(draw_seeds(3, generator(1)) + draw_seeds(3, generator(2)))) == 6
