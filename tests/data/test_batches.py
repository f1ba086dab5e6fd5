import numpy as np
import pytest
import torch
from made_data import PATCH, volume, write_unlabelled

from ssl_pretrain.data.batches import assemble, finish
from ssl_pretrain.data.cases import CaseError, Cases
from ssl_pretrain.data.crops import TRAIN, CropDataset
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig

SHAPE = (24, 26, 28)
ALWAYS = CropConfig(rotation_p=1.0, scale_p=1.0)
IGNORING = CropConfig(rotation_p=0.5, scale_p=0.5, ignore_anonymized=True)


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
    still = [i for i in range(6) if crops[i].affine is None]
    assert 0 < len(still) < 6
    assert torch.equal(loader["image"][still], device["image"][still])


def test_without_masks_nothing_is_said_about_ignoring(cases):
    assert set(batch(cases, CropConfig(), finished=True)) == {"image", "case", "index"}


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


def test_crops_are_centred_in_the_anatomy(cases):
    config = CropConfig(sample_in="anatomy").without_augmentation()
    dataset = CropDataset(CasePool.of(cases, ["case_1"]), PATCH, config, 0, TRAIN)
    starts = np.array([dataset._draw_start(cases, "case_1", np.random.default_rng(i)) for i in range(200)])
    # Centre voxels 14 to 19, half a patch of 8 before them, and no further than the last place in the volume.
    assert (starts.min(axis=0) == 6).all()
    assert (starts.max(axis=0) == [8, 10, 11]).all()
    elsewhere = [dataset._draw_start(cases, "case_0", np.random.default_rng(i)) for i in range(200)]
    assert min(min(start) for start in elsewhere) == 0, "a case without the mask is drawn from everywhere"
