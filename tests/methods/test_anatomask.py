import numpy as np
import pytest
import torch
from architectures import backbone

from ssl_pretrain.functional.losses import cell_errors
from ssl_pretrain.functional.masking import count_hard, random_mask, sample_masks
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.functional.schedules import ema_decay
from ssl_pretrain.methods import AnatoMask, AnatoMaskConfig, MethodSetup, RunLength

PATCH = (16, 16, 16)


def anatomask(epochs: int = 10, batch_size: int = 4, **config) -> AnatoMask:
    torch.manual_seed(0)
    setup = MethodSetup(backbone=backbone(), patch=PATCH, length=RunLength(epochs, 5, batch_size), seed=1)
    return AnatoMask(AnatoMaskConfig(mask_cell=(4, 4, 4), **config), setup).train()


def image(size: int = 2) -> torch.Tensor:
    return torch.randn(size, 1, *PATCH, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, sample]) for sample in range(count)]


def at_epoch(method: AnatoMask, epoch: int, monkeypatch) -> None:
    monkeypatch.setattr(AnatoMask, "current_epoch", property(lambda self: epoch))


def test_the_teacher_starts_as_the_student_and_gets_no_gradient():
    method = anatomask()
    for ours, theirs in zip(method.student.parameters(), method.teacher.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
        assert not theirs.requires_grad
    method({"image": image(), "case": ["a"], "index": [0]}, generator()).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


def test_the_hardest_rated_cells_are_masked(monkeypatch):
    method = anatomask()
    at_epoch(method, 6, monkeypatch)
    hidden = method.choose({"image": image()}, generator())
    expected = count_hard(method.masked, 6, 10)
    assert expected > 0
    assert hidden.mask.flatten(1).sum(1).tolist() == [method.masked] * 2
    assert hidden.hard.flatten(1).sum(1).tolist() == [expected] * 2
    for difficulty, hard in zip(hidden.difficulty.flatten(1), hidden.hard.flatten(1), strict=True):
        assert difficulty[hard].min() >= difficulty[~hard].max()


def test_difficulty_is_the_teachers_error_on_the_cells_of_one_random_mask():
    method = anatomask(difficulty="normalized")
    rated = method.rate({"image": image()}, generators(2, 5))
    mask = sample_masks(generators(2, 5), method.grid, method.masked, torch.device("cpu"))
    method.teacher.eval()
    with torch.no_grad():
        predicted = to_cells(method.teacher(image(), mask), method.cell)
    errors = cell_errors(predicted, to_cells(image(), method.cell)).view_as(mask)
    assert torch.equal(rated == -torch.inf, ~mask)
    torch.testing.assert_close(rated[mask], errors[mask])


def test_more_teacher_masks_rate_more_cells():
    one, many = (anatomask(teacher_masks=k).rate({"image": image()}, generators(2)) for k in (1, 8))
    assert (one == -torch.inf).float().mean() == pytest.approx(0.4, abs=0.01)
    assert not torch.isinf(many).any()


def test_the_three_difficulties_differ():
    ratings = [
        anatomask(difficulty=k).rate({"image": image()}, generators(2))
        for k in ("intensity", "normalized", "reference")
    ]
    assert not torch.allclose(ratings[0], ratings[1])
    assert not torch.allclose(ratings[1], ratings[2])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_teacher_moves_by_one_minus_the_decay_buffers_included(epoch, monkeypatch):
    method = anatomask(decoder_norm="batch")
    at_epoch(method, epoch, monkeypatch)
    before = {k: v.clone() for k, v in method.teacher.module.state_dict().items()}
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    method.student(image(), random_mask(2, method.grid, method.masked, generator()))  # running statistics move
    method.update_teachers()
    decay = ema_decay(epoch, 10)
    for key, value in method.teacher.module.state_dict().items():
        student = method.student.state_dict()[key]
        expected = decay * before[key] + (1 - decay) * student if value.is_floating_point() else student
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    counters = [v for k, v in method.teacher.module.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters
    assert all(int(c) == 1 for c in counters)


def test_the_teacher_rates_in_evaluation_mode_and_its_statistics_stay():
    method = anatomask(decoder_norm="batch")
    before = {k: v.clone() for k, v in method.teacher.module.named_buffers()}
    method.rate({"image": image()}, generators(2))
    assert not method.teacher.training
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.module.named_buffers())


def test_validation_masks_are_random_and_repeatable():
    method = anatomask().eval()
    first, again = (method.choose({"image": image()}, generator(3)) for _ in range(2))
    assert torch.equal(first.mask, again.mask)
    assert first.hard is None


def test_the_picture_shows_difficulty_and_hard_cells(monkeypatch):
    method = anatomask().eval()
    at_epoch(method, 8, monkeypatch)
    *_, rating = method.panels({"image": image(), "case": ["a"], "index": [0]}, generator())
    assert rating.kind == "rating"
    assert rating.outlined.sum() == count_hard(method.masked, 8, 10)
    assert torch.isnan(rating.values).any()
    assert not torch.isinf(rating.values).any()


def test_the_log_says_how_many_cells_were_chosen_for_being_hard(monkeypatch):
    method = anatomask()
    at_epoch(method, 6, monkeypatch)
    log = method({"image": image(), "case": ["a"], "index": [0]}, generator()).log
    assert log["hard_fraction"] == pytest.approx(count_hard(method.masked, 6, 10) / method.masked)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"teacher_masks": 0}, "teacher_masks must be at least 1"),
        ({"hard_share": 1.5}, "hard_share must lie between 0 and 1"),
        ({"ema_start": -0.1}, "ema_start must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AnatoMaskConfig(**config)


def batch_with_ignored() -> dict:
    """Two images whose first octant is not to be looked at."""
    ignored = torch.zeros(2, 1, *PATCH, dtype=torch.bool)
    ignored[..., :8, :8, :8] = True
    return {"image": image(), "case": ["a", "b"], "index": list(range(2)), "ignored": ignored}


def test_the_target_in_ignored_voxels_has_no_influence_on_the_loss(monkeypatch):
    """The prediction is held still: the network itself does see a voxel that is ignored, where it is not masked."""
    method, batch = anatomask(), batch_with_ignored()
    predicted = torch.randn(2, 64, 64, generator=generator(3))
    monkeypatch.setattr(method, "cells_by", lambda network, images, hidden: predicted)
    plain = method(batch, generator()).loss
    octant = {**batch, "image": torch.where(batch["ignored"], 50.0, batch["image"])}
    elsewhere = {**batch, "image": torch.where(batch["ignored"], batch["image"], batch["image"] ** 3)}
    assert torch.equal(method(octant, generator()).loss, plain)
    assert not torch.allclose(method(elsewhere, generator()).loss, plain)


def test_a_cell_without_a_voxel_that_counts_is_never_hard(monkeypatch):
    method, batch = anatomask(), batch_with_ignored()
    at_epoch(method, 9, monkeypatch)
    hidden = method.choose(batch, generator())
    assert hidden.difficulty[:, :2, :2, :2].isinf().all()
    assert not hidden.hard[:, :2, :2, :2].any()
    assert hidden.hard.any()
    assert len(method.panels(batch, generator())) == 5
