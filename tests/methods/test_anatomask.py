import numpy as np
import pytest
import torch
from architectures import backbone
from torch.nn.functional import avg_pool3d

from ssl_pretrain.functional.losses import cell_errors, cell_statistics
from ssl_pretrain.functional.masking import count_hard, random_mask, sample_masks
from ssl_pretrain.functional.patches import from_cells, to_cells
from ssl_pretrain.functional.schedules import ema_decay
from ssl_pretrain.methods import AnatoMask, AnatoMaskConfig, MethodSetup, RunLength
from ssl_pretrain.methods.anatomask import COARSE_WEIGHT
from ssl_pretrain.methods.masking import Hidden

PATCH = (16, 16, 16)


def anatomask(epochs: int = 10, batch_size: int = 4, **config) -> AnatoMask:
    torch.manual_seed(0)
    setup = MethodSetup(backbone=backbone(), patch=PATCH, length=RunLength(epochs, 5, batch_size), seed=1)
    return AnatoMask(AnatoMaskConfig(**{"mask_cell": (4, 4, 4), **config}), setup).train()


def coarse(**config) -> AnatoMask:
    """Cells of 8 voxels per axis are rated at stride 2; those of 4 at the resolution of the image."""
    return anatomask(mask_cell=(8, 8, 8), teacher="coarse", **config)


def image(size: int = 2) -> torch.Tensor:
    return torch.randn(size, 1, *PATCH, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, sample]) for sample in range(count)]


def at_epoch(method: AnatoMask, epoch: int, monkeypatch) -> None:
    monkeypatch.setattr(AnatoMask, "current_epoch", property(lambda self: epoch))


@pytest.mark.parametrize("made", [anatomask, coarse])
def test_the_teacher_starts_as_the_student_and_gets_no_gradient(made):
    method = made()
    ours = dict(method.student.named_parameters())
    for name, theirs in method.teacher.module.named_parameters():
        assert torch.equal(ours[name], theirs)
        assert ours[name] is not theirs
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


def target_of(method: AnatoMask) -> torch.Tensor:
    """The image, each cell normalised by its own mean and deviation."""
    cells = to_cells(image(), method.cell)
    mean, std = cell_statistics(cells)
    return from_cells((cells - mean) / std, method.cell, method.grid)


@pytest.mark.parametrize("kind", ["normalized", "intensity"])
def test_a_coarse_rating_is_the_error_against_pooled_targets_and_what_the_pool_leaves_out(kind):
    method = coarse(difficulty=kind)
    rated = method.rate({"image": image()}, generators(2, 5))
    mask = sample_masks(generators(2, 5), method.grid, method.masked, torch.device("cpu"))
    with torch.no_grad():
        predicted = method.teacher(image(), mask)
    assert predicted.shape == (2, 1, 8, 8, 8)
    target = target_of(method)
    pooled = avg_pool3d(target, 2)
    within = avg_pool3d(target.square(), 2) - pooled.square()
    expected = to_cells((predicted - pooled).square() + within, (4, 4, 4)).mean(2)
    if kind == "intensity":
        expected = expected * cell_statistics(to_cells(image(), method.cell))[1].squeeze(2).square()
    torch.testing.assert_close(rated.flatten(1)[mask.flatten(1)], expected[mask.flatten(1)])


def test_a_coarse_teacher_is_a_full_one_where_its_level_is_the_finest():
    one, other = anatomask(teacher="coarse"), anatomask(teacher="full")
    assert list(one.state_dict()) == list(other.state_dict())
    assert torch.equal(*(method.rate({"image": image()}, generators(2)) for method in (one, other)))


@pytest.mark.parametrize(("difficulty", "coarse"), [("intensity", True), ("reference", False), ("normalized", False)])
def test_by_default_the_teacher_is_coarse_where_that_ranks_as_a_full_one_does(difficulty, coarse):
    made = anatomask(mask_cell=(8, 8, 8), difficulty=difficulty)
    assert (made.student.decoder.coarse is not None) == coarse
    assert (made.networks()[1].decoder.head is None) == coarse


@pytest.mark.parametrize(
    ("teacher", "difficulty", "level"),
    [("full", "intensity", None), ("coarse", "intensity", 1), ("coarse", "normalized", 1)],
)
def test_the_teacher_is_coarse_where_that_is_asked_for(teacher, difficulty, level):
    made = anatomask(mask_cell=(8, 8, 8), teacher=teacher, difficulty=difficulty)
    assert made.student.decoder.coarse == level


def test_a_coarse_teacher_has_nothing_finer_than_its_image():
    method = coarse()
    theirs, ours = (set(n.state_dict()) for n in (method.teacher.module, method.student))
    assert theirs < ours
    assert all(name.startswith(("decoder.blocks.1.", "decoder.head.", "densify.1.")) for name in ours - theirs)
    costs = [made.multiply_adds()["teacher"] for made in (method, anatomask(mask_cell=(8, 8, 8), teacher="full"))]
    assert costs[0] < costs[1] / 2


def test_the_loss_is_that_of_the_fine_image_and_the_coarse_one_learns_pooled_targets(monkeypatch):
    method = coarse()
    mask = sample_masks(generators(2, 5), method.grid, method.masked, torch.device("cpu"))
    monkeypatch.setattr(method, "choose", lambda batch, generator: Hidden(mask, method.masked))
    loss = method({"image": image()}, generator()).loss
    both = method.student.both(image(), mask)
    hidden = mask.flatten(1)
    cells = to_cells(image(), method.cell)
    fine = cell_errors(to_cells(both[0], method.cell), cells)[hidden].mean()
    torch.testing.assert_close(loss, fine)
    pooled = to_cells((both[1] - avg_pool3d(target_of(method), 2)).square(), (4, 4, 4)).mean(2)[hidden].mean()
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, fine + COARSE_WEIGHT * pooled))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


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


@pytest.mark.parametrize("made", [anatomask, coarse])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_teacher_moves_by_one_minus_the_decay_buffers_included(epoch, made, monkeypatch):
    method = made(decoder_norm="batch")
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
