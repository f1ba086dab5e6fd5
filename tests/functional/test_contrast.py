from math import exp, log

import pytest
import torch
from torch.nn import functional as F

from ssl_pretrain.functional.contrast import effective_rank, likeness, located, nt_xent, overlap_loss, uniformity

TEMPERATURE = 0.5


def unit(count: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def by_pairs(embeddings, partner, image=None):
    """The loss as the paper writes it, pair after pair."""
    losses = []
    for i, one in enumerate(embeddings):
        positive = exp(float(one @ embeddings[partner[i]]) / TEMPERATURE)
        negatives = [
            exp(float(one @ other) / TEMPERATURE)
            for j, other in enumerate(embeddings)
            if j not in (i, partner[i]) and (image is None or image[i] != image[j])
        ]
        losses.append(-log(positive / (positive + sum(negatives))))
    return sum(losses) / len(losses)


PARTNER = [4, 5, 6, 7, 0, 1, 2, 3]
IMAGE = [0, 0, 1, 2, 0, 0, 1, 2]
"""Two pairs of views of image 0, one of image 1 and one of image 2."""


@pytest.mark.parametrize("image", [None, IMAGE], ids=["same_image_negative", "same_image_left_out"])
def test_the_loss_is_that_of_a_loop_over_pairs(image):
    embeddings = unit(8)
    images = None if image is None else torch.tensor(image)
    loss = nt_xent(embeddings, embeddings, 0, torch.tensor(PARTNER), TEMPERATURE, images)
    assert float(loss) == pytest.approx(by_pairs(embeddings, PARTNER, image), rel=1e-6)


@pytest.mark.parametrize("image", [None, torch.tensor(IMAGE)], ids=["same_image_negative", "same_image_left_out"])
def test_two_processes_have_the_loss_of_one_on_all(image):
    embeddings, partner = unit(8), torch.tensor(PARTNER)
    whole = nt_xent(embeddings, embeddings, 0, partner, TEMPERATURE, image)
    halves = [nt_xent(embeddings[a : a + 4], embeddings, a, partner[a : a + 4], TEMPERATURE, image) for a in (0, 4)]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_the_loss_is_finite_where_everything_but_the_partner_is_left_out():
    embeddings = unit(2).requires_grad_()
    loss = nt_xent(embeddings, embeddings, 0, torch.tensor([1, 0]), TEMPERATURE, torch.zeros(2))
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(kind):
    embeddings = unit(64).to(kind)
    partner = torch.arange(64).roll(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(embeddings, embeddings, 0, partner, 0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(embeddings.float(), embeddings.float(), 0, partner, 0.01))


def test_the_effective_rank_counts_directions_of_equal_weight():
    directions = torch.linalg.qr(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)))[0].T
    spread = torch.cat([directions, -directions])
    assert float(effective_rank(spread)) == pytest.approx(5, rel=1e-5)
    assert float(effective_rank(spread[:1].expand(8, -1))) == 0.0
    line = torch.linspace(-1, 1, 9)[:, None] * directions[:1]
    assert float(effective_rank(line)) == pytest.approx(1, rel=1e-3)


def test_uniformity_is_0_for_a_collapsed_embedding_and_lower_for_a_spread_one():
    collapsed = unit(1).expand(20, -1)
    assert float(uniformity(collapsed)) == 0.0
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(opposite)) == pytest.approx(-8)
    assert float(uniformity(unit(200, 32))) < -3


def overlap_by_pairs(true, found, squared):
    """The loss of one image, crop after crop and base crop after base crop."""
    together, weight, wrong, apart = 0.0, 0.0, 0.0, 0
    for truths, answers in zip(true.tolist(), found.tolist(), strict=True):
        for truth, answer in zip(truths, answers, strict=True):
            surprise = -log(1 - abs(truth - answer) + 1e-6)
            if truth > 0:
                together, weight = together + truth * surprise, weight + truth
            else:
                wrong, apart = wrong + (answer**2 if squared else surprise), apart + 1
    return (together / weight if weight else 0) + (wrong / apart if apart else 0)


@pytest.mark.parametrize("squared", [True, False])
def test_the_loss_of_overlaps_is_that_of_a_loop(squared):
    generator = torch.Generator().manual_seed(0)
    true, found = torch.rand(2, 5, 3, 6, generator=generator).double()
    true[true < 0.5] = 0
    true[1] = 0  # an image whose crops overlap nothing
    true[2] += 0.01  # and one whose crops overlap everything
    found[3, 0, 0] = 1.0
    expected = [overlap_by_pairs(*image, squared) for image in zip(true, found, strict=True)]
    assert float(overlap_loss(true, found, squared=squared)) == pytest.approx(sum(expected) / 5, rel=1e-9)


def test_places_are_cosines_and_never_below_0():
    vectors, bases = unit(4), unit(6, seed=1)
    found = located(vectors[None], bases[None])[0]
    for i, j in ((i, j) for i in range(4) for j in range(6)):
        assert float(found[i, j]) == pytest.approx(max(0.0, float(vectors[i] @ bases[j])), abs=1e-6)
    assert (found == 0).any()
    assert overlap_loss(torch.ones(1, 1, 1), located(vectors[None, :1], vectors[None, :1]), squared=False) < 1e-5


@pytest.mark.parametrize("squared", [True, False])
def test_likeness_is_the_mean_over_pairs(squared):
    images = torch.stack([unit(5), unit(5, seed=1)])
    pairs = [
        max(0.0, float(vectors[i] @ vectors[j])) ** (2 if squared else 1)
        for vectors in images
        for i in range(5)
        for j in range(i + 1, 5)
    ]
    assert float(likeness(images, squared=squared)) == pytest.approx(sum(pairs) * 2 / (5 * 4) / 2, rel=1e-6)
