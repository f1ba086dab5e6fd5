"""TwoViewMAE: each of its losses against a slow loop, its teacher, its picture, its settings."""

from math import exp, log

import pytest
import torch
from cells import batch_for, build, families, generator, goes_together
from torch.nn.functional import cosine_similarity

from ssl_pretrain.functional.masking import repeat_to
from ssl_pretrain.functional.views import Views, moved_onto
from ssl_pretrain.methods.base import TRAIN_STREAM
from ssl_pretrain.methods.heads import GatheredBatchNorm, pooled_features
from ssl_pretrain.methods.mae import TokenMAENetwork


def made_two_view(network="plans", **config):
    """In evaluation mode, with a teacher that differs from its student."""
    made = build("TwoViewMAE", network, **{"projector": 24, "predictor": 8, "points": 3, **config}).eval()
    for parameter in made.teacher.parameters() if made.teacher else ():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(7)))
    return made


def overlapping(made, size=2):
    """A batch whose second crops lie a quarter of an axis away, mirrored along another."""
    batch = batch_for(made, size)
    batch["affine"][1::2, 1, 3] += made.patch[1] // 4
    batch["affine"][1::2, 2, 2] = -1.0
    return batch


def reconstruction_loop(made, batch, hidden, predicted):
    """Mean squared error of the voxels of masked cells, crop after crop."""
    errors = []
    for image, mask, answer in zip(batch["image"], hidden.mask, predicted, strict=True):
        voxels = repeat_to(mask[None], made.patch)[0]
        errors += [(image[..., voxels] - answer[..., voxels]).square().flatten()]
    return float(torch.cat(errors).mean())


def consistency_loop(student, teacher):
    """Of vectors (B, P, E): place after place of each crop against the same one of the other crop of its sample."""
    apart = [
        2 - 2 * float(cosine_similarity(mine, theirs, dim=0))
        for crop, vectors in enumerate(student)
        for mine, theirs in zip(vectors, teacher[crop ^ 1], strict=True)
    ]
    return sum(apart) / len(apart)


def contrast_loop(student, teacher, cases, temperature):
    """Of vectors (B, E): each crop is to find the other one of its sample among those of other cases."""
    losses = []
    for crop, mine in enumerate(student):
        likeness = [exp(float(cosine_similarity(mine, one, dim=0)) / temperature) for one in teacher]
        others = sum(value for value, case in zip(likeness, cases, strict=True) if case != cases[crop])
        losses.append(-log(likeness[crop ^ 1] / (likeness[crop ^ 1] + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("teacher", ["ema", "none"])
@pytest.mark.parametrize("network", [name for name in families() if goes_together("TwoViewMAE", name)])
def test_each_loss_is_that_of_a_loop(network, teacher):
    made = made_two_view(network, teacher=teacher, temperature=0.3)
    batch = {**overlapping(made, size=4), "row": [0, 0, 1, 1, 0, 0, 2, 2]}
    with torch.no_grad():
        loss, logged = made(batch, generator())
        hidden, places = made.choose(batch, generator()), made.places(batch)
        student = made.student(batch["image"], hidden.mask, places)
        source, mask = (made.teacher.module, None) if made.teacher else (made.student, hidden.mask)
        local, whole = source.project(source.autoencoder.features(batch["image"], mask), places)
        alone = made.network(batch["image"], hidden.mask)
    assert student.local.shape == local.shape == (8, 27, 24)
    torch.testing.assert_close(student.image, alone, msg="the image is what MAE's network makes")
    parts = {
        "reconstruction": reconstruction_loop(made, batch, hidden, student.image),
        "consistency": consistency_loop(student.local.double(), local.double()),
        "contrast": contrast_loop(student.whole.double(), whole.double(), batch["row"], 0.3),
    }
    for name, expected in parts.items():
        assert logged[name].item() == pytest.approx(expected, rel=1e-4), name
    weighted = 5 * parts["reconstruction"] + parts["consistency"] + 0.1 * parts["contrast"]
    assert loss.item() == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize("kept", ["reconstruction", "consistency", "contrast"])
def test_weights_of_0_leave_one_loss(kept):
    names = ("reconstruction", "consistency", "contrast")
    made = made_two_view(**{name: 2.0 if name == kept else 0.0 for name in names})
    loss, logged = made(overlapping(made), generator())
    assert loss.item() == pytest.approx(2 * logged[kept].item(), rel=1e-6)


def test_vectors_of_places_are_those_of_the_same_voxels():
    """A network whose only map is the image, and no projector: what both crops show is the same."""
    made = made_two_view()
    batch = batch_for(made, size=1)
    d, h, w = made.patch
    case = torch.nn.functional.interpolate(
        torch.randn(1, 2, 4, 6, 8, generator=generator()), size=(d, h + 8, w), mode="trilinear"
    )
    batch["image"] = torch.cat([case[:, :, :, :h], case[:, :, :, 8:].flip(4)])
    batch["affine"][1, 1, 3] += 8
    batch["affine"][1, 2, 2] = -1.0
    made.student.projector = made.student.whole_projector = torch.nn.Identity()
    local, _ = made.student.project([batch["image"]], made.places(batch))
    torch.testing.assert_close(local[0], local[1], rtol=1e-4, atol=1e-5)
    batch["affine"][1, 2, 2] = 1.0
    other, _ = made.student.project([batch["image"]], made.places(batch))
    assert not torch.allclose(other[0], other[1], atol=0.1)


def test_the_teacher_sees_whole_crops_and_follows_without_a_gradient():
    made = build("TwoViewMAE", "plans", projector=16, predictor=8, teacher_decay=0.75).train()
    batch = overlapping(made)
    before = [parameter.clone() for parameter in made.teacher.module.parameters()]
    made(batch, generator()).loss.backward()
    assert all(p.grad is None for p in made.teacher.parameters())
    assert not {id(p) for p in made.trained.parameters()} & {id(p) for p in made.teacher.parameters()}
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.add_(1.0)
    made.update_teachers()
    for now, then in zip(made.teacher.module.parameters(), before, strict=True):
        torch.testing.assert_close(now, then + 0.25)
    masks = [made.choose(batch, generator(seed)).mask for seed in (1, 2)]
    one, other = (made.targets(batch["image"], mask, made.places(batch))[1] for mask in masks)
    assert torch.equal(one, other)
    alone = made_two_view(teacher="none")
    assert not alone.teachers()
    one, other = (alone.targets(batch["image"], mask, alone.places(batch))[1] for mask in masks)
    assert not torch.equal(one, other), "the student sees masked crops"
    assert not one.requires_grad


def test_every_crop_has_a_mask_of_its_own_by_the_number_of_its_sample():
    made = made_two_view()
    batch = made.seeded(batch_for(made, size=2), TRAIN_STREAM)
    masks = made.choose(batch, generator(1)).mask
    assert masks.flatten(1).sum(1).tolist() == [made.masked] * 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    second = made.seeded({"image": batch["image"][2:], "index": batch["index"][2:]}, TRAIN_STREAM)
    assert torch.equal(made.choose(second, generator(2)).mask, masks[2:])


@pytest.mark.parametrize("norm", ["auto", "batch", "layer"])
@pytest.mark.parametrize("network", ["plans", "PrimusS"])
def test_the_norm_goes_with_the_network(network, norm):
    made = made_two_view(network, projector_norm=norm)
    batch = norm == "batch" or (norm == "auto" and not isinstance(made.network, TokenMAENetwork))
    for layers in (made.student.projector, made.student.predictor):
        assert any(isinstance(layer, GatheredBatchNorm) for layer in layers) == batch
    assert [layer.out_features for layer in made.student.projector if hasattr(layer, "out_features")] == [24, 24, 24]
    assert [layer.out_features for layer in made.student.predictor if hasattr(layer, "out_features")] == [8, 24]


def test_places_and_whole_crops_share_layers_but_no_statistics():
    made = build("TwoViewMAE", "plans", projector=16, predictor=8).train()
    for network in (made.student, made.teacher.module):
        for layers, own in ((network.projector, network.whole_projector), (network.predictor, network.whole_predictor)):
            for one, other in zip(layers, own, strict=True):
                assert (one is other) == isinstance(one, torch.nn.Linear)
    batch = overlapping(made, size=3)
    for _ in range(100):
        made(batch, generator())
    with torch.no_grad():
        embedded = made.eval().embed(batch["image"])
        mixed = made.teacher.module.projector(pooled_features(made.teacher.module.autoencoder.backbone, batch["image"]))
    likeness = embedded @ embedded.T - torch.eye(6)
    assert likeness.max() < 0.9
    unit = torch.nn.functional.normalize(mixed, dim=1)
    assert (unit @ unit.T).min() > 0.95, "by the statistics of places, whole crops are all the same"


def test_what_the_loader_is_asked_for():
    assert build("TwoViewMAE", "plans", overlap=0.25).sample_views == Views(count=2, together=True, overlap=0.25)


def test_the_picture_shows_where_the_crops_overlap_and_how_much_they_disagree():
    made = made_two_view()
    batch = overlapping(made, size=1)
    with torch.no_grad():
        *rest, second, apart = made.panels(batch, generator())
    assert [column.heading for column in rest] == ["input", "masked input", "reconstruction", "absolute error"]
    common = ~second.values[0].isnan()
    assert torch.equal(second.values[:, common], moved_onto(batch["image"][1], batch["affine"])[:, common])
    assert torch.equal(~apart.values[0].isnan(), common)
    assert common.float().mean() == 0.75
    shown = apart.values[0, common]
    assert len(shown.unique()) == 27
    assert shown.min() >= 0
    assert shown.max() <= 4
    batch["affine"][1, 1, 3] = 100.0
    with torch.no_grad():
        assert made.panels(batch, generator())[-1].values.isnan().all(), "crops that do not overlap"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 0.0}, "overlap must be greater than 0 and at most 1, got 0.0"),
        ({"reconstruction": -1.0}, "reconstruction must not be negative, and finite, got -1.0"),
        ({"contrast": float("inf")}, "contrast must not be negative, and finite, got inf"),
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"teacher_decay": 1.5}, "teacher_decay must lie between 0 and 1, got 1.5"),
        ({"points": 0}, "points must be at least 1, got 0"),
        ({"projector": 0}, "projector must be at least 1, got 0"),
        ({"teacher": "sgd"}, "teacher must be one of ema, none, got 'sgd'"),
        ({"projector_norm": "group"}, "projector_norm must be one of auto, batch, layer, got 'group'"),
        ({"mask_ratio": 1.0}, "mask_ratio must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build("TwoViewMAE", "plans", **settings)
