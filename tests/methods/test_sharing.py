"""What is random in a sample follows from its number, so that processes may share the work."""

import pytest
import torch
from cells import batch_for, build, generator, network_for

from ssl_pretrain.methods import METHODS
from ssl_pretrain.methods.base import TRAIN_STREAM, VALIDATION_STREAM

WHOLE = [(method, network_for(method)) for method in METHODS]


def part_of(batch, first: int, last: int):
    return {name: values[first:last] for name, values in batch.items() if name != "seeds"}


@pytest.mark.parametrize(("method", "network"), WHOLE)
def test_two_processes_draw_for_a_batch_what_one_would(method, network, monkeypatch):
    """Samples of one batch, in one piece and as two processes see them."""
    made = build(method, network).train()
    crops = made.sample_views.count
    batch = {**batch_for(made, size=2), "index": [7 * crops + i for i in range(2 * crops)]}
    seen = []
    monkeypatch.setattr(made, "forward", lambda batch, own: seen.append((batch["seeds"], own.initial_seed())))
    for rank, part in enumerate((batch, part_of(batch, 0, crops), part_of(batch, crops, 2 * crops))):
        monkeypatch.setattr(
            type(made), "global_rank", property(lambda self, rank=rank: max(rank - 1, 0)), raising=False
        )
        with pytest.raises(AttributeError):  # there is no output
            made.training_step(part, 0)
    (whole, common), (first, same), (second, too) = seen
    assert whole == [*first, *second]
    assert len(set(whole)) == 2
    assert common == same == too, "what a whole batch has in common"


@pytest.mark.parametrize(("method", "network"), WHOLE)
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(method, network):
    settings = {"drop_path": 0.0} if hasattr(METHODS[method].Config, "drop_path") else {}
    made = build(method, network, **settings).train()
    if made.sample_views.count > 1:
        pytest.skip("what has several views compares samples: Dice, or negatives, of a whole batch")
    batch = batch_for(made, size=2)
    with torch.no_grad():
        losses = [
            made(made.seeded(part, TRAIN_STREAM), generator()).loss
            for part in (batch, part_of(batch, 0, 1), part_of(batch, 1, 2))
        ]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(losses[1], losses[2], rtol=1e-4)


def test_volume_fusion_fuses_a_sample_by_its_number():
    made = build("VolumeFusion", "plans")
    batch = batch_for(made, size=2)
    whole = made.fuse(made.seeded(batch, TRAIN_STREAM), generator(1))
    second = made.fuse(made.seeded(part_of(batch, 2, 4), TRAIN_STREAM), generator(2))
    assert torch.equal(whole.images[1:], second.images)
    assert torch.equal(whole.labels[1:], second.labels)


def test_training_and_validation_and_other_seeds_draw_differently():
    made = build("MAE", "plans")
    batch = batch_for(made)
    drawn = [made.seeded(batch, stream)["seeds"] for stream in (TRAIN_STREAM, VALIDATION_STREAM)]
    made.seed += 1
    drawn.append(made.seeded(batch, TRAIN_STREAM)["seeds"])
    assert len({seed for seeds in drawn for seed in seeds}) == 6
