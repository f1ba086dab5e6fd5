"""What a training does in which epoch."""

import warnings

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from ssl_pretrain.finetuning.mixins import FACTOR, CourseLR
from ssl_pretrain.finetuning.schedules import KINDS, SAWTOOTH, WARMUP, Phase, Schedule, course_of, scaled

EVERY = [Schedule(kind, {"frozen": 4, "llrd": 0.75}.get(kind, 0)) for kind in KINDS]


def course(kind, epochs, value=0):
    return course_of(Schedule(kind, value), epochs)


def sgd():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
    groups[1][FACTOR] = 0.75
    return torch.optim.SGD(groups, lr=0.5, momentum=0.99, nesterov=True)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1 / 50), (24, 0.5), (49, 1.0), (50, 1.0), (51, (949 / 950) ** 0.9), (525, 0.5**0.9), (999, (1 / 950) ** 0.9)],
)
def test_warmup_rises_over_50_epochs_and_then_decays_to_the_thousandth(epoch, factor):
    assert course("warmup", 1000).rate(epoch, 1e-3) == pytest.approx(1e-3 * factor, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        *((0, 1 / 25), (12, 13 / 25), (24, 1.0)),  # the decoder's warm-up
        *((25, 1.0), (26, (24 / 25) ** 0.9), (49, (1 / 25) ** 0.9)),  # the decoder
        *((50, 1 / 50), (74, 0.5), (99, 1.0)),  # the whole network's warm-up
        *((100, 1.0), (550, 0.5**0.9), (999, (1 / 900) ** 0.9)),  # the whole network
    ],
)
def test_sawtooth_has_two_teeth(epoch, factor):
    assert course("sawtooth", 1000).rate(epoch, 1e-3) == pytest.approx(1e-3 * factor, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 3, 150, 1000])
def test_default_is_nnunets_own_schedule_to_the_last_bit(epochs):
    optimizer = sgd()
    theirs = PolyLRScheduler(optimizer, 1e-2, epochs)
    for epoch in range(epochs):
        theirs.step(epoch)
        assert course("default", epochs).rate(epoch, 1e-2) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", ["frozen", "llrd"])
def test_the_others_have_the_rate_of_the_warmup(kind):
    other = course(kind, 200, 30 if kind == "frozen" else 0.75)
    assert other.teeth == course("warmup", 200).teeth


@pytest.mark.parametrize(
    ("kind", "value", "epochs", "phases"),
    [
        ("default", 0, 1000, [("whole network, decay", 0, 1000, False)]),
        ("warmup", 0, 1000, [("whole network, warm-up", 0, 50, False), ("whole network, decay", 50, 1000, False)]),
        (
            *("sawtooth", 0, 150),
            [
                ("encoder frozen, warm-up", 0, 7, True),
                ("encoder frozen, decay", 7, 15, True),
                ("whole network, warm-up", 15, 30, False),
                ("whole network, decay", 30, 150, False),
            ],
        ),
        (
            *("frozen", 20, 1000),
            [
                ("encoder frozen, warm-up", 0, 20, True),
                ("whole network, warm-up", 20, 50, False),
                ("whole network, decay", 50, 1000, False),
            ],
        ),
        ("frozen", 10, 10, [("encoder frozen, warm-up", 0, 1, True), ("encoder frozen, decay", 1, 10, True)]),
    ],
)
def test_phases(kind, value, epochs, phases):
    assert list(course(kind, epochs, value).phases) == [Phase(*phase) for phase in phases]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.kind)
@pytest.mark.parametrize("epochs", [4, 5, 17, 150, 999, 2500])
def test_phases_and_teeth_cover_every_epoch_once(schedule, epochs):
    whole = course_of(schedule, epochs)
    for parts in (whole.phases, whole.teeth):
        covered = [epoch for part in parts for epoch in range(part.start, part.end)]
        assert covered == list(range(epochs))
        assert all(part.start < part.end for part in parts)
    for epoch in (0, epochs // 2, epochs - 1):
        phase = whole.phase(epoch)
        assert phase.start <= epoch < phase.end
        assert phase.frozen == (epoch < whole.frozen)
        assert 0 < whole.rate(epoch, 1.0) <= 1.0
    assert max(whole.rate(epoch, 1.0) for epoch in range(epochs)) == 1.0
    assert whole.rate(epochs, 1.0) == whole.rate(epochs + 9, 1.0) == 0.0
    assert whole.phase(epochs) == whole.phases[-1]


def test_lengths_are_the_published_ones_and_in_proportion_elsewhere():
    assert [scaled(WARMUP, epochs) for epochs in (1000, 300, 150, 100, 2000)] == [50, 15, 8, 5, 100]
    assert scaled(WARMUP, 1) == 1
    for part in range(3):
        published = {run: lengths[part] for run, lengths in SAWTOOTH.items()}
        assert {run: scaled(published, run) for run in published} == published
        assert scaled(published, 2000) == 2 * published[1000]
        lengths = [scaled(published, epochs) for epochs in range(1, 1500)]
        assert lengths == sorted(lengths)
    assert scaled({150: 7, 1000: 25}, 575) == 16  # halfway
    assert scaled({150: 7, 1000: 25}, 75) == 4  # half of 7, halves go up


def test_layers_are_slower_the_further_they_are_from_the_decoder():
    assert [Schedule("llrd", 0.5).layer_factor(depth) for depth in range(4)] == [1.0, 0.5, 0.25, 0.125]
    assert Schedule("warmup").layer_factor(3) == 1.0


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("cosine", 0, "Unknown schedule 'cosine'. Choose from default, warmup, sawtooth, frozen, llrd"),
        ("frozen", 0, "whole number N >= 1 of epochs, got 0"),
        ("frozen", 2.5, "whole number N >= 1 of epochs, got 2.5"),
        ("llrd", 0, "between 0 and 1, such as 0.75, got 0"),
        ("llrd", 1, "between 0 and 1, such as 0.75, got 1"),
    ],
)
def test_impossible_schedules_are_refused(kind, value, message):
    with pytest.raises(ValueError, match=message):
        Schedule(kind, value)


@pytest.mark.parametrize(
    ("kind", "value", "epochs", "message"),
    [
        ("warmup", 0, 0, "at least 1 epoch, got 0"),
        ("sawtooth", 0, 3, "four parts and needs at least 4 epochs, but the run has 3"),
        ("frozen", 20, 10, "for 20 epochs, and the run has 10. Use frozen10 to freeze it all the time, or fewer"),
    ],
)
def test_too_few_epochs_are_refused(kind, value, epochs, message):
    with pytest.raises(ValueError, match=message):
        course(kind, epochs, value)


def test_the_scheduler_follows_the_epochs_nnunet_gives_it_silently():
    optimizer, whole = sgd(), course("sawtooth", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = CourseLR(optimizer, whole, 1e-3)
        rates = []
        for epoch in range(200):
            scheduler.step(epoch)
            rates.append([group["lr"] for group in optimizer.param_groups])
    expected = [whole.rate(epoch, 1e-3) for epoch in range(200)]
    assert rates == [[rate, rate * 0.75] for rate in expected]
    assert scheduler.get_last_lr() == rates[-1]


def test_the_scheduler_begins_with_the_first_rate_and_goes_on_by_itself():
    optimizer = sgd()
    scheduler = CourseLR(optimizer, course("warmup", 200), peak=1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.15])


def test_a_resumed_run_has_the_rate_of_its_epoch():
    optimizer, whole = sgd(), course("warmup", 1000)
    CourseLR(optimizer, whole, 1e-3).step(700)
    assert optimizer.param_groups[0]["lr"] == whole.rate(700, 1e-3)
