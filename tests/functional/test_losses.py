from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_pretrain.functional.losses import CELL_EPS, cell_difficulty, cell_errors, cell_statistics, masked_mean
from ssl_pretrain.functional.patches import from_cells, to_cells
from ssl_pretrain.functional.schedules import ema_decay, warmup_cosine


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    cell=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_cells_and_back_is_the_identity(batch, channels, grid, cell):
    shape = [g * c for g, c in zip(grid, cell, strict=True)]
    volume = torch.arange(float(batch * channels * shape[0] * shape[1] * shape[2])).view(batch, channels, *shape)
    cells = to_cells(volume, cell)
    assert cells.shape == (batch, grid[0] * grid[1] * grid[2], cell[0] * cell[1] * cell[2] * channels)
    assert torch.equal(from_cells(cells, cell, grid), volume)


def test_a_row_holds_the_voxels_of_one_cell():
    volume = torch.zeros(1, 2, 4, 4, 4)
    volume[:, :, 2:, :2, 2:] = 1.0
    cells = to_cells(volume, (2, 2, 2))
    assert cells[0].sum(1).tolist() == [0, 0, 0, 0, 0, 16, 0, 0]


def test_errors_are_against_the_cell_normalised_with_unbiased_variance():
    cells = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    std = (torch.tensor([1.0, 2, 3, 6]).var(unbiased=True) + CELL_EPS).sqrt()
    expected = (((torch.tensor([1.0, 2, 3, 6]) - 3) / std) ** 2).mean()
    assert cell_errors(torch.zeros_like(cells), cells).item() == pytest.approx(expected.item())


def test_a_constant_cell_has_target_zero():
    cells = torch.full((1, 1, 64), -3.7)
    assert cell_errors(torch.zeros_like(cells), cells).item() < 1e-6


def test_difficulty_in_intensities_is_the_error_after_undoing_the_normalisation():
    torch.manual_seed(0)
    cells, prediction = torch.randn(2, 5, 27) * 4 + 2, torch.randn(2, 5, 27)
    mean, std = cell_statistics(cells)
    undone = (prediction * std + mean - cells).square().mean(2)
    torch.testing.assert_close(cell_difficulty(prediction, cells, "intensity"), undone)
    torch.testing.assert_close(cell_difficulty(prediction, cells, "normalized"), cell_errors(prediction, cells))
    torch.testing.assert_close(cell_difficulty(prediction, cells, "reference"), (prediction - cells).square().mean(2))


def test_the_three_difficulties_rank_air_tissue_and_edge_differently():
    """Air is constant and far from 0, tissue is noise, the edge is structure that is predicted imperfectly."""
    torch.manual_seed(0)
    air, tissue = torch.full((1, 1, 512), -2.0), 0.1 * torch.randn(1, 1, 512)
    edge = torch.cat([torch.zeros(256), torch.ones(256)]).view(1, 1, -1)
    cells = torch.cat([air, tissue, edge], dim=1)
    mean, std = cell_statistics(cells)
    prediction = torch.zeros_like(cells)
    prediction[:, 2] = 0.6 * ((cells - mean) / std)[:, 2]
    hardest = {k: int(cell_difficulty(prediction, cells, k).argmax()) for k in ("intensity", "normalized", "reference")}
    assert hardest == {"intensity": 2, "normalized": 1, "reference": 0}


def test_only_masked_cells_count():
    errors = torch.tensor([[1.0, 100.0], [3.0, 100.0]])
    assert masked_mean(errors, torch.tensor([[True, False], [True, False]])).item() == 2.0


def test_warm_up_and_cosine():
    factors = [warmup_cosine(s, 10, 110, 0.01) for s in range(111)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert warmup_cosine(0, 0, 10, 0.01) == 1.0


def test_ema_decay_rises_over_the_first_quarter():
    assert ema_decay(0, 1000) == 0.999
    assert ema_decay(125, 1000) == pytest.approx(0.99945)
    assert ema_decay(250, 1000) == ema_decay(999, 1000) == pytest.approx(0.9999)


def ignoring(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells, a prediction, and which voxels count: all, some, one, none."""
    torch.manual_seed(seed)
    counted = torch.ones(1, 4, 27)
    counted[0, 1, 5:20] = 0
    counted[0, 2, 1:] = 0
    counted[0, 3] = 0
    return torch.randn(1, 4, 27) * 3 + 1, torch.randn(1, 4, 27), counted


@pytest.mark.parametrize("kind", ["intensity", "normalized", "reference"])
def test_when_all_voxels_count_nothing_changes(kind):
    cells, prediction, _ = ignoring()
    ones, mask = torch.ones_like(cells), torch.tensor([[True, False, True, True]])
    plain, same = cell_errors(prediction, cells), cell_errors(prediction, cells, ones)
    torch.testing.assert_close(same, plain)
    torch.testing.assert_close(cell_difficulty(prediction, cells, kind, ones), cell_difficulty(prediction, cells, kind))
    torch.testing.assert_close(masked_mean(same, mask, ones), masked_mean(plain, mask))


@pytest.mark.parametrize("kind", ["intensity", "normalized", "reference"])
def test_ignored_voxels_have_no_influence_and_the_others_are_normalised_among_themselves(kind):
    cells, prediction, counted = ignoring()
    changed = torch.where(counted > 0, cells, torch.full_like(cells, 1e4))
    torch.testing.assert_close(cell_errors(prediction, changed, counted), cell_errors(prediction, cells, counted))
    found = cell_difficulty(prediction, changed, kind, counted)
    torch.testing.assert_close(found, cell_difficulty(prediction, cells, kind, counted))
    few = counted[0, 1] > 0
    alone = cell_difficulty(prediction[:, 1:2, few], cells[:, 1:2, few], kind)
    torch.testing.assert_close(found[:, 1:2], alone)
    assert found[0, 3] == 0


def test_the_loss_is_the_mean_over_masked_voxels_that_count():
    cells, prediction, counted = ignoring()
    errors = cell_errors(prediction, cells, counted)
    mask = torch.tensor([[True, True, False, True]])
    voxels = counted.sum(2)
    expected = (errors[0, 0] * voxels[0, 0] + errors[0, 1] * voxels[0, 1]) / (voxels[0, 0] + voxels[0, 1])
    torch.testing.assert_close(masked_mean(errors, mask, counted), expected)
    assert masked_mean(errors, torch.tensor([[False, False, False, True]]), counted) == 0
