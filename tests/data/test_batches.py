from typing import get_type_hints

import numpy as np
import pytest
import torch
from made_data import PATCH, volume, write_case, write_unlabelled
from scipy.ndimage import map_coordinates

from ssl_pretrain.data.batches import assemble, finish
from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import CaseError, Cases
from ssl_pretrain.data.crops import TRAIN, CropDataset
from ssl_pretrain.data.module import CropData
from ssl_pretrain.data.places import Place, ViewPlaces
from ssl_pretrain.data.pool import Case, CasePool, Source
from ssl_pretrain.data.spatial import CropConfig, Transform
from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods.base import Batch

SHAPE = (24, 26, 28)
ALWAYS = CropConfig(rotation_p=1.0, scale_p=1.0)
IGNORING = CropConfig(rotation_p=0.5, scale_p=0.5, ignore_anonymized=True)
NEAR = Views(count=2, together=True, overlap=0.5)


def box_mask(lo: int, hi: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[lo:hi, lo:hi, lo:hi] = True
    return mask


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "cases_unlabeled"
    for i in range(3):
        masks = {"anonymization": box_mask(2, 9), "anatomy": box_mask(14, 20)} if i else {}
        write_unlabelled(folder, f"case_{i}", volume(i, SHAPE, channels=2), masks=masks)
    return Cases(folder, 2, labelled=False)


def batch(cases, config, *, finished, count=6):
    crops = CropDataset(CasePool.of(cases), PATCH, config, 0, TRAIN, finish=finished)
    return finish(assemble([crops[i] for i in range(count)]), PATCH)


@pytest.mark.parametrize("config", [CropConfig(), ALWAYS, CropConfig().without_augmentation(), IGNORING])
def test_the_device_makes_the_crops_that_the_loader_makes(cases, config):
    loader, device = (batch(cases, config, finished=finished) for finished in (True, False))
    assert loader.keys() == device.keys()
    assert loader["case"] == device["case"]
    assert loader["index"] == device["index"] == list(range(6))
    torch.testing.assert_close(device["image"], loader["image"], atol=2e-4, rtol=0)
    if config.ignore_anonymized:
        assert (device["ignored"] == loader["ignored"]).float().mean() > 0.9999


def test_crops_that_are_not_moved_are_the_same_to_the_bit(cases):
    loader, device = (batch(cases, CropConfig(), finished=finished) for finished in (True, False))
    crops = CropDataset(CasePool.of(cases), PATCH, CropConfig(), 0, TRAIN, finish=False)
    still = [i for i in range(6) if crops[i][0].box is None]
    assert 0 < len(still) < 6
    assert torch.equal(loader["image"][still], device["image"][still])


def test_without_masks_nothing_is_said_about_ignoring(cases):
    keys = {"image", "case", "row", "index", "start", "affine", "spacing", "modality"}
    assert set(batch(cases, CropConfig(), finished=True)) == keys
    assert keys | {"ignored", "seeds"} == set(get_type_hints(Batch))


@pytest.mark.parametrize("finished", [True, False])
def test_exactly_the_voxels_of_the_mask_are_ignored(cases, finished):
    """A volume whose voxels say whether they are anonymised: whatever the transform, image and mask must agree."""
    folder = cases.folder.parent / f"marked_{finished}_unlabeled"
    mask = box_mask(6, 16)
    write_unlabelled(folder, "a", mask[None].astype(np.float32) * 5, masks={"anonymization": mask})
    made = batch(Cases(folder, 1, labelled=False), IGNORING, finished=finished, count=12)
    assert made["image"].shape == (12, 1, *PATCH)
    assert made["ignored"].shape == (12, 1, *PATCH)
    assert made["ignored"].dtype == torch.bool
    assert made["ignored"].any()
    assert torch.equal(made["ignored"], made["image"] > 5e-3)


def test_a_case_without_the_mask_and_what_lies_outside_the_image_are_not_ignored(tmp_path):
    folder = tmp_path / "x_unlabeled"
    small = (10, 11, 12)
    write_unlabelled(folder, "masked", volume(0, small), masks={"anonymization": np.ones(small, dtype=bool)})
    write_unlabelled(folder, "plain", volume(1, small))
    config = CropConfig(ignore_anonymized=True).without_augmentation()
    made = {}
    for name in ("masked", "plain"):
        pool = CasePool.of(Cases(folder, 1, labelled=False), [name])
        made[name] = assemble([CropDataset(pool, PATCH, config, 0, TRAIN)[0]])["ignored"]
    assert made["masked"].sum() == np.prod(small), "1 inside the image, 0 around it; never -1 or 255"
    assert not made["plain"].any()


def test_a_mask_of_another_shape_is_named(tmp_path):
    folder = tmp_path / "x_unlabeled"
    write_unlabelled(folder, "a", volume(0), masks={"anonymization": np.ones((4, 4, 4), dtype=bool)})
    pool = CasePool.of(Cases(folder, 1, labelled=False))
    with pytest.raises(CaseError, match=r"anonymization.a\.b2nd is \(1, 4, 4, 4\) voxels, expected \(1, 20, 22, 24\)"):
        CropDataset(pool, PATCH, CropConfig(ignore_anonymized=True), 0, TRAIN)[0]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("views", [Views(), Views(count=3, together=True, overlap=0.6, size=(12, 9, 14))], ids=str)
def test_the_map_of_a_crop_says_where_in_the_case_its_voxels_lie(cases, finished, views):
    size = views.size or PATCH
    config = CropConfig(rotation_p=0.5, scale_p=0.5)
    crops = CropDataset(CasePool.of(cases), size, config, 0, TRAIN, finished, ViewPlaces(views))
    made = finish(assemble([crops[i] for i in range(6)]), size)
    offsets = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in size], indexing="ij"))
    for image, affine, start, name in zip(made["image"], made["affine"], made["start"], made["case"], strict=True):
        whole = volume(int(name[-1]), SHAPE, channels=2)
        places = np.tensordot(affine[:, :3].numpy(), offsets, 1) + affine[:, 3].numpy()[:, None, None, None]
        for ours, channel in zip(image, whole, strict=True):
            expected = map_coordinates(channel, places, order=1, mode="grid-constant", cval=0.0)
            np.testing.assert_allclose(ours.numpy(), expected, atol=5e-4)
        assert affine[:, 3].tolist() == [s + (p - 1) / 2 for s, p in zip(start.tolist(), size, strict=True)]


def test_a_batch_says_spacing_and_modality_of_each_crop(cases):
    sources = [Source("one", cases, (3.0, 1.5, 0.5)), Source("two", cases, channel_names=("T2w", "CT"))]
    known = CaseInfo(modality="T1w")
    pools = [
        CasePool(sources, [Case(0, "case_0", "x", known), Case(1, "case_1", "y", CaseInfo())]),
        CasePool(sources, [Case(1, "case_2", "z", CaseInfo(modality="PET"))]),
    ]
    size = {"batch_size": 8, "iterations": 1, "val_iterations": 1, "seed": 0, "num_workers": 0}
    data = CropData(*pools, PATCH, CropConfig(), **size)
    assert data.modalities == ("CT", "PET", "T1w", "T2w"), "one list for training and validation"
    (train,), (validation,) = data.train_dataloader(), data.val_dataloader()
    assert (train["spacing"].dtype, train["modality"].dtype) == (torch.float32, torch.int64)
    rows = zip(train["case"], train["spacing"].tolist(), train["modality"].tolist(), strict=True)
    expected = {"case_0": ([3.0, 1.5, 0.5], [2, 2]), "case_1": ([1.0, 1.0, 1.0], [3, 0])}
    assert {name: found for name, *found in rows} == {name: list(found) for name, found in expected.items()}
    assert validation["modality"].tolist() == [[1, 1]] * 8


@pytest.fixture
def reads(monkeypatch):
    """Boxes that were read."""
    found, read = [], Cases.read
    monkeypatch.setattr(Cases, "read", lambda *request: found.append(request[2]) or read(*request))
    return found


@pytest.mark.parametrize("config", [CropConfig(), ALWAYS, IGNORING])
@pytest.mark.parametrize("finished", [True, False])
def test_crops_of_one_case_are_the_same_to_the_bit_whether_read_at_once_or_each_by_itself(
    cases, config, finished, reads, monkeypatch
):
    crops = CropDataset(CasePool.of(cases), PATCH, config, 0, TRAIN, finished, ViewPlaces(NEAR))
    together = [crops[i] for i in range(20)]
    assert len(reads) == 20
    monkeypatch.setattr("ssl_pretrain.data.crops.decompressed", lambda _: 0)
    apart = [crops[i] for i in range(20)]
    assert len(reads) == 20 + 40
    for ours, theirs in zip(together, apart, strict=True):
        assert [crop[1:3] for crop in ours] == [crop[1:3] for crop in theirs]
        assert all(torch.equal(a.voxels, b.voxels) for a, b in zip(ours, theirs, strict=True))


class TwoPlaces:
    """A source of places of one's own: the first corner of the first case, and some voxels from there."""

    def __init__(self, distance: int) -> None:
        self.distance = distance

    def draw(self, pool, config, patch, number, random):
        del pool, config, patch, number, random
        return [Place(0, (start,) * 3, Transform(None, (False,) * 3)) for start in (0, self.distance)]


@pytest.mark.parametrize(("distance", "expected"), [(4, 1), (80, 2)])
def test_crops_that_lie_far_apart_are_not_read_at_once(tmp_path, reads, distance, expected):
    write_case(tmp_path, "a", volume(0, (100, 100, 100)))
    crops = CropDataset(CasePool.of(Cases(tmp_path, 1)), PATCH, CropConfig(), 0, TRAIN, places=TwoPlaces(distance))
    first, second = crops[0]
    assert len(reads) == expected
    for crop, start in ((first, 0), (second, distance)):
        part = (slice(start, start + 16),) * 3
        assert np.array_equal(crop.voxels[0].numpy(), volume(0, (100, 100, 100))[0][part])
