import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_pretrain.functional.masking import count_hard, count_masked, guided_mask, random_mask, repeat_to, sample_masks
from ssl_pretrain.functional.seeding import derive_seed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, sample]) for sample in range(count)]


def test_published_counts():
    assert count_masked(392, 0.6) == 235
    assert [count_hard(235, e, 1000) for e in (0, 7, 8, 100, 500, 998, 999)] == [0, 0, 1, 11, 58, 117, 117]


def test_a_run_of_one_epoch_ends_the_ramp():
    assert count_hard(100, 0, 1) == 50


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_ratios_outside_zero_and_one_are_refused(ratio):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        count_masked(100, ratio)


@pytest.mark.parametrize(("ratio", "state"), [(0.01, "masked"), (0.99, "visible")])
def test_a_ratio_that_leaves_no_cell_masked_or_visible_is_refused(ratio, state):
    with pytest.raises(ValueError, match=f"leaves no cell {state}"):
        count_masked(8, ratio)


@given(
    batch=st.integers(1, 4),
    grid=st.tuples(*[st.integers(1, 5)] * 3).filter(lambda g: g[0] * g[1] * g[2] > 1),
    data=st.data(),
)
def test_every_sample_has_exactly_the_asked_number(batch, grid, data):
    cells = grid[0] * grid[1] * grid[2]
    masked = data.draw(st.integers(1, cells - 1))
    mask = random_mask(batch, grid, masked, generator())
    assert mask.shape == (batch, *grid)
    assert mask.flatten(1).sum(1).tolist() == [masked] * batch


def test_the_generator_decides_and_samples_differ():
    first, again, other = (random_mask(2, (4, 4, 4), 32, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_every_cell_is_masked_equally_often():
    share = random_mask(4000, (3, 3, 2), 11, generator()).float().mean(0)
    assert (share - 11 / 18).abs().max() < 0.04


@given(hard=st.integers(0, 20), seed=st.integers(0, 50))
def test_the_hardest_cells_are_masked_and_the_count_is_kept(hard, seed):
    difficulty = torch.rand(3, 4, 4, 2, generator=generator(seed))
    mask, chosen = guided_mask(difficulty, 20, hard, generators(len(difficulty), seed + 1))
    assert mask.flatten(1).sum(1).tolist() == [20] * 3
    assert chosen.flatten(1).sum(1).tolist() == [hard] * 3
    assert bool((mask | ~chosen).all())
    for rated, picked in zip(difficulty.flatten(1), chosen.flatten(1), strict=True):
        if hard:
            assert rated[picked].min() >= rated[~picked].max()


def test_cells_that_nobody_rated_are_never_hard():
    difficulty = torch.rand(2, 3, 3, 3, generator=generator())
    difficulty[:, 0] = -torch.inf
    _, chosen = guided_mask(difficulty, 16, 10, generators(len(difficulty)))
    assert not chosen[:, 0].any()


def test_the_masks_of_a_sample_do_not_depend_on_the_others():
    cpu = torch.device("cpu")
    three = sample_masks(generators(3), (4, 3, 2), 11, cpu, each=2)
    assert three.shape == (6, 4, 3, 2)
    assert three.flatten(1).sum(1).tolist() == [11] * 6
    alone = sample_masks(generators(3)[1:2], (4, 3, 2), 11, cpu, each=2)
    assert torch.equal(three[2:4], alone)
    assert len({tuple(mask.flatten().tolist()) for mask in three}) == 6


def test_without_hard_cells_a_guided_mask_is_uniform():
    difficulty = torch.arange(16.0).view(1, 4, 2, 2).expand(4000, -1, -1, -1)
    share = guided_mask(difficulty, 8, 0, generators(len(difficulty)))[0].float().mean(0)
    assert (share - 0.5).abs().max() < 0.05


def test_repeating_fills_whole_cells():
    cells = torch.arange(2 * 2 * 3 * 1).view(2, 2, 3, 1)
    voxels = repeat_to(cells, (4, 9, 2))
    assert voxels.shape == (2, 4, 9, 2)
    assert torch.equal(voxels[:, ::2, ::3, ::2], cells)
    assert torch.equal(voxels[:, 1::2, 2::3, 1::2], cells)


def test_a_map_without_whole_cells_is_refused():
    with pytest.raises(ValueError, match="does not hold whole cells"):
        repeat_to(torch.ones(1, 2, 2, 2), (4, 4, 5))


def test_seeds_of_different_paths_differ():
    seeds = {derive_seed(0, stream, step) for stream in range(3) for step in range(100)}
    assert len(seeds) == 300
    assert derive_seed(7, 1, 2) == derive_seed(7, 1, 2) != derive_seed(8, 1, 2)


def test_cells_that_nobody_rated_are_never_hard_however_many_are_wanted():
    difficulty = torch.full((2, 4, 4, 4), -torch.inf)
    difficulty[:, 0, 0, :2] = 1.0
    mask, hard = guided_mask(difficulty, 40, 19, generators(len(difficulty)))
    assert hard.flatten(1).sum(1).tolist() == [2, 2]
    assert mask.flatten(1).sum(1).tolist() == [40, 40]
    assert not torch.equal(mask[0], mask[1]), "what is not hard is random"
