"""Reading processes: what they need, and what becomes of a run whose crops do not come."""

import time

import pytest
import torch
from made_data import made_crop, volume, write_case
from torch import Tensor
from torch.utils.data import Dataset

from ssl_pretrain.data import module
from ssl_pretrain.data.batches import Sample
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.crops import CropSampler
from ssl_pretrain.data.module import BatchLoader, CropData
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.functional.views import Views


class Slow(Dataset[Sample]):
    """Crops of which the third takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            time.sleep(self.seconds)
        return [made_crop(torch.full((1, 2, 2, 2), float(index)), index)]


def loader(seconds: float, **options) -> BatchLoader:
    return BatchLoader(Slow(seconds), CropSampler(2, 2), 2, 1, **options)


def test_who_waits_for_a_crop_is_asked_now_and_then_and_loses_none(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.3)
    asked = []
    batches = [batch["image"][:, 0, 0, 0, 0].tolist() for batch in loader(1.5, waiting=asked.append)]
    assert batches == [[0, 1], [2, 3]]
    assert len(asked) >= 2
    assert asked == sorted(asked)


def test_a_reading_process_that_lives_and_does_not_deliver_ends_the_run(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.3)
    monkeypatch.setattr(module, "PATIENCE", 0.6)
    with pytest.raises(TimeoutError, match=r"No crop came .* though they live.*-num_workers 0.*continue with --c"):
        list(loader(60))


def test_a_crop_for_which_there_is_no_shared_memory_is_an_error_and_not_a_silence(monkeypatch):
    def full(_: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        list(loader(0))


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({"num_workers": 4}, 80, 80),  # 4 processes with 2 crops of 8 MiB each, and a batch of 2
        ({"num_workers": 1}, 48, 48),  # twice the batch, and a batch
        ({"num_workers": 0}, 0, 0),
        ({"num_workers": 4, "augment_on": "device"}, 81, 200),
        ({"num_workers": 4, "views": Views(count=3)}, 240, 240),
        ({"num_workers": 1, "views": Views(count=2, size=(64, 128, 128))}, 48, 48),
    ],
)
def test_the_shared_memory_of_a_run_is_that_of_the_crops_under_way(settings, least, most, tmp_path):
    write_case(tmp_path, "a", volume(0))
    pool = CasePool.of(Cases(tmp_path, 1))
    options = {"batch_size": 2, "iterations": 2, "val_iterations": 1, "seed": 0}
    data = CropData(pool, pool, (128, 128, 128), CropConfig(), **options, **settings)
    assert least * 2**20 <= data.shared_bytes(1) <= most * 2**20
    assert data.shared_bytes(3) == pytest.approx(3 * data.shared_bytes(1), abs=3)
