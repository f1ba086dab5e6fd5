import json

import numpy as np
import pytest
import torch
from drawn import RECORD, SETTINGS, recorded
from made_data import PATCH, volume, write_case

from ssl_pretrain.data.batches import assemble, finish
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import TRAIN, VALIDATION, CropDataset, CropSampler
from ssl_pretrain.data.module import BatchLoader, CropData, FixedSampler
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.functional.views import Views

PLAIN = CropConfig().without_augmentation()


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    for i in range(4):
        write_case(folder, f"case_{i}", volume(i))
    write_case(folder, "small", volume(9, (10, 11, 30)))
    return Cases(folder, 1)


def crops(cases, config=None, seed=0, stream=TRAIN, names=None, finish=True):
    return CropDataset(CasePool.of(cases, names), PATCH, config or CropConfig(), seed, stream, finish)


def test_a_crop_is_a_pure_function_of_seed_stream_and_number(cases):
    a, b = crops(cases), crops(cases)
    order = [5, 0, 3, 5]
    for i, j in zip(order, [b[k] for k in reversed(order)][::-1], strict=True):
        (crop,), (same,) = a[i], j
        assert torch.equal(crop.voxels, same.voxels)
        assert crop.case == same.case
    assert not torch.equal(a[0][0].voxels, crops(cases, seed=1)[0][0].voxels)
    assert not torch.equal(a[0][0].voxels, crops(cases, stream=VALIDATION)[0][0].voxels)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("views", [Views(), Views(count=2), Views(together=True)], ids=str)
@pytest.mark.parametrize("finished", [True, False])
def test_crops_are_those_that_earlier_versions_drew(tmp_path, name, views, finished):
    """Alone, and as VolumeFusion takes two of them: bit for bit, but where voxels are interpolated."""
    before = json.loads(RECORD.read_text(encoding="utf-8"))[name]
    for ours, theirs in zip(recorded(tmp_path, SETTINGS[name], finished, views), before, strict=True):
        image, expected = ours.pop("image"), theirs.pop("image")
        assert ours == theirs
        if theirs["map"] is None:
            assert image == expected
        else:
            # On the device crops that are only scaled are interpolated by another function.
            assert image == pytest.approx(expected, rel=1e-5 if finished else 1e-3, abs=1e-3 if finished else 0.05)


@pytest.mark.parametrize(("workers", "start"), [(2, None), (1, "spawn")])
def test_the_number_of_workers_does_not_change_the_crops(cases, workers, start):
    """Spawned processes are what Windows and macOS have."""

    def batches(count):
        loader = BatchLoader(crops(cases), CropSampler(3, 2, epoch=1), 2, count)
        loader.multiprocessing_context = start if count else None
        assert len(loader) == 3
        return [b["image"] for b in loader]

    for ours, theirs in zip(batches(0), batches(workers), strict=True):
        assert torch.equal(ours, theirs)


def test_a_plain_crop_is_a_piece_of_its_case(cases):
    names = ["case_0"]
    for i in range(5):
        image = crops(cases, PLAIN, names=names)[i][0].voxels
        windows = np.lib.stride_tricks.sliding_window_view(volume(0)[0], PATCH)
        assert (windows == image[0].numpy()).all(axis=(3, 4, 5)).sum() == 1


def test_a_volume_smaller_than_the_patch_is_padded_with_zeros(cases):
    image = crops(cases, PLAIN, names=["small"])[0][0].voxels
    assert image.shape == (1, *PATCH)
    assert image[:, 3:13].any()
    assert not image[:, :3].any()
    assert not image[:, 13:].any()


def test_foreground_without_labels_falls_back_to_uniform(tmp_path):
    write_case(tmp_path, "a", volume(0), labels=False)
    config = CropConfig(oversample_foreground=1.0)
    assert crops(Cases(tmp_path, 1), config)[0][0].voxels.shape == (1, *PATCH)


def test_indices_continue_over_epochs_and_split_over_processes():
    whole = [i for epoch in range(2) for i in CropSampler(3, 2, epoch=epoch)]
    assert whole == list(range(12))
    first, second = (list(CropSampler(2, 2, rank=r, world=2)) for r in range(2))
    assert (first, second) == ([0, 1, 4, 5], [2, 3, 6, 7])


def test_a_sampler_continues_within_an_epoch_and_starts_the_next_whole():
    sampler = CropSampler(4, 2, epoch=1, skip=3)
    assert list(sampler) == [14, 15]
    sampler.set_epoch(1)
    assert list(sampler) == [14, 15]
    sampler.set_epoch(2)
    assert list(sampler) == list(range(16, 24))
    fixed = FixedSampler(2, 2)
    fixed.set_epoch(5)
    assert list(fixed) == [0, 1, 2, 3]


def test_validation_crops_are_not_augmented_and_come_from_validation_cases(cases):
    train, validation = CasePool.of(cases, ["case_0", "case_1"]), CasePool.of(cases, ["case_3"])
    data = CropData(
        train, validation, PATCH, CropConfig(), batch_size=2, iterations=2, val_iterations=3, seed=0, num_workers=0
    )
    batches = list(data.val_dataloader())
    assert [b["case"] for b in batches] == [["case_3"] * 2] * 3
    windows = np.lib.stride_tricks.sliding_window_view(volume(3)[0], PATCH)
    assert (windows == batches[0]["image"][0, 0].numpy()).all(axis=(3, 4, 5)).any()
    assert {c for b in data.train_dataloader() for c in b["case"]} <= {"case_0", "case_1"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_count_samples_and_their_indices_crops(cases, workers):
    pool = CasePool.of(cases)
    views = Views(count=3, together=True, overlap=0.5, size=(8, 9, 10))
    size = {"batch_size": 2, "iterations": 2, "val_iterations": 1, "seed": 0, "num_workers": workers}
    data = CropData(pool, pool, PATCH, CropConfig(), **size, augment_on="device", views=views)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert [batch["index"] for batch in batches] == [list(range(6)), list(range(6, 12))]
    for batch in batches:
        assert batch["image"].shape == (6, 1, 8, 9, 10)
        assert [len({*batch["case"][s : s + 3]}) for s in (0, 3)] == [1, 1]
        alone = [data.train_crops[number] for number in (batch["index"][0] // 3, batch["index"][3] // 3)]
        assert torch.equal(batch["image"], finish(assemble(alone), views.size)["image"])
