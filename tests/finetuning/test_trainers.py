"""Our nnU-Net trainers, found and initialised by nnU-Net itself."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made_trainers import NETWORKS, PATCH, batch, find, log, maker, run_epochs
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ssl_pretrain.finetuning.mixins import FACTOR
from ssl_pretrain.finetuning.names import SHORT
from ssl_pretrain.finetuning.schedules import Schedule, course_of
from ssl_pretrain.networks.stunet import STUNet, stunet_kwargs

SIZES = ("small", "base", "large", "huge")
LAYERS = {"plain": 4, "residual": 5, "STUNet": 6, "Primus": 4, "UNETR": 5}
"""Network -> its stages, or the blocks, and what is before them."""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Build a trainer for a made-up dataset with four stages, by name or class."""
    return maker(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        *SHORT,
        *("ResEncTrainer_ft", "ResEncTrainer_scratch", "ResEncTrainer_ft_150ep_sawtooth", "ResEncTrainer_ft_llrd0.75"),
        *("STUNetTrainer_small_ft", "STUNetTrainer_huge_scratch_30ep_frozen20", "UNETRTrainer_scratch_20ep"),
        *("PrimusTrainer_ft", "PrimusTrainer_S_ft_sawtooth", "PrimusTrainer_L_scratch"),
    ],
)
def test_nnunet_finds_them_by_name_with_the_signatures_that_it_inspects(make, name):
    trainer = find(name)
    assert trainer.__name__ == name
    assert issubclass(trainer, nnUNetTrainer)
    for function in ("__init__", "build_network_architecture"):
        theirs = inspect.signature(getattr(nnUNetTrainer, function)).parameters
        assert list(inspect.signature(getattr(trainer, function)).parameters) == list(theirs)
    assert str(trainer.setting) in trainer.__doc__


def test_a_name_with_an_unknown_part_stops_the_search_and_one_of_others_does_not(make, capsys):
    with pytest.raises(ValueError, match=r"no trainer ResEncTrainer_ft_150: '150' is unknown.*frozen<N>"):
        find("ResEncTrainer_ft_150")
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer MyTrainer"):
        find("MyTrainer")


def test_a_trainer_is_made_again_by_another_search_and_is_the_same(make):
    """nnU-Net forgets the modules of the folder after every search; every process of a DDP training searches anew."""
    one, other = (find.__wrapped__("ResEncTrainer_ft_30ep_warmup") for _ in range(2))
    assert one.setting == other.setting
    assert make(one).output_folder == make(other).output_folder
    assert "/ResEncTrainer_ft_30ep_warmup__made__3d_fullres/" in make(one).output_folder.replace("\\", "/")


@pytest.mark.parametrize(
    ("name", "epochs", "rate"),
    [
        *((f"STUNetTrainer_{size}", 1000, 1e-2) for size in SIZES),
        *((f"STUNetTrainer_{size}_ft", 1000, 1e-3) for size in SIZES),
        *(("ResEncTrainer_ft_150ep_sawtooth", 150, 1e-3), ("ResEncTrainer_scratch_20ep", 20, 1e-2)),
    ],
)
def test_the_name_sets_the_epochs_and_fine_tuning_is_ten_times_gentler(make, name, epochs, rate):
    trainer = make(name)
    assert (trainer.num_epochs, trainer.initial_lr, trainer.weight_decay) == (epochs, rate, 3e-5)
    assert trainer.enable_deep_supervision


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


def test_stunet_keeps_nnunets_own_schedule(make):
    trainer = make("STUNetTrainer_small")
    trainer.initialize()
    for epoch in (0, 500, 999):
        trainer.lr_scheduler.step(epoch)
        assert trainer.optimizer.param_groups[0]["lr"] == 1e-2 * (1 - epoch / 1000) ** 0.9


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_resenc_trains_the_network_of_the_plans_with_warmup(make, network):
    trainer = make("ResEncTrainer_ft", network)
    trainer.initialize()
    assert type(trainer.network).__name__ == NETWORKS[network][1]["network_class_name"].rpartition(".")[2]
    (group,) = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.network.parameters()}
    for epoch in (0, 49, 50, 999):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert group["lr"] == course_of(Schedule("warmup"), 1000).rate(epoch, 1e-3)


@pytest.mark.parametrize("network", ["plain", "Primus"])
@pytest.mark.parametrize(
    ("part", "kind", "rate"), [("adamw0.003", torch.optim.AdamW, 3e-3), ("sgd0.02", torch.optim.SGD, 2e-2)]
)
def test_a_name_may_choose_the_optimiser_and_its_rate(make, network, part, kind, rate):
    trainer = make(f"{NETWORKS[network][0]}_scratch_20ep_{part}", network)
    trainer.initialize()
    assert type(trainer.optimizer) is kind
    assert trainer.initial_lr == trainer.lr_scheduler.peak == rate
    assert trainer.optimizer.param_groups[0]["weight_decay"] == trainer.decay


def test_the_rate_of_a_warmup_rises_with_every_step_and_that_of_a_decay_with_every_epoch(make):
    trainer = make("ResEncTrainer_ft_20ep_adamw0.003")
    trainer.initialize()
    trainer.num_iterations_per_epoch = 4
    rates = []
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for step in range(4):
            trainer.train_step(batch(trainer, step))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([3e-3 * share for share in (0.25, 0.5, 0.75, 1.0)])
    assert rates[4:] == [*[3e-3] * 4, *[pytest.approx(3e-3 * (18 / 19) ** 0.9)] * 4]


@pytest.mark.parametrize("network", LAYERS)
def test_layerwise_decay_gives_every_layer_its_rate(make, network):
    trainer = make(f"{NETWORKS[network][0]}_ft_llrd0.5", network)
    trainer.initialize()
    groups = trainer.optimizer.param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in trainer.network.parameters())
    layers = LAYERS[network]
    assert [group[FACTOR] for group in groups] == [0.5**depth for depth in range(layers + 1)]
    trainer.current_epoch = 49
    trainer.on_train_epoch_start()
    assert [group["lr"] for group in groups] == [trainer.learning_rate * 0.5**depth for depth in range(layers + 1)]
    # What nnU-Net writes down and draws is the highest rate.
    assert trainer.logger.get_value("lrs", -1) == trainer.learning_rate
    first = {id(p) for p in groups[-1]["params"]}
    convolutions = [module for module in trainer.network.modules() if isinstance(module, torch.nn.Conv3d)]
    assert {id(module.weight) for module in convolutions if module.in_channels == 1} & first


def test_each_phase_is_announced_when_it_begins(make):
    trainer = make("ResEncTrainer_ft_40ep_sawtooth")
    run_epochs(trainer, 5)
    lines = [line.partition(": ")[2].strip() for line in log(trainer).splitlines()]
    assert [line for line in lines if re.match(r"Phase|Epoch \d", line)] == [
        *("Epoch 0", "Phase 1 of 4: encoder frozen, warm-up, epochs 0 to 1", "Epoch 1"),
        *("Epoch 2", "Phase 2 of 4: encoder frozen, decay, epochs 2 to 3", "Epoch 3"),
        *("Epoch 4", "Phase 3 of 4: whole network, warm-up, epochs 4 to 7"),
    ]


def test_a_subclass_may_change_the_rate_and_the_epochs(make):
    class Mine(find("ResEncTrainer_ft_sawtooth")):
        learning_rate = 5e-4

        def initialize(self):
            self.num_epochs = 8
            super().initialize()

    trainer = make(Mine)
    trainer.initialize()
    assert trainer.lr_scheduler.peak == 5e-4
    assert trainer.lr_scheduler.course == course_of(Schedule("sawtooth"), 8)


@pytest.mark.parametrize("schedule", ["sawtooth", "llrd0.75"])
def test_a_network_of_two_dimensions_has_an_encoder_as_well(make, schedule):
    trainer = make(f"ResEncTrainer_ft_{schedule}", "flat")
    trainer.initialize()
    run_epochs(trainer, 1)
    assert trainer.network(torch.zeros(1, 1, *PATCH[1:]))[0].shape == (1, 3, *PATCH[1:])


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


def test_weights_of_other_voxels_are_said_in_the_log_and_the_training_goes_on(make, tmp_path, caplog):
    trainer = make("ResEncTrainer_ft")
    trainer.initialize()
    theirs = json.loads(json.dumps(trainer.plans_manager.plans))
    theirs["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    content = {"init_args": {"plans": theirs, "configuration": "3d_fullres"}}
    torch.save({**content, "network_weights": trainer.network.state_dict()}, tmp_path / "other.pth")
    trainer.plans_manager.plans["configurations"]["3d_fullres"]["spacing"] = [0.5, 0.5, 0.5]
    run_training.maybe_load_checkpoint(trainer, False, False, str(tmp_path / "other.pth"))
    assert [record.levelname for record in caplog.records if "up to 2 times another size" in record.message] == [
        "WARNING"
    ]
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert log.count("WARNING: ") == log.count("this network works at 0.5 x 0.5 x 0.5 mm") == 1


def test_a_subclass_names_its_own_loader(make):
    calls = []

    class Mine(find("ResEncTrainer_ft")):
        load_pretrained_weights = staticmethod(lambda network, fname, verbose=False: calls.append((network, fname)))

    mine = make(Mine)
    run_training.maybe_load_checkpoint(mine, False, False, "any.file")
    assert calls == [(mine.network, "any.file")]
    other = make("ResEncTrainer_ft")
    with pytest.raises(FileNotFoundError, match=r"any\.file"):
        run_training.maybe_load_checkpoint(other, False, False, "any.file")
    assert len(calls) == 1


def trainer_kwargs(trainer):
    return stunet_kwargs("small", trainer.configuration_manager.pool_op_kernel_sizes)
