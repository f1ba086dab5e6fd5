"""Where crops are: within their case, where the config wants them, and near each other where views ask for it."""

from math import prod

import numpy as np
import pytest
import torch
from made_data import PATCH, volume, write_case, write_unlabelled

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, CropDataset
from ssl_pretrain.data.places import (
    GridPlaces,
    Pair,
    PairPlaces,
    ViewPlaces,
    around,
    draw_start,
    place_range,
    places_of,
)
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig, draw_transform
from ssl_pretrain.functional.views import Views, overlaps

SHAPES = {"large": (40, 44, 48), "long": (16, 18, 60), "small": (10, 12, 14)}
PLAIN = CropConfig().without_augmentation()
MOVED = CropConfig(rotation_p=0.7, scale_p=0.7)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for number, (name, shape) in enumerate(SHAPES.items()):
        write_case(folder, name, volume(number, shape))
    return Cases(folder, 1)


def generators(*path):
    return np.random.default_rng([5, 0, *path])


def drawn(cases, views, config=MOVED, patch=PATCH, count=60):
    pool = CasePool.of(cases)
    samples = [ViewPlaces(views).draw(pool, config, patch, number, generators) for number in range(count)]
    return [(pool.case(sample[0].row)[1], sample) for sample in samples]


def own_shift(first, other):
    """Shift between two places along their own axes, in voxels."""
    matrix = np.eye(3) if first.transform.matrix is None else first.transform.matrix
    return np.linalg.solve(matrix, np.subtract(other.start, first.start))


@pytest.mark.parametrize(("size", "expected"), [(16, (0, 0)), (10, (-3, -3)), (11, (-3, -2)), (20, (0, 4))])
def test_a_small_volume_is_centred_as_nnunet_centres_it(size, expected):
    assert place_range(size, 16) == expected


def test_crops_reach_every_corner(tmp_path):
    write_case(tmp_path, "a", volume(0, (20, 22, 24)))
    cases = Cases(tmp_path, 1)
    starts = {draw_start(PLAIN, PATCH, cases, "a", np.random.default_rng(i)) for i in range(3000)}
    assert len(starts) == 5 * 7 * 9
    assert np.max(list(starts), axis=0).tolist() == [4, 6, 8]


def test_foreground_crops_are_centred_on_a_labelled_voxel(cases):
    config = CropConfig(oversample_foreground=1.0)
    for i in range(20):
        start = draw_start(config, PATCH, cases, "large", np.random.default_rng(i))
        assert all(s <= 7 for s in start), "the label lies in voxels 4 to 7"
        assert all(s + p > 4 for s, p in zip(start, PATCH, strict=True))


def test_crops_are_centred_in_the_anatomy(tmp_path):
    folder, mask = tmp_path / "cases_unlabeled", np.zeros((24, 26, 28), dtype=bool)
    mask[14:20, 14:20, 14:20] = True
    write_unlabelled(folder, "masked", volume(0, mask.shape), masks={"anatomy": mask})
    write_unlabelled(folder, "plain", volume(1, mask.shape))
    cases, config = Cases(folder, 1, labelled=False), CropConfig(sample_in="anatomy")
    starts = [draw_start(config, PATCH, cases, "masked", np.random.default_rng(i)) for i in range(200)]
    # Centre voxels 14 to 19, half a patch of 8 before them, and no further than the last place in the volume.
    assert np.min(starts, axis=0).tolist() == [6, 6, 6]
    assert np.max(starts, axis=0).tolist() == [8, 10, 11]
    elsewhere = [draw_start(config, PATCH, cases, "plain", np.random.default_rng(i)) for i in range(200)]
    assert np.min(elsewhere) == 0, "a case without the mask is drawn from everywhere"


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("patch", [(16, 16, 16), (10, 15, 20)])
@pytest.mark.parametrize("config", [PLAIN, MOVED], ids=["plain", "moved"])
def test_views_share_with_the_first_what_was_asked_for_and_stay_inside_the_case(cases, overlap, patch, config):
    for name, (first, *others) in drawn(cases, Views(count=4, together=True, overlap=overlap), config, patch):
        for other in others:
            assert other.row == first.row
            assert (np.abs(own_shift(first, other)) <= (1 - overlap) * np.array(patch) + 1e-5).all()
            for start, size, p in zip(other.start, SHAPES[name], patch, strict=True):
                low, high = place_range(size, p)
                assert low <= start <= high


def test_views_use_the_shift_that_they_may_have(tmp_path):
    write_case(tmp_path, "a", volume(0, (120, 120, 120)))
    for config in (PLAIN, MOVED):
        found = drawn(Cases(tmp_path, 1), Views(count=2, together=True, overlap=0.5), config, count=300)
        shifts = np.array([own_shift(*sample) for _, sample in found])
        assert (np.abs(shifts).max(axis=0) > 6.9).all(), "of 8"
        assert np.abs(shifts.mean(axis=0)).max() < 1


def test_the_first_view_is_the_crop_of_a_method_with_one_and_the_others_turn_with_it(cases):
    alone = drawn(cases, Views())
    mirrors = set()
    for (_, (only,)), (_, views) in zip(alone, drawn(cases, Views(count=3, together=True)), strict=True):
        first, *others = views
        np.testing.assert_equal(first, only)
        for other in others:
            assert other.transform.matrix is first.transform.matrix
            mirrors.add((first.transform.mirror, other.transform.mirror))
    assert len(mirrors) > 20, "each is mirrored by itself"


def test_a_view_depends_on_its_number_alone(cases):
    two, four = (drawn(cases, Views(count=count, together=True, overlap=0.5)) for count in (2, 4))
    for (_, few), (_, many) in zip(two, four, strict=True):
        np.testing.assert_equal(few, many[:2])


def test_crops_of_several_cases_are_drawn_as_if_each_were_a_sample(cases):
    alone = [place for _, sample in drawn(cases, Views(), count=60) for place in sample]
    pairs = [place for _, sample in drawn(cases, Views(count=2), count=30) for place in sample]
    np.testing.assert_equal(pairs, alone)


PAIRS = [
    Pair("a/places/large", (20, 20, 20), "a/places/long", (8, 9, 40), 3.0),
    Pair("a/places/large", (1, 40, 20), "a/places/large", (30, 30, 30), 1.0),
    Pair("a/places/large", (1, 1, 1), "a/elsewhere/x", (1, 1, 1), 100.0),
]


def named(cases, pairs):
    pool = CasePool.of(cases)
    folder = pool.names[0].rpartition("/")[0]
    ours = [
        pair._replace(**{field: getattr(pair, field).replace("a/places", folder) for field in ("case", "other")})
        for pair in pairs
    ]
    return pool, ours


def test_pairs_of_a_table_are_drawn_by_their_score_around_their_points(cases):
    pool, pairs = named(cases, PAIRS)
    places = PairPlaces(pool, pairs)
    seen = []
    for number in range(400):
        crops = places.draw(pool, MOVED, PATCH, number, generators)
        np.testing.assert_equal(crops, places.draw(pool, MOVED, PATCH, number, generators))
        names = tuple(pool.case(place.row)[1] for place in crops)
        pair = PAIRS[0] if names == ("large", "long") else PAIRS[1]
        for name, place, point in zip(names, crops, (pair.point, pair.other_point), strict=True):
            assert place.start == around(point, SHAPES[name], PATCH)
        seen.append(pair is PAIRS[0])
        expected = draw_transform(MOVED, PATCH, generators(number, 2))
        np.testing.assert_equal(crops[1].transform, expected)
    assert np.mean(seen) == pytest.approx(0.75, abs=0.06)


def test_a_table_without_pairs_of_these_cases_or_with_a_score_of_0_is_refused(cases):
    pool, pairs = named(cases, PAIRS)
    with pytest.raises(ValueError, match="None of 1 pairs is of two cases among the 3"):
        PairPlaces(pool, pairs[2:])
    with pytest.raises(ValueError, match=r"must be above 0 and finite, got 0\.0 for .*large"):
        PairPlaces(pool, [pairs[0]._replace(score=0.0)])


GRID = Views(count=9, together=True, size=(8, 10, 6), grid=(1, 2, 3))


def test_views_with_a_grid_are_drawn_from_one():
    assert isinstance(places_of(GRID), GridPlaces)
    assert isinstance(places_of(Views(count=9, together=True)), ViewPlaces)


def test_base_crops_fill_a_field_and_overlaps_are_the_voxels_that_crops_have_in_common(tmp_path):
    """A case whose voxels are numbered: what two crops share is counted."""
    shape = (11, 23, 22)
    write_case(tmp_path, "a", np.arange(prod(shape), dtype=np.float32).reshape(1, *shape))
    crops = CropDataset(
        CasePool.of(Cases(tmp_path, 1)),
        GRID.size,
        CropConfig(rotation_p=0, scale_p=0),
        0,
        TRAIN,
        places=places_of(GRID),
    )
    seen, fields = set(), set()
    for number in range(30):
        sample = crops[number]
        assert [crop.number for crop in sample] == list(range(9 * number, 9 * number + 9))
        numbers = [set(crop.voxels.flatten().long().tolist()) for crop in sample]
        field = set().union(*numbers[:6])
        assert len(field) == sum(map(len, numbers[:6])) == 6 * prod(GRID.size), "side by side"
        assert all(target <= field for target in numbers[6:])
        starts = np.array([crop.start for crop in sample])
        assert (starts[:6] - starts[0]).tolist() == [[0, h, w] for h in (0, 10) for w in (0, 6, 12)]
        shares = overlaps(torch.from_numpy(np.stack([crop.affine for crop in sample]))[None], GRID.size)[0]
        for i, j in np.ndindex(9, 9):
            assert float(shares[i, j]) == pytest.approx(len(numbers[i] & numbers[j]) / prod(GRID.size), abs=1e-6)
        seen |= {tuple(start) for start in (starts[6:] - starts[0]).tolist()}
        fields.add(tuple(starts[0].tolist()))
    assert {0, 10} <= {h for _, h, _ in seen}, "targets reach the ends of the field"
    assert {w for _, _, w in seen} >= {0, 12}
    assert len(fields) > 20


def test_a_rotated_and_scaled_field_is_one_field(cases):
    pool = CasePool.of(cases)
    for number in range(40):
        places = GridPlaces(GRID).draw(pool, CropConfig(rotation_p=1, scale_p=1), GRID.size, number, generators)
        assert len({place.row for place in places}) == 1
        assert len({id(place.transform.matrix) for place in places}) == 1, "one rotation and one scale"
        for place, cell in zip(places, np.ndindex(GRID.grid), strict=False):
            shift = own_shift(places[0], place) - np.multiply(cell, GRID.size)
            # To whole voxels of the case, at both ends.
            assert np.abs(places[0].transform.matrix @ shift).max() <= 1 + 1e-6
        for target in places[6:]:
            middle = own_shift(places[0], target)
            assert (middle > -2.5).all()
            assert (middle < np.subtract((8, 20, 18), GRID.size) + 2.5).all()
    assert len({place.transform.mirror for place in places}) > 3


def test_a_place_in_a_field_depends_on_its_number_alone(cases):
    pool = CasePool.of(cases)
    few, many = (
        GridPlaces(Views(count=count, together=True, grid=(1, 2, 3))).draw(pool, MOVED, (8, 10, 6), 4, generators)
        for count in (7, 9)
    )
    np.testing.assert_equal(few, many[:7])
