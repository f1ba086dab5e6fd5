import numpy as np
import pytest
import torch

from ssl_pretrain.functional.segmentation_loss import segmentation_loss

SHAPE = (3, 4, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(samples=2, classes=4):
    logits = torch.randn(samples, classes, *SHAPE, generator=generator())
    labels = torch.randint(classes, (samples, *SHAPE), generator=generator(1))
    return logits, labels


def voxel_by_voxel(logits, labels, counted):
    """(cross-entropy, Dice loss) by the definitions, in float64."""
    samples, classes = logits.shape[:2]
    surprise, dice = [], []
    for sample in range(samples):
        met, predicted, true = np.zeros(classes), np.zeros(classes), np.zeros(classes)
        for place in np.ndindex(*SHAPE):
            if not counted[(sample, *place)]:
                continue
            powers = np.exp(logits[(sample, slice(None), *place)].astype(np.float64))
            p, label = powers / powers.sum(), labels[(sample, *place)]
            surprise.append(-np.log(p[label]))
            predicted += p
            true[label] += 1
            met[label] += p[label]
        dice.append((2 * met + 1e-5) / (predicted + true + 1e-5))
    return np.mean(surprise), 1 - np.mean(dice)


@pytest.mark.parametrize("all_count", [True, False])
def test_both_parts_are_those_of_a_sum_voxel_by_voxel(all_count):
    logits, labels = example()
    counted = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    if not all_count:
        counted = torch.rand(2, 1, *SHAPE, generator=generator(2)) < 0.6
    loss = segmentation_loss(logits, labels, None if all_count else counted)
    expected = voxel_by_voxel(logits.numpy(), labels.numpy(), counted[:, 0].numpy())
    np.testing.assert_allclose([loss.cross_entropy.item(), loss.dice.item()], expected, rtol=1e-5)


def test_a_certain_and_right_answer_costs_nothing_even_where_a_class_is_missing():
    labels = torch.zeros(1, *SHAPE, dtype=torch.int64)
    labels[0, 1] = 2
    logits = 100.0 * torch.nn.functional.one_hot(labels, 5).permute(0, 4, 1, 2, 3).float()
    loss = segmentation_loss(logits, labels)
    assert loss.cross_entropy.item() == pytest.approx(0, abs=1e-6)
    assert loss.dice.item() == pytest.approx(0, abs=1e-6)


def test_dice_is_a_mean_over_samples_and_not_over_their_voxels_together():
    logits, labels = example()
    together = segmentation_loss(logits, labels).dice
    alone = [segmentation_loss(logits[i : i + 1], labels[i : i + 1]).dice for i in range(2)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_voxels_that_do_not_count_change_nothing():
    logits, labels = example()
    counted = torch.rand(2, 1, *SHAPE, generator=generator(2)) < 0.5
    others = torch.where(counted, logits, 5 * torch.randn(logits.shape, generator=generator(3)))
    relabelled = torch.where(counted[:, 0], labels, 3 - labels)
    first, second = segmentation_loss(logits, labels, counted), segmentation_loss(others, relabelled, counted)
    torch.testing.assert_close(torch.stack(first), torch.stack(second))


def test_nothing_to_count_is_finite_and_has_a_finite_gradient():
    logits, labels = example()
    logits.requires_grad_()
    loss = segmentation_loss(logits, labels, torch.zeros(2, 1, *SHAPE))
    (loss.cross_entropy + loss.dice).backward()
    assert torch.stack(loss).isfinite().all()
    assert logits.grad.isfinite().all()


def test_following_the_gradient_makes_both_parts_smaller():
    logits, labels = example()
    logits.requires_grad_()
    before = segmentation_loss(logits, labels)
    (before.cross_entropy + before.dice).backward()
    after = segmentation_loss(logits.detach() - 10 * logits.grad, labels)
    assert after.cross_entropy < before.cross_entropy
    assert after.dice < before.dice


def test_half_precision_logits_are_summed_in_single_precision():
    logits, labels = example()
    loss = segmentation_loss(logits.bfloat16(), labels)
    exact = segmentation_loss(logits.bfloat16().float(), labels)
    assert loss.dice.dtype == torch.float32
    assert torch.equal(torch.stack(loss), torch.stack(exact))


def test_labels_of_another_shape_are_refused():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"Logits \(2, 4, 3, 4, 5\) must be \(B, K, D, H, W\) and labels"):
        segmentation_loss(logits, labels[:, None])
