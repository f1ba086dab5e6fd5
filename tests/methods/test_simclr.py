"""SimCLR: its loss against a loop over pairs, its views, its embeddings."""

import copy
from math import exp, log

import pytest
import torch
from cells import batch_for, build, families, generator

from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods.base import TRAIN_STREAM, Method
from ssl_pretrain.methods.heads import GatheredBatchNorm, pooled_features, pooled_width


def augmented(made, batch, seed=0):
    return made.augmented(batch, made.sample_generators(batch, generator(seed)))


def loop_over_pairs(embedded, cases, temperature, excluded):
    """The loss as the paper writes it, crop after crop; 2k and 2k + 1 are the views of sample k."""
    losses = []
    for i, one in enumerate(embedded):
        likeness = [exp(float(one @ other) / temperature) for other in embedded]
        negatives = [
            value for j, value in enumerate(likeness) if j // 2 != i // 2 and not (excluded and cases[i] == cases[j])
        ]
        losses.append(-log(likeness[i ^ 1] / (likeness[i ^ 1] + sum(negatives))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("same_image", ["exclude", "negative"])
@pytest.mark.parametrize("network", families())
def test_the_loss_is_that_of_a_loop_over_pairs(network, same_image):
    made = build("SimCLR", network, temperature=0.3, same_image=same_image).eval()
    batch = batch_for(made, size=4)
    batch["row"] = [0, 0, 1, 1, 0, 0, 2, 2]
    with torch.no_grad():
        loss = made(batch, generator()).loss
        embedded = made.embed(batch["image"]).double()
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(8).double())
    expected = loop_over_pairs(embedded, batch["row"], 0.3, same_image == "exclude")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("network", families())
def test_features_are_those_of_all_stages_or_the_mean_token(network):
    backbone = build("SimCLR", network).eval().backbone
    image = batch_for(build("SimCLR", network))["image"]
    with torch.no_grad():
        pooled = pooled_features(backbone, image)
        maps = backbone.encode(image)
    assert pooled.shape == (len(image), pooled_width(backbone))
    if "tokens" in backbone.offers:
        # The last of the maps is that of the tokens after the final norm.
        expected = maps[-1].mean((2, 3, 4))
    else:
        expected = torch.cat([features.mean((2, 3, 4)) for features in maps], 1)
    torch.testing.assert_close(pooled, expected)


def test_the_projector_with_layer_norm_is_openminds():
    """Its InstanceNorm1d takes (N, F) for one sample of N channels: every vector by itself."""
    projector = build("SimCLR", "plans", projector=6, projector_norm="layer").network.projector
    kinds = [type(layer).__name__ for layer in projector]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    vectors = torch.randn(3, projector[0].in_features, generator=generator())
    theirs = vectors
    for layer in projector:
        theirs = (
            torch.nn.InstanceNorm1d(len(theirs))(theirs) if isinstance(layer, torch.nn.LayerNorm) else layer(theirs)
        )
    torch.testing.assert_close(projector(vectors), theirs)
    torch.testing.assert_close(projector(vectors[:1]), projector(vectors)[:1])


def test_batch_norm_is_over_the_vectors_of_all_processes():
    whole = torch.randn(6, 4, generator=generator())
    plain = torch.nn.BatchNorm1d(4, affine=False)
    expected = plain(whole)
    for first in (0, 2, 4):
        norm = GatheredBatchNorm(4, lambda _, first=first: (whole, first))
        torch.testing.assert_close(norm(whole[first : first + 2]), expected[first : first + 2])
        torch.testing.assert_close(norm.running_var, plain.running_var)
        assert torch.equal(norm.eval()(whole[:1]), plain.eval()(whole)[:1])
        plain.train()


def test_views_are_augmented_by_the_number_of_their_sample_and_in_training_only():
    made = build("SimCLR", "plans", noise_p=1.0)
    batch = made.seeded(batch_for(made, size=2), TRAIN_STREAM)
    original = batch["image"].clone()
    whole = augmented(made, batch, 1)
    assert torch.equal(batch["image"], original), "the crops themselves are left as they are"
    assert all(not torch.equal(view, crop) for view, crop in zip(whole, original, strict=True))
    second = {"image": original[2:], "index": batch["index"][2:]}
    assert torch.equal(augmented(made, made.seeded(second, TRAIN_STREAM), 2), whole[2:])
    plain, again = (made.eval()(batch, generator(seed)).loss for seed in (1, 2))
    assert torch.equal(plain, again)


def test_quarter_turns_keep_the_shape():
    made = build(
        "SimCLR",
        "plans",
        blur_p=0,
        noise_p=0,
        brightness_p=0,
        contrast_p=0,
        low_resolution_p=0,
        gamma_p=0,
        inverted_gamma_p=0,
    )
    square = torch.randn(8, 2, 8, 8, 16, generator=generator())
    batch = {"image": square, "index": list(range(8))}
    turned = augmented(made, batch)
    found = [
        next(k for k in range(4) if torch.equal(one.rot90(k, (1, 2)), two))
        for one, two in zip(square, turned, strict=True)
    ]
    assert len(set(found)) > 1
    oblong = {**batch, "image": square[:, :, :6]}
    assert torch.equal(augmented(made, oblong), oblong["image"])


def test_what_the_loader_is_asked_for():
    assert build("SimCLR", "plans").sample_views == Views(count=2, together=True, overlap=0.5)
    smaller = build("SimCLR", "plans", crop=(8, 24, 16), overlap=0.25)
    assert smaller.sample_views == Views(count=2, together=True, overlap=0.25, size=(8, 24, 16))
    with pytest.raises(ValueError, match=r"crop \(8, 24, 17\): every axis must be a multiple of"):
        build("SimCLR", "plans", crop=(8, 24, 17))
    with pytest.raises(ValueError, match=r"crop \(8, 8, 8\): a transformer sees its whole patch \(16, 32, 48\)"):
        build("SimCLR", "PrimusS", crop=(8, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"projector": 0}, "projector must be at least 1, got 0"),
        ({"overlap": 1.5}, "overlap must lie between 0 and 1, got 1.5"),
        ({"noise_p": 2.0}, "noise_p must lie between 0 and 1, got 2.0"),
        ({"same_image": "no"}, "same_image must be one of exclude, negative, got 'no'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build("SimCLR", "plans", **settings)


def test_crops_of_a_single_case_are_told_from_each_other():
    made = build("SimCLR", "plans").eval()
    batch = {**batch_for(made, size=3), "row": [0] * 6}
    with torch.no_grad():
        embedded = made.embed(batch["image"]).double()
        loss = made(batch, generator()).loss.item()
    assert loss == pytest.approx(loop_over_pairs(embedded, batch["row"], 0.5, excluded=False), rel=1e-5)


@pytest.mark.parametrize(("network", "clip"), [("plans", 0.1), ("PrimusS", 1.0)])
def test_the_gradient_is_clipped_as_published(network, clip):
    assert build("SimCLR", network).recipe.clip == clip
    assert build("SimCLR", network, clip=3.0).recipe.clip == 3.0


def test_a_copy_of_the_network_is_of_the_network_alone():
    """A teacher is one: had a norm the method in it, its optimiser and data would be copied along."""
    made = build("SimCLR", "plans", projector=6)
    twin = copy.deepcopy(made.network)
    norms = [layer for layer in twin.projector if isinstance(layer, GatheredBatchNorm)]
    assert len(norms) == 2
    assert all(norm.gather is Method.gather for norm in norms)
    image = batch_for(made)["image"]
    assert torch.equal(twin(image)[0], made.network(image)[0])
