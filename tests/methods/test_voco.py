"""VoCo: its loss against a loop over crops, its teacher, its base crops."""

from math import log

import pytest
import torch
from cells import affine_of_views, backbone_of, batch_for, build, families, generator, patch_of
from torch.nn.functional import cosine_similarity

from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods import MethodSetup, VoCoConfig
from ssl_pretrain.methods.base import TRAIN_STREAM
from ssl_pretrain.methods.base_crops import choose_crops

TINY = 1e-6


def cosine(one, other):
    return max(0.0, float(cosine_similarity(one, other, dim=0)))


def apart(true, found, squared):
    """What one image adds to the loss, of overlaps (T, N) as lists."""
    pairs = [pair for rows in zip(true, found, strict=True) for pair in zip(*rows, strict=True)]
    surprises = [-log(1 - abs(truth - answer) + TINY) for truth, answer in pairs]
    together = sum(truth * surprise for (truth, _), surprise in zip(pairs, surprises, strict=True))
    wrong = [
        answer**2 if squared else surprise
        for (truth, answer), surprise in zip(pairs, surprises, strict=True)
        if truth == 0
    ]
    return together / max(sum(truth for truth, _ in pairs), TINY) + sum(wrong) / max(len(wrong), 1)


def loop_over_crops(student, teacher, true, bases):
    """The loss of embeddings (B, V, E), image after image; without a teacher that of the first version."""
    total = 0.0
    for number, (own, truths) in enumerate(zip(student, true.tolist(), strict=True)):
        known = own if teacher is None else teacher[number]
        targets, crops = own[bases:], range(bases)
        total += apart(truths, [[cosine(target, known[b]) for b in crops] for target in targets], teacher is None)
        alike = [cosine(own[i], own[j]) for i in crops for j in crops if i < j]
        total += sum(value if teacher is None else value**2 for value in alike) / len(alike)
        if teacher is not None:
            other = (number + 1) % len(student)
            expected = [[cosine(target, teacher[other][b]) for b in crops] for target in teacher[number][bases:]]
            total += apart(expected, [[cosine(target, student[other][b]) for b in crops] for target in targets], False)
    return total / len(student)


def made_voco(network="plans", **config):
    """In evaluation mode, with a teacher that differs from its student."""
    made = build("VoCo", network, **{"projector": 24, **config}).eval()
    for parameter in made.teacher.parameters() if made.teacher else ():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(7)))
    return made


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("network", families())
def test_the_loss_is_that_of_a_loop_over_crops(network, variant):
    made = made_voco(network, variant=variant, targets=3)
    batch = batch_for(made, size=3)
    count, bases = made.sample_views.count, made.sample_views.count - 3
    with torch.no_grad():
        loss = made(batch, generator()).loss
        student, pooled = made.network(batch["image"])
        taught = made.teacher(pooled).double().view(3, count, -1) if made.teacher else None
    expected = loop_over_crops(student.double().view(3, count, -1), taught, made.true_overlaps(batch), bases)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_other_case_is_the_next_one_over_all_processes(monkeypatch):
    made = made_voco()
    batch, count = batch_for(made, size=4), made.sample_views.count
    with torch.no_grad():
        whole = made(batch, generator()).loss
        vectors, pooled = made.network(batch["image"])
        everyone = [made.by_sample(v).bases for v in (vectors, made.teacher(pooled))]
        losses = []
        for first in (0, 2):
            rows = slice(first * count, (first + 2) * count)
            part = {name: values[rows] for name, values in batch.items()}
            calls = iter(everyone)
            monkeypatch.setattr(made, "gather", lambda _, first=first, calls=calls: (next(calls), first))
            losses.append(made(part, generator()).loss)
    torch.testing.assert_close(sum(losses) / 2, whole)


def test_of_a_single_sample_nothing_is_compared_with_another_case():
    made = made_voco()
    batch = batch_for(made, size=1)
    with torch.no_grad():
        loss = made(batch, generator()).loss.item()
        student, pooled = made.network(batch["image"])
        taught = made.teacher(pooled)
    bases, truths = made.sample_views.count - 4, made.true_overlaps(batch)[0].tolist()
    found = [[cosine(target, base) for base in taught[:bases]] for target in student[bases:]]
    alike = [cosine(student[i], student[j]) ** 2 for i in range(bases) for j in range(i)]
    assert loss == pytest.approx(apart(truths, found, False) + sum(alike) / len(alike), rel=1e-4)


def test_the_teacher_is_a_projector_that_follows_without_a_gradient():
    made = build("VoCo", "plans", projector=8, teacher_decay=0.75).train()
    student = made.network.projector
    for own, theirs in zip(made.teacher.module.parameters(), student.parameters(), strict=True):
        assert torch.equal(own, theirs)
        assert own is not theirs
    before = [p.clone() for p in made.teacher.module.parameters()]
    made(batch_for(made), generator()).loss.backward()
    assert all(p.grad is None for p in made.teacher.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    made.update_teachers()
    for now, then in zip(made.teacher.module.parameters(), before, strict=True):
        torch.testing.assert_close(now, then + 0.25)
    trained = {id(p) for p in made.trained.parameters()}
    assert not trained & {id(p) for p in made.teacher.parameters()}
    first = build("VoCo", "plans", variant="v1")
    assert first.teacher is None
    assert not first.teachers()


def test_the_student_drops_features_by_the_number_of_its_sample_and_in_training_only():
    made = build("VoCo", "plans", dropout=0.25, projector=64)
    batch = made.seeded(batch_for(made, size=2), TRAIN_STREAM)
    count = made.sample_views.count
    factors = made.kept(made.sample_generators(batch, generator()))
    assert len(factors) == 2 * count
    assert factors.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (factors == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    second = made.seeded({"image": batch["image"][count:], "index": batch["index"][count:]}, TRAIN_STREAM)
    assert torch.equal(made.kept(made.sample_generators(second, generator(1))), factors[count:])
    projector = made.network.projector.eval()
    embedded, pooled = made.network(batch["image"], factors)
    torch.testing.assert_close(embedded, projector[3:](projector[:3](pooled) * factors))
    assert build("VoCo", "plans", dropout=0.0).kept(made.sample_generators(batch, generator())) is None
    assert build("VoCo", "plans", variant="v1").kept(made.sample_generators(batch, generator())) is None
    plain, again = (made.eval()(batch, generator(seed)).loss for seed in (1, 2))
    assert torch.equal(plain, again)


def setup_for(network="plans", **changes):
    made = {"backbone": backbone_of(network), "patch": patch_of(network), **changes}
    return MethodSetup(**made)


@pytest.mark.parametrize(
    ("room", "patch", "grid", "crop"),
    [
        # The total stride of these plans is (2, 4, 4).
        ((300, 512, 512), (64, 160, 160), (1, 3, 3), (64, 64, 64)),
        ((300, 512, 512), (16, 48, 48), (1, 3, 3), (16, 48, 48)),
        ((36, 50, 35), (40, 56, 40), (1, 3, 2), (36, 16, 16)),
        ((65, 128, 114), (80, 128, 128), (1, 3, 3), (64, 40, 36)),
        ((10, 17, 21), (16, 16, 16), (1, 3, 3), (10, 4, 4)),
        ((20, 16, 16), (16, 16, 16), (1, 3, 3), (16, 4, 4)),
        (None, (32, 48, 64), (1, 3, 3), (32, 48, 64)),
    ],
)
def test_crops_are_as_many_as_published_and_as_large_as_cases_and_patch_allow(room, patch, grid, crop):
    assert choose_crops(setup_for(patch=patch, case_shape=room), (1, 3, 3), None, None) == (grid, crop)


def test_what_the_loader_is_asked_for():
    made = build("VoCo", "plans")
    assert made.sample_views == Views(count=10, together=True, size=(16, 16, 16), grid=(1, 3, 2))
    assert made.describe() == (
        "crops: (1, 3, 2) base crops side by side and 4 to find, of (16, 16, 16) voxels, in a field of (16, 48, 32), "
        "in cases of (16, 48, 32) (median); (1, 3, 3) do not fit"
    )
    finer = build("VoCo", "plans", grid=(2, 3, 2), targets=1, crop=(8, 12, 16))
    assert finer.sample_views == Views(count=13, together=True, size=(8, 12, 16), grid=(2, 3, 2))
    assert finer.describe().startswith("crops: (2, 3, 2) base crops side by side and 1 to find, of (8, 12, 16) voxels")
    assert "do not fit" not in finer.describe()
    primus = build("VoCo", "PrimusS")
    assert primus.sample_views == Views(count=6, together=True, size=(16, 32, 48), grid=(1, 2, 1))


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("plans", {"grid": (1, 1, 1)}, r"grid must have at least two base crops, got \(1, 1, 1\) \(-set grid=D,H,W\)"),
        ("plans", {"targets": 0}, "targets must be at least 1, got 0"),
        ("plans", {"dropout": 1.0}, r"dropout must lie between 0 and 1 \(excluded\), got 1.0"),
        ("plans", {"teacher_decay": 1.5}, "teacher_decay must lie between 0 and 1, got 1.5"),
        ("plans", {"variant": "v3"}, "variant must be one of v2, v1, got 'v3'"),
        ("plans", {"projector": 0}, "projector must be at least 1, got 0"),
        ("plans", {"crop": (16, 24, 17)}, r"crop \(16, 24, 17\): every axis must be a multiple of"),
        ("PrimusS", {"crop": (8, 8, 8)}, r"crop \(8, 8, 8\): a transformer sees its whole patch \(16, 32, 48\)"),
        (
            "plans",
            {"crop": (16, 32, 32)},
            r"cases of \(16, 48, 32\) voxels \(median\) have no room for two base crops of \(16, 32, 32\) voxels side "
            r"by side. There is room for \(1, 3, 2\) of \(16, 16, 16\) voxels: -set crop=16,16,16 grid=1,3,2.",
        ),
        (
            "plans",
            {"grid": (9, 1, 1)},
            r"have no room for \(9, 1, 1\) base crops side by side. There is room for \(8, 1",
        ),
        (
            "PrimusS",
            {"grid": (2, 2, 1)},
            r"no room for \(2, 2, 1\) base crops of \(16, 32, 48\) voxels side by side. There is room for \(2, 2, 1\) "
            r"of \(8, 32, 48\) voxels: -patch_size 8 32 48 -set grid=2,2,1.",
        ),
    ],
)
def test_bad_settings_are_refused_with_what_fits(network, settings, message):
    with pytest.raises(ValueError, match=message):
        build("VoCo", network, **settings)


def test_cases_too_small_for_two_crops_of_the_network_are_refused():
    with pytest.raises(
        ValueError, match=r"cases of \(2, 4, 4\) .* Nor for two that this network could see: use larger"
    ):
        choose_crops(setup_for(case_shape=(2, 4, 4)), (1, 3, 3), None, None)


def test_all_networks_have_one_recipe_with_a_warm_up():
    for network, clip in (("plans", 12.0), ("PrimusS", 1.0)):
        recipe = build("VoCo", network).recipe
        assert (recipe.optimizer, recipe.schedule, recipe.lr, recipe.clip) == ("adamw", "cosine", 1e-4, clip)
        assert recipe.warmup_epochs == pytest.approx(0.05 * 10)
    assert build("VoCo", "plans", optimizer="sgd").recipe.lr == 1e-2, "OpenMind's: AdamW's would be far too small"
    assert VoCoConfig().warmup("convolutional", 1000) == 50
    assert VoCoConfig(warmup_epochs=3.0).warmup("convolutional", 1000) == 3


def test_the_picture_shows_where_the_target_is_and_where_it_is_found():
    made = made_voco(variant="v1")
    batch = batch_for(made, size=1)
    with torch.no_grad():
        base, target, true, found = made.panels(batch, generator())
    d, h, w = made.crop
    assert torch.equal(base.values[:, :d, :h, :w], batch["image"][0])
    assert torch.equal(base.values[:, :, -h:, -w:], batch["image"][5])
    there = ~target.values.isnan()
    assert torch.equal(target.values[there], batch["image"][6].flatten())
    start = affine_of_views(made)[6, :, 3].long().tolist()
    assert there[0].nonzero().amin(0).tolist() == start
    shares = made.true_overlaps(batch)[0, 0]
    assert torch.equal(true.values[0, ::d, ::h, ::w].flatten(), shares)
    assert true.outlined.flatten().nonzero().item() == shares.argmax()
    assert found.outlined.sum() == 1
    assert found.values[0, ::d, ::h, ::w].flatten().argmax() == found.outlined.flatten().float().argmax()
