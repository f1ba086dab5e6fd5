"""``--c``: a training that was stopped and continued is the training that was not, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from made_trainers import NETWORKS, equal, log, maker, run_epochs, state, weights
from nnunetv2.run import run_training

from ssl_pretrain.finetuning.mixins import EXEMPT
from ssl_pretrain.finetuning.parts import parts_of
from ssl_pretrain.transfer.load import load_pretrained

STOPS = (1, 3, 5, 8)
"""Epochs after which it is stopped: in the middle of each phase of a sawtooth over 33 epochs."""

LAST = 9


@pytest.fixture
def make(tmp_path, monkeypatch):
    return maker(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("network", "schedule"),
    [
        *(("plain", schedule) for schedule in ("warmup", "sawtooth", "frozen5", "llrd0.75")),
        *(("Primus", schedule) for schedule in ("sawtooth", "llrd0.75")),
    ],
)
def test_it_goes_on_in_the_middle_of_any_phase(make, network, schedule):
    name = f"{NETWORKS[network][0]}_ft_33ep_{schedule}"
    whole = make(name, network)
    whole.initialize()
    for stop in STOPS:
        run_epochs(whole, stop)
        # nnU-Net writes the number of the epoch before it counts on.
        whole.current_epoch -= 1
        whole.save_checkpoint(f"{whole.output_folder}/stopped_{stop}.pth")
        whole.current_epoch += 1
    run_epochs(whole, LAST)
    expected = state(whole)
    assert expected["optimizer"]["state"]
    for stop in STOPS:
        continued = make(name, network)
        folder = Path(continued.output_folder)
        shutil.copyfile(folder / f"stopped_{stop}.pth", folder / "checkpoint_latest.pth")
        run_training.maybe_load_checkpoint(continued, True, False)
        assert continued.current_epoch == stop
        run_epochs(continued, LAST)
        assert equal(state(continued), expected)
        assert continued.logger.get_value("lrs", None) == whole.logger.get_value("lrs", None)
        if schedule == "sawtooth":
            # Also where nothing changes in this epoch: the log of a continued run says where it is.
            assert f"Phase {1 + STOPS.index(stop)} of 4" in log(continued)


def taught(make, tmp_path, network, channels=1):
    """A file with a pretrained encoder; its trainer, too."""
    donor = make(f"{NETWORKS[network][0]}_ft", network, channels)
    donor.initialize()
    with torch.no_grad():
        for parameter in donor.network.parameters():
            parameter.add_(0.1)
    encoder = parts_of(donor.network).encoder
    file = tmp_path / "pretrained.pth"
    torch.save({name: p for name, p in weights(donor).items() if name in encoder}, file)
    return file


@pytest.mark.parametrize("network", ["plain", "Primus"])
@pytest.mark.parametrize("schedule", ["sawtooth", "frozen4"])
def test_the_encoder_stays_as_it_was_pretrained_until_it_is_trained(make, tmp_path, network, schedule):
    file = taught(make, tmp_path, network)
    trainer = make(f"{NETWORKS[network][0]}_ft_33ep_{schedule}", network)
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    pretrained, encoder = torch.load(file, weights_only=True), set(parts_of(trainer.network).encoder)
    before = weights(trainer)
    run_epochs(trainer, 4)
    after = weights(trainer)
    assert all(torch.equal(after[name], pretrained[name]) for name in encoder)
    # (The coarsest segmentation head has weight 0 in nnU-Net's deep supervision; and Adam has none for it, either.)
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert encoder <= still
    assert not [name for name in still - encoder if "seg_layers.0" not in name and "mask_token" not in name]
    named = dict(trainer.network.named_parameters())
    assert not [name for name in encoder if named[name] in trainer.optimizer.state]
    run_epochs(trainer, 5)
    assert not [
        name for name in encoder if name.endswith("weight") and torch.equal(weights(trainer)[name], after[name])
    ]
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())


def test_an_input_projection_that_was_repeated_over_channels_is_trained_with_the_decoder(make, tmp_path):
    """As in the reference; and a run that is continued in the frozen phase still knows."""
    file = taught(make, tmp_path, "plain")
    trainer = make("ResEncTrainer_ft_33ep_sawtooth", "plain", channels=2)
    type(trainer).load_pretrained_weights = staticmethod(
        lambda network, fname, verbose: load_pretrained(network, fname)
    )
    try:
        run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    finally:
        del type(trainer).load_pretrained_weights
    projection = "encoder.stages.0.0.convs.0.conv"
    assert trainer.optimizer.param_groups[0][EXEMPT] == [f"{projection}.weight", f"{projection}.bias"]
    assert f"Not frozen with the encoder, because the file did not have them so: {projection}.weight" in log(trainer)
    before = weights(trainer)
    run_epochs(trainer, 1)
    trainer.current_epoch -= 1
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    continued = make("ResEncTrainer_ft_33ep_sawtooth", "plain", channels=2)
    run_training.maybe_load_checkpoint(continued, True, False)
    run_epochs(continued, 3)
    encoder = parts_of(continued.network).encoder
    changed = {name for name in encoder if not torch.equal(weights(continued)[name], before[name])}
    assert changed == {f"{projection}.weight", f"{projection}.bias"}


def test_a_loader_of_ones_own_that_tells_nothing_leaves_the_whole_encoder_frozen(make):
    trainer = make("ResEncTrainer_ft_33ep_sawtooth")
    trainer.initialize()
    trainer.on_pretrained_weights(None)
    assert trainer.optimizer.param_groups[0][EXEMPT] == []


def test_checkpoints_of_before_the_schedules_go_on(make):
    """They have one group of all parameters, in the order of the network, without an entry of ours."""
    trainer = make("ResEncTrainer_ft")
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    old = torch.optim.SGD(trainer.network.parameters(), 1e-3, momentum=0.99, nesterov=True, weight_decay=3e-5)
    assert set(group) - set(old.param_groups[0]) == {"initial_lr"}
    assert [id(p) for p in group["params"]] == [id(p) for p in old.param_groups[0]["params"]]
