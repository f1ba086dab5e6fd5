"""Whole runs on a made dataset, through the Python interface."""

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from made_data import IDENTIFIER, NAME, made_crop, make_read_only, volume, write_case, write_dataset

from ssl_pretrain import PretrainConfig, pretrain
from ssl_pretrain.data import module
from ssl_pretrain.data.crops import TRAIN as TRAIN_CROPS
from ssl_pretrain.data.crops import CropDataset
from ssl_pretrain.data.splits import load_fold
from ssl_pretrain.files import written_beside
from ssl_pretrain.methods import Method
from ssl_pretrain.training.checkpoints import BEST, FINAL, LATEST, PREVIOUS, NonFiniteLossError
from ssl_pretrain.training.display import contrast, richest_sample
from ssl_pretrain.training.guards import PreemptedError
from ssl_pretrain.training.plateau import ALIKE, JUDGED_FROM
from ssl_pretrain.training.prepare import prepare

TIMING = {"images_per_second", "epoch_seconds"}
TRAIN, VALIDATION, PICTURE = 6, 4, 8
"""Crops that an epoch reads: 3 steps and 2 validation batches of 2; the first and the last epoch draw a picture, of
one of eight crops."""
FIRST = TRAIN + VALIDATION + PICTURE
NARROW = {
    "VoCo": {"projector": "16"},
    "SwinUNETRPretraining": {"embedding": "16"},
    "TwoViewMAE": {"projector": "16"},
}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    return write_dataset(tmp_path / "preprocessed", cases=6)


def config(tmp_path, name: str = "run", **changes) -> PretrainConfig:
    settings = {"epochs": 3, "iters": 3, "val_iters": 2, "num_workers": 0, "device": "cpu", "fold": "0"}
    made = PretrainConfig(dataset="7", output_folder=str(tmp_path / name), **{**settings, **changes})
    return made.with_settings(NARROW.get(made.method, {}))


def rows(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as handle:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(handle)]


def weights(folder, name: str = FINAL) -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["network_weights"]


def assert_same_run(ours, theirs) -> None:
    assert rows(ours) == rows(theirs)
    a, b = weights(ours), weights(theirs)
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    states = [torch.load(folder / LATEST, weights_only=True)["state_dict"] for folder in (ours, theirs)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[1]), "teacher and decoder too"


class StopAfter:
    """Interrupts a run when a crop is asked for, as a power cut would."""

    def __init__(self, monkeypatch, crops: int, action) -> None:
        self.left, self.action = crops, action
        original = CropDataset.__getitem__

        def counted(dataset, index):
            self.left -= 1
            if self.left == 0:
                self.action()
            return original(dataset, index)

        monkeypatch.setattr(CropDataset, "__getitem__", counted)


class PowerCut(BaseException):
    pass


def cut() -> None:
    raise PowerCut


def test_a_run_leaves_what_the_documentation_lists(dataset, tmp_path):
    result = pretrain(config(tmp_path, picture_every=2))
    names = {p.name for p in result.folder.iterdir()}
    assert {"config.json", LATEST, BEST, FINAL, "metrics.csv", "progress.png", "pictures", "tensorboard"} <= names
    assert any(n.startswith("training_log_") for n in names)
    assert sorted(p.name for p in (result.folder / "pictures").iterdir()) == [
        "epoch_0001.png",
        "epoch_0002.png",
        "epoch_0003.png",
    ]
    assert any(p.name.startswith("events") for p in (result.folder / "tensorboard").iterdir())
    assert [row["epoch"] for row in rows(result.folder)] == ["0", "1", "2"]
    assert (
        result.finetune_command == f"nnUNetv2_train 7 3d_fullres 0 -pretrained_weights {result.checkpoint} -device cpu"
    )
    log = next(result.folder.glob("training_log_*.txt")).read_text()
    assert "epoch 3 of 3: train loss" in log
    assert "4 cases to train on, 2 to validate on" in log


def crop(*channels, masked=False):
    return made_crop(torch.tensor(channels).reshape(len(channels), 1, 1, -1), masked=masked)


def test_the_picture_is_of_the_sample_whose_first_crop_has_the_most_contrast():
    contrasts = [0.2, 0.1, 0.0, 0.9, 0.5, 0.1, 0.1, 0.3, 2.0]
    samples = [[crop([0.0, c]), crop([0.0, 5.0 - i])] for i, c in enumerate(contrasts)]
    assert richest_sample(samples) is samples[3], "the ninth is not looked at"


def test_a_mask_is_no_contrast():
    image, mask = [1.0, 3.0], [0.0, 1.0]
    assert contrast(crop(image, mask, masked=True)) == contrast(crop(image))
    assert contrast(crop(image, mask)) != contrast(crop(image, mask, masked=True))


def test_other_intensities_in_another_channel_are_no_contrast():
    air, tissue = crop([-2.5, -2.5], [-0.3, -0.3]), crop([0.0, 1.0], [0.0, 1.0])
    assert contrast(air) == 0.0
    assert contrast(tissue) > 0.5


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_crop_with_numbers_that_are_none_is_not_chosen(place):
    samples = [[crop([0.0, 0.1 * i])] for i in range(8)]
    samples[place] = [crop([0.0, float("nan")])]
    assert richest_sample(samples) is samples[6 if place == 7 else 7]


def test_the_default_folder_is_in_nnunet_results(dataset, tmp_path):
    result = pretrain(replace(config(tmp_path, epochs=1), output_folder=None))
    expected = tmp_path / "results" / NAME / "AnatoMask__plans__nnUNetPlans__3d_fullres" / "fold_0"
    assert result.folder == expected


@pytest.mark.parametrize("method", ["AnatoMask", "SparK"])
def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(dataset, tmp_path, method):
    one = pretrain(config(tmp_path, "one", method=method, epochs=1)).folder
    two = pretrain(config(tmp_path, "two", method=method, epochs=1, num_workers=2)).folder
    assert_same_run(one, two)
    other = pretrain(config(tmp_path, "other", method=method, epochs=1, seed=1)).folder
    assert rows(other) != rows(one)


@pytest.mark.parametrize(
    ("method", "crops"),
    [
        ("AnatoMask", FIRST + 3),
        ("AnatoMask", FIRST + TRAIN + 2),
        ("AnatoMask", FIRST + TRAIN + VALIDATION + 1),
        ("VoCo", FIRST + TRAIN + 2),
        ("TwoViewMAE", FIRST + 3),
    ],
)
def test_a_run_cut_off_and_continued_is_the_uninterrupted_run_bit_for_bit(
    dataset, tmp_path, monkeypatch, method, crops
):
    """Within an epoch, while it validates, and at the start of the next one."""
    whole = pretrain(config(tmp_path, "whole", method=method)).folder
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        StopAfter(patch, crops, cut)
        pretrain(config(tmp_path, "cut", method=method))
    assert not (tmp_path / "cut" / FINAL).exists()
    torch.rand(7)  # the random state of another process
    continued = pretrain(config(tmp_path, "cut", method=method), resume=True).folder
    assert_same_run(continued, whole)


@pytest.mark.parametrize(
    ("method", "crops"),
    [("AnatoMask", FIRST + 3), ("AnatoMask", FIRST + TRAIN + 2), ("SwinUNETRPretraining", FIRST + 3)],
)
def test_sigterm_saves_within_an_epoch_and_the_continued_run_is_the_same(dataset, tmp_path, monkeypatch, method, crops):
    """Means over an epoch go on, too."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    whole = pretrain(config(tmp_path, "whole", method=method)).folder
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "after a run the signal is what it was"
    with monkeypatch.context() as patch, pytest.raises(PreemptedError, match="Continue with --c"):
        StopAfter(patch, crops, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(config(tmp_path, "stopped", method=method))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "after an interrupted one too"
    assert_same_run(pretrain(config(tmp_path, "stopped", method=method), resume=True).folder, whole)


@pytest.mark.parametrize(("crop", "words"), [(8, "stopped after step 4, saved in"), (6, "after step 3. The last good")])
def test_sigterm_ends_a_run_that_waits_for_data_and_the_continued_run_is_the_same(
    dataset, tmp_path, monkeypatch, crop, words
):
    """Within an epoch it is saved; at the start of one the epoch before is."""
    whole = pretrain(config(tmp_path, "whole")).folder
    original = CropDataset.__getitem__

    def hang(crops, index):
        if crops.stream == TRAIN_CROPS and index == crop:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        return original(crops, index)

    with monkeypatch.context() as patch, pytest.raises(PreemptedError, match=words):
        patch.setattr(CropDataset, "__getitem__", hang)
        patch.setattr(module, "LOOK", 1)
        pretrain(config(tmp_path, "stopped", num_workers=1))
    assert_same_run(pretrain(config(tmp_path, "stopped"), resume=True).folder, whole)


def test_a_non_finite_loss_stops_with_step_cases_and_the_last_good_checkpoint(dataset, tmp_path, monkeypatch):
    original = CropDataset.__getitem__
    poisoned = {"on": True}

    def poison(crops, index):
        item = original(crops, index)
        if poisoned["on"] and crops.stream == 0 and index == 3 * 2 + 2:
            return [crop._replace(voxels=crop.voxels * float("nan")) for crop in item]
        return item

    monkeypatch.setattr(CropDataset, "__getitem__", poison)
    with pytest.raises(NonFiniteLossError, match=rf"nan at step 4, on cases case_\d+, case_\d+.*{LATEST}.*--c"):
        pretrain(config(tmp_path))
    folder = tmp_path / "run"
    state = torch.load(folder / LATEST, weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values())
    poisoned["on"] = False
    assert len(rows(pretrain(config(tmp_path), resume=True).folder)) == 3


DROPOUT = """
from torch import nn

class Net(nn.Module):
    def __init__(self, input_channels):
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(input_channels, 4, 3, padding=1), nn.Dropout(0.3), nn.LeakyReLU())
        self.b = nn.Sequential(nn.Conv3d(4, 8, 3, 2, 1), nn.InstanceNorm3d(8), nn.LeakyReLU(inplace=True))
        self.head = nn.Linear(8, 2)

    def get_downsample_ratio(self):
        return 2

    def get_feature_map_channels(self):
        return [4, 8]

    def forward(self, x, hierarchical=False):
        first = self.a(x)
        return [first, self.b(first)]
"""


def test_the_random_state_is_continued_within_an_epoch_and_bystanders_are_not_called_pretrained(
    dataset, tmp_path, monkeypatch
):
    """An encoder with dropout asks the global generators; its head belongs to no feature map."""
    (tmp_path / "dropout_net.py").write_text(DROPOUT)
    monkeypatch.syspath_prepend(tmp_path)
    network = {"network": "dropout_net:Net"}
    whole = pretrain(config(tmp_path, "whole", **network)).folder
    with monkeypatch.context() as patch, pytest.raises(PreemptedError):
        StopAfter(patch, FIRST + 3, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(config(tmp_path, "stopped", **network))
    torch.rand(7)
    assert_same_run(pretrain(config(tmp_path, "stopped", **network), resume=True).folder, whole)
    fresh = torch.load(whole / FINAL, weights_only=True)["pretraining"]["fresh_keys"]
    assert fresh == ["head.bias", "head.weight"]


def test_weights_that_are_not_finite_are_never_saved(dataset, tmp_path, monkeypatch):
    """A finite loss with a gradient that is not, on the last step of an epoch."""
    original = Method.optimizer_step

    def poison(method, *args, **kwargs):
        original(method, *args, **kwargs)
        if method.trainer.global_step == 5:  # counted after the step
            next(p for p in method.trained.parameters() if p.requires_grad).data.fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(Method, "optimizer_step", poison)
        with pytest.raises(NonFiniteLossError, match=rf"weights are NaN or Inf after step 6.*{LATEST}; nothing was"):
            pretrain(config(tmp_path))
    state = torch.load(tmp_path / "run" / LATEST, weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point())


def test_a_missing_final_file_is_written_by_continuing(dataset, tmp_path):
    folder = pretrain(config(tmp_path, epochs=1)).folder
    before = weights(folder)
    (folder / FINAL).unlink()
    after = weights(pretrain(config(tmp_path, epochs=1), resume=True).folder)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_folder_of_another_run_without_weights_is_protected_too(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        StopAfter(patch, 2, cut)
        pretrain(config(tmp_path, seed=5))
    with pytest.raises(ValueError, match="holds a run with other settings: seed was 5, is 0"):
        pretrain(config(tmp_path))
    pretrain(config(tmp_path, seed=5, epochs=3))


def test_bfloat16_trains_on_the_cpu(dataset, tmp_path):
    losses = [float(row["train_loss"]) for row in rows(pretrain(config(tmp_path, precision="bf16")).folder)]
    full = [float(row["train_loss"]) for row in rows(pretrain(config(tmp_path, "full")).folder)]
    assert losses == pytest.approx(full, rel=0.02)
    assert losses != full


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(dataset, tmp_path, monkeypatch, caplog):
    whole = pretrain(config(tmp_path, "whole")).folder
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        StopAfter(patch, FIRST + TRAIN + VALIDATION + 1, cut)
        pretrain(config(tmp_path, "cut"))
    latest = tmp_path / "cut" / LATEST
    latest.write_bytes(latest.read_bytes()[:1000])
    with caplog.at_level("WARNING", logger="ssl_pretrain"):
        continued = pretrain(config(tmp_path, "cut"), resume=True).folder
    assert f"{LATEST} is damaged" in caplog.text
    assert f"Falling back to the checkpoint before it: {tmp_path / 'cut' / PREVIOUS}" in caplog.text
    assert_same_run(continued, whole)


def test_only_damaged_checkpoints_are_an_error(dataset, tmp_path):
    folder = pretrain(config(tmp_path, epochs=2)).folder
    for name in (LATEST, PREVIOUS):
        (folder / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"--c: no checkpoint in .* can be read"):
        pretrain(config(tmp_path, epochs=2), resume=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_stops_the_run_and_the_previous_checkpoint_is_intact(dataset, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def fill() -> None:
        written_beside(folder / LATEST).symlink_to("/dev/full")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=rf"Could not write .*previous {LATEST} is intact.*Free some space"),
    ):
        StopAfter(patch, FIRST + 3, fill)
        pretrain(config(tmp_path))
    assert torch.load(folder / LATEST, weights_only=True)["global_step"] == 3
    whole = pretrain(config(tmp_path, "whole")).folder
    assert_same_run(pretrain(config(tmp_path), resume=True).folder, whole)


def test_a_folder_with_a_run_is_protected(dataset, tmp_path):
    pretrain(config(tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"already holds a run\. Continue it with --c, or choose another"):
        pretrain(config(tmp_path, epochs=1, method="SparK"))
    with pytest.raises(ValueError, match="with other settings: epochs was 1, is 2"):
        pretrain(config(tmp_path, epochs=2), resume=True)


def test_continuing_without_a_checkpoint_is_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"there is no {LATEST} in .* Start the run without --c"):
        pretrain(config(tmp_path), resume=True)


def test_continuing_a_finished_run_changes_nothing(dataset, tmp_path):
    folder = pretrain(config(tmp_path, epochs=1)).folder
    before = weights(folder)
    after = weights(pretrain(config(tmp_path, epochs=1), resume=True).folder)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_later_stage_of_a_cascade_is_not_pretrained(dataset, tmp_path):
    with pytest.raises(
        ValueError, match=r"which unlabelled images do not have\. Choose from: 3d_fullres, 3d_planned_o"
    ):
        pretrain(config(tmp_path, configuration="3d_cascade_fullres"))


def test_weights_to_start_from_are_taken_and_those_of_other_voxels_warned_about(dataset, tmp_path, caplog):
    first = pretrain(config(tmp_path, "first", epochs=1)).folder
    start = config(tmp_path, "second", epochs=1, pretrained_weights=str(first / FINAL)).with_settings({"lr": "1e-12"})
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 3.0]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    second = weights(pretrain(start).folder)
    key = "encoder.stages.1.0.convs.0.conv.weight"
    torch.testing.assert_close(second[key], weights(first)[key], rtol=1e-4, atol=1e-6)
    assert caplog.text.count("up to 3 times another size of voxel") == 1


@pytest.mark.parametrize(("method", "remedy"), [("SparK", "try another -lr."), ("MAE", "-lr or -optimizer adamw.")])
def test_a_network_that_does_not_look_is_told(dataset, tmp_path, caplog, method, remedy):
    long = config(tmp_path, epochs=JUDGED_FROM, iters=1, val_iters=2, method=method)
    result = pretrain(long.with_settings({"lr": "1e-12", "warmup_epochs": "0"}))
    last = result.metrics[-1]["val_loss"]
    assert f"hardly learned to look at the image: its validation loss is {last:.4g}, and " in caplog.text
    assert remedy in caplog.text
    (log,) = result.folder.glob("training_log_*.txt")
    assert "hardly learned" in log.read_text()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_embeddings_that_have_collapsed_are_told(dataset, tmp_path, caplog, norm):
    """Those of an untrained network are nearly the same for all crops, unless a batch norm pulls them apart."""
    # The running statistics of a batch norm need some steps to reach values as small as these.
    steps = {"layer": 1, "batch": 20}[norm]
    long = config(tmp_path, epochs=JUDGED_FROM, iters=steps, val_iters=2, method="SimCLR")
    result = pretrain(long.with_settings({"lr": "1e-12", "projector": "64", "projector_norm": norm}))
    last = result.metrics[-1]
    with (result.folder / "metrics.csv").open() as handle:
        stored = list(csv.DictReader(handle))[-1]
    assert float(stored["effective_rank"]) == pytest.approx(last["effective_rank"])
    assert (last["uniformity"] > ALIKE) == (norm == "layer")
    assert ("embeddings have collapsed: those of all validation crops are nearly the same" in caplog.text) == (
        norm == "layer"
    )
    assert (f"(effective rank {last['effective_rank']:.3g}, uniformity" in caplog.text) == (norm == "layer")
    assert (result.folder / "pictures" / "neighbours.png").stat().st_size > 5000


def test_nothing_is_said_of_short_runs(dataset, tmp_path, caplog):
    short = config(tmp_path, epochs=JUDGED_FROM - 1, iters=1, val_iters=1).with_settings({"lr": "1e-12"})
    pretrain(short)
    assert "hardly learned" not in caplog.text


def test_nothing_is_said_of_a_network_that_has_learned(dataset, tmp_path, caplog):
    long = config(tmp_path, epochs=JUDGED_FROM, iters=12, val_iters=2, method="MAE")
    result = pretrain(long.with_settings({"lr": "0.003", "optimizer": "adamw", "mask_ratio": "0.5"}))
    assert result.metrics[-1]["val_loss"] < 0.8 * result.metrics[0]["val_loss"]
    assert "hardly learned" not in caplog.text


def test_the_best_checkpoint_is_of_the_epoch_with_the_lowest_validation_loss(dataset, tmp_path):
    folder = pretrain(config(tmp_path)).folder
    losses = [float(row["val_loss"]) for row in rows(folder)]
    best = torch.load(folder / BEST, weights_only=True)["pretraining"]["epoch"]
    assert best == losses.index(min(losses)) + 1


def test_all_cases_with_a_hold_out(dataset, tmp_path):
    folder = pretrain(config(tmp_path, fold="all", epochs=1)).folder
    assert (
        "5 cases to train on, 1 to validate on (6 labelled and 0 unlabelled cases; all cases: 1 of 6 cases held out"
        in next(folder.glob("training_log_*.txt")).read_text()
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"sparse": "masked"}, {"sparse": "blocks"}),
        ({"memory_format": "contiguous"}, {"memory_format": "channels_last_3d"}),
        ({"checkpointing": False}, {"checkpointing": True}),
    ],
)
def test_a_run_may_continue_with_other_switches(dataset, tmp_path, monkeypatch, before, after):
    settings = {"lr": 1e-2, "warmup_epochs": 0, "decoder_norm": "batch", **before}
    whole = pretrain(config(tmp_path, "whole").with_settings(settings))
    first = config(tmp_path, "switched").with_settings(settings)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        StopAfter(patch, FIRST + TRAIN + VALIDATION + 1, cut)
        pretrain(first)
    result = pretrain(first.with_settings(after), resume=True)
    expected, found = weights(whole.folder), weights(result.folder)
    assert list(expected) == list(found)
    # Three steps of at most 1e-2 each follow the switch; moments that met the wrong weights would show as that much.
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)


def test_accumulated_batches_are_one_step_of_their_mean(dataset, tmp_path, monkeypatch):
    seen = []
    original = Method.optimizer_step

    def watch(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.append(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    monkeypatch.setattr(Method, "optimizer_step", watch)
    result = pretrain(config(tmp_path, batch_size=1, epochs=1).with_settings({"accumulate": 2}))
    assert seen == [2, 4, 6], "three steps of two batches each"
    # The log shows the mean over batches, not what Lightning divides for accumulation.
    single = pretrain(config(tmp_path, "single", batch_size=1, epochs=1, iters=6).with_settings({"lr": 1e-30}))
    still = pretrain(config(tmp_path, "still", batch_size=1, epochs=1).with_settings({"accumulate": 2, "lr": 1e-30}))
    assert still.metrics[0]["train_loss"] == pytest.approx(single.metrics[0]["train_loss"], rel=1e-5)
    assert result.metrics[0]["train_loss"] > 0


@pytest.mark.parametrize("crops", [FIRST + 3, FIRST + 2 * TRAIN - 1])
def test_an_accumulating_run_is_continued_bit_for_bit_after_sigterm(dataset, tmp_path, monkeypatch, crops):
    accumulating = {"accumulate": 2}
    whole = pretrain(config(tmp_path, "whole").with_settings(accumulating))
    terminated = config(tmp_path, "terminated").with_settings(accumulating)
    with monkeypatch.context() as patch, pytest.raises(PreemptedError, match="stopped after step"):
        StopAfter(patch, crops, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain(terminated)
    assert_same_run(pretrain(terminated, resume=True).folder, whole.folder)


def test_a_run_is_not_continued_on_other_cases(dataset, tmp_path):
    """A new hold-out would validate on what was trained on."""
    made = config(tmp_path, fold="all", epochs=1)
    pretrain(made)
    folder = dataset / IDENTIFIER
    write_case(folder, "new", volume(17))
    with pytest.raises(ValueError, match=r"begun with 5 cases in train, now there are \d.*differ.*-o"):
        pretrain(made, resume=True)
    for file in folder.glob("new*"):
        file.unlink()
    assert pretrain(made, resume=True).checkpoint.is_file()


def test_the_plans_of_the_dataset_itself_count_beside_those_drawn_from(dataset, tmp_path):
    other = dataset.parent / "Dataset008_Other"
    shutil.copytree(dataset, other)
    plans_file = other / "nnUNetPlans.json"
    changed = plans_file.read_text().replace("[1.0, 1.0, 1.0]", "[3.0, 3.0, 3.0]").replace(NAME, other.name)
    plans_file.write_text(changed)
    with pytest.raises(ValueError, match="Dataset007_Made and Dataset008_Other are preprocessed differently"):
        prepare(config(tmp_path, datasets=("8",)))


def test_volume_fusion_needs_two_cases(dataset, tmp_path):
    for file in (dataset / IDENTIFIER).iterdir():
        if not file.name.startswith("case_00"):
            file.unlink()
    with pytest.raises(ValueError, match=r"VolumeFusion needs crops of at least 2 different cases.*there is 1"):
        prepare(config(tmp_path, method="VolumeFusion", fold="all"))


def test_too_few_samples_per_step_are_refused_before_anything_is_written(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"SimCLR compares samples and needs at least 2 per step; there is 1. Use a"):
        pretrain(config(tmp_path, method="SimCLR", batch_size=1))
    assert not (tmp_path / "run").exists()
    assert prepare(config(tmp_path, method="SimCLR", batch_size=2)).method.fewest_samples == 2


def test_a_patch_that_leaves_one_voxel_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) leaves a single voxel of the network's coarsest map"):
        prepare(config(tmp_path, patch_size=(4, 4, 4)))


def test_the_decoder_is_exported_as_it_was_where_the_encoder_alone_is_asked_for(dataset, tmp_path):
    whole, encoder = (
        torch.load(pretrain(config(tmp_path, name, method="MAE", epochs=1, export=name)).checkpoint, weights_only=True)
        for name in ("all", "encoder")
    )
    before = prepare(config(tmp_path, method="MAE")).method.backbone
    decoder, weights = before.decoder_keys, before.network.state_dict()
    assert decoder
    assert set(decoder) <= set(whole["pretraining"]["pretrained_keys"])
    assert not set(decoder) & set(encoder["pretraining"]["pretrained_keys"])
    assert all(torch.equal(encoder["network_weights"][key], weights[key]) for key in decoder)
    assert any(not torch.equal(whole["network_weights"][key], weights[key]) for key in decoder)
    for key in before.encoder_keys:
        assert torch.equal(encoder["network_weights"][key], whole["network_weights"][key])


def test_a_primus_is_handed_over_with_its_plans_and_its_trainer(dataset, tmp_path):
    size = {"width": 36, "depth": 1, "heads": 2}
    made = config(tmp_path, method="MAE", network="PrimusS", network_settings=size, epochs=1)
    assert "-p nnUNetPlans_PrimusS_depth1_heads2_width36 -tr PrimusTrainer_ft" in pretrain(made).finetune_command
    assert (dataset / "nnUNetPlans_PrimusS_depth1_heads2_width36.json").is_file()


def test_what_cannot_be_written_beside_the_data_is_in_the_output_folder_and_is_to_be_copied(
    dataset, tmp_path, monkeypatch, caplog
):
    expected = load_fold("0", [f"case_{i:02d}" for i in range(6)], tmp_path / "splits_final.json")
    make_read_only(dataset, monkeypatch)
    before = sorted(dataset.rglob("*"))
    made = config(tmp_path, epochs=1, batch_size=1, network="STUNet_small", method="SparK")
    result = pretrain(made)
    assert sorted(dataset.rglob("*")) == before
    spare = result.folder / "nnUNet_preprocessed" / NAME
    plans, splits = "nnUNetPlans_STUNet_small.json", "splits_final.json"
    assert {file.name for file in spare.iterdir()} == {plans, splits, f"{IDENTIFIER}.index"}
    for name in (plans, splits):
        assert f"{dataset / name} cannot be written (Read-only file system): it is in {spare}." in caplog.text
        assert f"# First copy {spare / name} to {dataset}: nnU-Net reads it there." in result.finetune_command
    assert "-p nnUNetPlans_STUNet_small -pretrained_weights" in result.finetune_command.splitlines()[-1]
    cases = json.loads((result.folder / "cases.json").read_text())
    assert [name.rpartition("/")[2] for name in cases["validation"]] == sorted(expected.validation)
    assert json.loads((spare / splits).read_text()) == json.loads((tmp_path / splits).read_text())
    caplog.clear()
    assert pretrain(made, resume=True).finetune_command == result.finetune_command
    assert "cannot be written" not in caplog.text


def test_a_dry_run_on_data_that_cannot_be_written_beside_leaves_nothing(dataset, tmp_path, monkeypatch):
    make_read_only(dataset, monkeypatch)
    run = prepare(config(tmp_path), dry=True)
    assert len(run.cases.validation) == 2
    assert not run.folder.exists()
