"""Our nnU-Net trainers, initialised by nnU-Net itself."""

import inspect
import json
import runpy

import numpy as np
import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ssl_pretrain.networks.stunet import STUNet
from ssl_pretrain.transfer.extension import extension_folder
from ssl_pretrain.transfer.finetune import warmup_poly

CPU = torch.device("cpu")
SIZES = ("small", "base", "large", "huge")


@pytest.fixture
def trainers(monkeypatch):
    # Executing these files installs the hook; the rest of the session must find nnU-Net as it was.
    monkeypatch.setattr(run_training, "load_pretrained_weights", run_training.load_pretrained_weights)
    modules = [runpy.run_path(str(extension_folder() / f"{name}Trainer.py")) for name in ("STUNet", "ResEnc")]
    return {name: value for module in modules for name, value in module.items() if "Trainer" in name}


@pytest.fixture
def make(trainers, tmp_path, monkeypatch):
    """Build a trainer for a made-up dataset with four stages, by name or class."""
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    data = tmp_path / "preprocessed" / "Dataset900_Made" / "made_3d"
    data.mkdir(parents=True)
    (data / "case.npz").touch()
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    plans = {
        "dataset_name": "Dataset900_Made",
        "plans_name": "made",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "label_manager": "LabelManager",
        "configurations": {
            "3d_fullres": {
                "data_identifier": "made_3d",
                "patch_size": [16, 32, 32],
                "batch_size": 2,
                "batch_dice": True,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": 4,
                        "features_per_stage": [4, 8, 8, 8],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * 4,
                        "strides": strides,
                        "n_conv_per_stage": [1] * 4,
                        "n_conv_per_stage_decoder": [1] * 3,
                        "conv_bias": True,
                        "norm_op": "torch.nn.InstanceNorm3d",
                        "norm_op_kwargs": {"affine": True},
                        "nonlin": "torch.nn.LeakyReLU",
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
                },
            }
        },
    }
    dataset = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}

    def build(trainer):
        cls = trainers[trainer] if isinstance(trainer, str) else trainer
        copied = json.loads(json.dumps({**plans, "continue_training": False}))
        return cls(copied, "3d_fullres", 0, dataset, CPU)

    return build


def test_they_keep_the_signatures_that_nnunet_inspects(trainers):
    ours = {name: cls for name, cls in trainers.items() if name.startswith(("STUNet", "ResEnc"))}
    assert len(ours) == 11
    expected = list(inspect.signature(nnUNetTrainer.__init__).parameters)
    builder = list(inspect.signature(nnUNetTrainer.build_network_architecture).parameters)
    for trainer in ours.values():
        assert issubclass(trainer, nnUNetTrainer)
        assert list(inspect.signature(trainer.__init__).parameters) == expected
        assert list(inspect.signature(trainer.build_network_architecture).parameters) == builder


@pytest.mark.parametrize("size", SIZES)
def test_fine_tuning_is_ten_times_gentler(make, size):
    assert make(f"STUNetTrainer_{size}").initial_lr == 1e-2
    assert make(f"STUNetTrainer_{size}_ft").initial_lr == 1e-3


def test_stunet_outputs_match_the_scales_of_the_targets(make):
    trainer = make("STUNetTrainer_small_ft")
    trainer.initialize()
    image = torch.zeros(1, 1, 16, 32, 32)
    with torch.no_grad():
        shapes = [output.shape[2:] for output in trainer.network(image)]
    scales = trainer._get_deep_supervision_scales()
    assert isinstance(trainer.network, STUNet)
    assert [list(shape) for shape in shapes] == [list(np.multiply([16, 32, 32], scale).astype(int)) for scale in scales]
    assert len(shapes) == 5
    assert len(trainer.loss.weight_factors) == 5
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert trainer.network(image).shape == (1, 3, 16, 32, 32)
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3


def test_stunet_without_deep_supervision_has_no_scales(make):
    trainer = make("STUNetTrainer_small")
    trainer.enable_deep_supervision = False
    assert trainer._get_deep_supervision_scales() is None


def test_resenc_trains_the_network_of_the_plans_with_warmup(make):
    trainer = make("ResEncTrainer_ft")
    trainer.initialize()
    assert type(trainer.network).__name__ == "PlainConvUNet"
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    for epoch in (0, 49, 50, 999):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert group["lr"] == pytest.approx(warmup_poly(epoch, 1e-3, 50, 1000))
    assert make("ResEncTrainer_scratch").initial_lr == 1e-2


def test_resuming_goes_on_with_the_rate_of_the_epoch(make, tmp_path):
    stopped = make("ResEncTrainer_ft")
    stopped.initialize()
    stopped.current_epoch = 299
    stopped.logger.log("lrs", 0.0, 0)
    stopped.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued = make("ResEncTrainer_ft")
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert continued.current_epoch == 300
    continued.lr_scheduler.step(continued.current_epoch)
    assert continued.optimizer.param_groups[0]["lr"] == pytest.approx(warmup_poly(300, 1e-3, 50, 1000))


def test_nnunet_loads_through_our_hook(make, tmp_path, capsys):
    """The stock function would refuse this file: it has another number of classes and only the encoder's tensors."""
    trainer = make("STUNetTrainer_small_ft")
    donor = STUNet(1, 9, **{**trainer_kwargs(trainer), "deep_supervision": True})
    file = tmp_path / "encoder.pth"
    encoder = {f"module.{k}": v for k, v in donor.state_dict().items() if k.startswith("conv_blocks_context")}
    torch.save({"network_weights": encoder}, file)
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    ours, theirs = trainer.network.state_dict(), donor.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key.startswith("conv_blocks_context"))
    assert not torch.equal(ours["upsample_layers.0.conv.weight"], theirs["upsample_layers.0.conv.weight"])
    assert f"Pretrained weights from {file}" in capsys.readouterr().out


def test_a_subclass_names_its_own_loader(make, trainers):
    calls = []

    class Mine(trainers["ResEncTrainer_ft"]):
        load_pretrained_weights = staticmethod(lambda network, fname, verbose=False: calls.append((network, fname)))

    mine = make(Mine)
    run_training.maybe_load_checkpoint(mine, False, False, "any.file")
    assert calls == [(mine.network, "any.file")]
    other = make("ResEncTrainer_ft")
    with pytest.raises(FileNotFoundError, match=r"any\.file"):
        run_training.maybe_load_checkpoint(other, False, False, "any.file")
    assert len(calls) == 1


def trainer_kwargs(trainer):
    from ssl_pretrain.networks.stunet import stunet_kwargs

    return stunet_kwargs("small", trainer.configuration_manager.pool_op_kernel_sizes)
