"""How a run of a study uses nnU-Net's trainer: length, seeds, weights, and what is left out. Nothing is trained."""

from __future__ import annotations

import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import NAME
from made_study import settings, write_home, write_weights

from ssl_pretrain.study import training
from ssl_pretrain.study.arms import Arm
from ssl_pretrain.study.machine import available_cores, machine, processor, run_environment
from ssl_pretrain.study.worker import durations


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A dataset in the environment, and nnU-Net's modules as they were afterwards."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    for module, name in (
        (run_training, "load_pretrained_weights"),
        (nnUNetTrainer, "multiprocessing"),
        (nnUNetTrainer, "NonDetMultiThreadedAugmenter"),
        (evaluate_predictions, "multiprocessing"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    return write_home(tmp_path / "home", monkeypatch)


def build(weights: Path | None = None, seed: int = 0, checkpoint: Path | None = None, **changes):
    arm = Arm("arm", "nnUNetPlans", "nnUNetTrainer", str(weights) if weights else None)
    return training.build_trainer(settings(Path("w"), **changes), NAME, arm, 0, seed, checkpoint)


def test_a_seed_decides_the_initial_network():
    first, again, other = (build(seed=seed)[0].network.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(
        first["encoder.stages.0.0.convs.0.conv.weight"], other["encoder.stages.0.0.convs.0.conv.weight"]
    )


def test_lengths_are_set_before_the_schedule_is_made():
    trainer, loaded = build(epochs=40, iters=20)
    assert loaded is None
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (40, 20, 4)
    assert (trainer.lr_scheduler.max_steps, trainer.save_every) == (40, 8)
    trainer, _ = build(epochs=3, iters=2, val_iters=7)
    assert (trainer.num_val_iterations_per_epoch, trainer.save_every) == (7, 1)
    trainer, _ = build(epochs=None, iters=None)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.save_every) == (1000, 250, 50)


def test_weights_are_in_the_network_whatever_the_trainer(tmp_path):
    """Also where the file has another number of classes: nnU-Net's own function would refuse its heads by shape."""
    file = write_weights(tmp_path / "weights")
    trainer, loaded = build(file)
    content = torch.load(file, weights_only=True)
    network, pretrained = trainer.network.state_dict(), content["pretraining"]["pretrained_keys"]
    assert pretrained
    assert all(torch.equal(network[key], content["network_weights"][key]) for key in pretrained)
    fresh = [key for key in network if "seg_layers" in key]
    untouched = build()[0].network.state_dict()
    assert all(torch.equal(network[key], untouched[key]) for key in fresh)
    assert 0.3 < loaded < 1


def test_weights_that_change_nothing_are_refused(tmp_path):
    file = tmp_path / "same.pth"
    torch.save({"network_weights": build(seed=5)[0].network.state_dict()}, file)
    with pytest.raises(ValueError, match=r"same.pth changed nothing in the network of nnUNetPlans: its weights do not"):
        build(file, seed=5)


def test_the_changed_share_counts_parameters():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert training.changed_share(before, network) == 0
    with torch.no_grad():
        network[0].bias += 1
    assert training.changed_share(before, network) == pytest.approx(3 / 16)


def test_checkpoints_are_whole_and_the_best_one_is_left_out(tmp_path):
    trainer, _ = build()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_best.pth"))
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    written = sorted(p.name for p in tmp_path.glob("checkpoint*"))
    assert written == ["checkpoint_latest.pth"]
    assert torch.load(tmp_path / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1


def test_a_stopped_run_goes_on_from_its_checkpoint():
    trainer, _ = build(epochs=5, seed=1)
    trainer.current_epoch = 2
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    resumed, loaded = build(epochs=5, seed=2, checkpoint=file)
    assert resumed.current_epoch == 3 and loaded is None
    ours, theirs = trainer.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_progress_is_drawn_once(tmp_path):
    trainer, _ = build(epochs=3)
    drawn = []
    trainer.logger.local_logger.plot_progress_png = lambda folder: drawn.append(trainer.current_epoch)
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.logger.plot_progress_png(str(tmp_path))
    assert drawn == [2]


def test_validation_runs_in_threads():
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    training.validate_in_threads()
    for module in (nnUNetTrainer, evaluate_predictions):
        with module.multiprocessing.get_context("spawn").Pool(1) as pool:
            assert isinstance(pool, ThreadPool)
            assert pool.starmap(max, [(1, 2), (4, 3)]) == [2, 4]
            assert all(worker.is_alive() for worker in pool._pool)
        assert module.multiprocessing.cpu_count() == multiprocessing.cpu_count()


def test_reading_processes_are_seeded():
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    seeds = []
    for seed in (1, 1, 2):
        training.seed_readers(seed)
        seeds.append(nnUNetTrainer.NonDetMultiThreadedAugmenter(None, None, num_processes=3, seeds=None).seeds)
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 3 and all(0 <= s < 2**32 for s in seeds[0])


def test_every_generator_is_seeded():
    import random

    drawn = []
    for seed in (0, 0, 1):
        training.seed_everything(seed)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002 - batchgenerators' own
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_a_run_that_was_stopped_takes_as_long_as_all_its_processes():
    trainer, _ = build()
    for epoch, (start, end) in enumerate(((0.0, 8.0), (10.0, 19.0), (500.0, 507.5))):
        trainer.logger.log("epoch_start_timestamps", start, epoch)
        trainer.logger.log("epoch_end_timestamps", end, epoch)
    assert durations(trainer, validation=2.25, process=12.0) == {"training": 24.5, "validation": 2.25, "process": 26.75}
    assert durations(trainer, validation=2.25, process=30.0)["process"] == 30.0


def test_the_environment_of_a_run_is_small_and_the_users_choice_stays():
    def env_of(device, threads, **env):
        return run_environment(device, threads, Path("p"), Path("r"), env)

    small = env_of("cpu", 4)
    assert (small["nnUNet_n_proc_DA"], small["nnUNet_def_n_proc"], small["nnUNet_compile"]) == ("0", "1", "f")
    assert (small["nnUNet_preprocessed"], small["nnUNet_results"]) == ("p", "r")
    assert [env_of("cuda", n)["nnUNet_n_proc_DA"] for n in (1, 6, 64)] == ["1", "5", "12"]
    chosen = env_of("cpu", 4, nnUNet_n_proc_DA="3", nnUNet_def_n_proc="2", nnUNet_preprocessed="elsewhere", A="b")
    assert (chosen["nnUNet_n_proc_DA"], chosen["nnUNet_def_n_proc"]) == ("3", "2")
    assert (chosen["nnUNet_preprocessed"], chosen["A"]) == ("p", "b")
    assert "nnUNetTrainer" in small["nnUNet_extTrainer"]


def test_the_machine_is_named():
    assert machine("cpu")["device"] == processor() != ""
    assert available_cores() >= 1
