"""The fine-tuning schedule."""

import warnings

import pytest
import torch

from ssl_pretrain.transfer.finetune import WarmupPolyLR, warmup_poly


def sgd():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
    return torch.optim.SGD(groups, lr=0.5, momentum=0.99, nesterov=True)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1 / 50), (24, 0.5), (49, 1.0), (50, 1.0), (51, (949 / 950) ** 0.9), (525, 0.5**0.9), (999, (1 / 950) ** 0.9)],
)
def test_rate_rises_over_50_epochs_and_then_decays_to_the_thousandth(epoch, factor):
    assert warmup_poly(epoch, peak=1e-3, warmup=50, total=1000) == pytest.approx(1e-3 * factor, rel=1e-12)


def test_rate_at_the_ends():
    assert warmup_poly(1000, 1e-3, 50, 1000) == 0.0
    assert warmup_poly(1200, 1e-3, 50, 1000) == 0.0
    assert warmup_poly(0, 1e-3, 0, 10) == 1e-3
    assert warmup_poly(1, 1e-3, 50, 2) == pytest.approx(4e-5)


def test_scheduler_follows_the_epochs_nnunet_gives_it_silently():
    optimizer = sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = WarmupPolyLR(optimizer, peak=1e-3, total=1000, warmup=50)
        rates = []
        for epoch in range(1000):
            scheduler.step(epoch)
            rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [[warmup_poly(epoch, 1e-3, 50, 1000)] * 2 for epoch in range(1000)]
    assert max(rates) == rates[49] == [1e-3, 1e-3]
    assert scheduler.get_last_lr() == rates[-1]


def test_scheduler_begins_with_the_first_rate_and_goes_on_by_itself():
    optimizer = sgd()
    scheduler = WarmupPolyLR(optimizer, peak=1.0, total=100, warmup=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    scheduler.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.2)


def test_a_resumed_run_has_the_rate_of_its_epoch():
    optimizer = sgd()
    WarmupPolyLR(optimizer, peak=1e-3, total=1000).step(700)
    assert optimizer.param_groups[0]["lr"] == warmup_poly(700, 1e-3, 50, 1000)


@pytest.mark.parametrize(("total", "warmup"), [(0, 50), (10, -1)])
def test_impossible_schedules_are_refused(total, warmup):
    with pytest.raises(ValueError, match=f"total={total} and warmup={warmup}"):
        WarmupPolyLR(sgd(), 1e-3, total, warmup)
