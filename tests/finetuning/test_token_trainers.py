"""Our nnU-Net trainers for transformers, run by nnU-Net itself."""

import importlib.util
import json
import shutil

import pytest
import torch
from conftest import run_command
from made_trainers import find
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training

from ssl_pretrain.finetuning.schedules import Schedule, course_of
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.primus import PRIMUS_SIZES
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint
from ssl_pretrain.transfer.extension import trainer_environment
from ssl_pretrain.transfer.plans import write_network_plans

CPU = torch.device("cpu")
PATCH = (16, 32, 48)
SETTINGS = {
    "PrimusM": {"width": 24, "depth": 3, "heads": 2},
    "ViT_B16": {"width": 24, "depth": 4, "heads": 2},
    "SwinUNETR": {"feature_size": 4, "depths": 1, "heads": 1, "window": 4, "normalize": False},
}
PATCHES = {"PrimusM": PATCH, "ViT_B16": PATCH, "SwinUNETR": (32, 32, 64)}
TRAINERS = {"PrimusM": "PrimusTrainer_ft", "ViT_B16": "UNETRTrainer_ft", "SwinUNETR": "SwinUNETRTrainer_ft"}
FAMILIES = [
    "PrimusM",
    *(
        pytest.param(
            network,
            marks=pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="pip install anatomask[monai]"),
        )
        for network in ("ViT_B16", "SwinUNETR")
    ),
]
DATASET = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


def pretrained(network, patch=None, channels=1, classes=3):
    patch = patch or PATCHES[network]
    torch.manual_seed(3)
    arguments = {"input_channels": channels, "num_classes": classes, "patch": patch, "settings": SETTINGS[network]}
    return build_backbone(network, architecture={}, **arguments)


def checkpoint(backbone, network, file, patch=None):
    """What a run writes that trained the encoder."""
    keys = set(backbone.encoder_keys)
    ids = {id(p) for name, p in backbone.network.named_parameters() if name in keys}
    provenance = Provenance(
        "SimMIM", network, {}, {"configurations": {}}, "3d_fullres", patch or PATCHES[network], (), 1, 0
    )
    torch.save(build_checkpoint(backbone, ids, provenance), file)
    return file


@pytest.fixture
def trainers(monkeypatch):
    """nnU-Net looks in our folder of trainers."""
    # Importing a trainer installs the hook; the rest of the session must find nnU-Net as it was.
    monkeypatch.setattr(run_training, "load_pretrained_weights", run_training.load_pretrained_weights)
    monkeypatch.setenv("nnUNet_extTrainer", trainer_environment({})["nnUNet_extTrainer"])


@pytest.fixture
def plans_file(tmp_path):
    """Plans of a U-Net for a made-up dataset, where nnU-Net looks for them."""
    folder = tmp_path / "preprocessed" / "Dataset900_Made"
    (folder / "made_3d").mkdir(parents=True)
    (folder / "made_3d" / "case.npz").touch()
    plans = {
        "dataset_name": "Dataset900_Made",
        "plans_name": "nnUNetPlans",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "made_3d",
                "patch_size": [40, 56, 40],
                "batch_size": 2,
                "batch_dice": True,
                "architecture": {"network_class_name": "x.Net", "arch_kwargs": {}, "_kw_requires_import": []},
            }
        },
    }
    file = folder / "nnUNetPlans.json"
    file.write_text(json.dumps(plans))
    return file


@pytest.fixture
def make(trainers, plans_file, monkeypatch):
    """Build a trainer by name, on the plans that pretraining a network writes."""
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(plans_file.parents[2] / folder))

    def build(trainer, network="PrimusM", patch=None, channels=1):
        patch = patch or PATCHES[network]
        written = write_network_plans(plans_file, "3d_fullres", network, pretrained(network, patch, channels), patch)
        plans = {**json.loads(written.read_text()), "continue_training": False}
        dataset = {**DATASET, "channel_names": {str(i): "CT" for i in range(channels)}}
        return find(trainer)(plans, "3d_fullres", 0, dataset, CPU)

    return build


def test_the_rate_is_the_published_one_whatever_the_size(trainers):
    for name in (
        "PrimusTrainer",
        *(f"PrimusTrainer_{letter}" for letter in PRIMUS_SIZES),
        "UNETRTrainer",
        "SwinUNETRTrainer",
    ):
        assert find(f"{name}_ft").learning_rate == 1e-4
        assert find(f"{name}_scratch_150ep").learning_rate == 3e-4


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("network", FAMILIES)
def test_the_network_is_the_one_that_pretraining_exports(make, network, channels):
    trainer = make(TRAINERS[network], network, channels=channels)
    trainer.initialize()
    exported = pretrained(network, channels=channels).network
    assert type(trainer.network) is type(exported)
    trainer.network.load_state_dict(exported.state_dict())
    image = torch.randn(1, channels, *PATCHES[network])
    with torch.no_grad():
        assert torch.equal(trainer.network.eval()(image), exported.eval()(image))


@pytest.mark.parametrize("network", FAMILIES)
def test_the_recipe_is_the_published_one(make, network):
    trainer = make(TRAINERS[network], network)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    (group,) = trainer.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.98), 5e-2)
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.network.parameters()}
    for epoch in (0, 49, 50, 999):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert group["lr"] == course_of(Schedule("warmup"), 1000).rate(epoch, 1e-4)
    assert not trainer.enable_deep_supervision
    trainer.set_deep_supervision_enabled(True)


def test_primus_drops_paths_in_training_alone(make):
    trainer = make("PrimusTrainer_ft")
    trainer.initialize()
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in trainer.network.eva.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(trainer.network.eval()(image), trainer.network(image))


@pytest.mark.parametrize("network", FAMILIES)
def test_a_step_of_nnunet_lowers_the_loss_with_gradients_of_norm_one(make, network):
    trainer = make(TRAINERS[network], network)
    trainer.initialize()
    trainer.optimizer.param_groups[0]["lr"] = 1e-3
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, *PATCHES[network], generator=generator)
    batch = {"data": 5 * image, "target": (image > 0.5).float() + (image > 1.5)}
    norms = []

    def record(optimizer, args, kwargs):
        gradients = [p.grad for p in optimizer.param_groups[0]["params"]]
        assert all(gradient is not None for gradient in gradients)
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    trainer.optimizer.register_step_pre_hook(record)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert max(norms) < 1.0 + 1e-4
    for parameter in trainer.network.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    trainer.optimizer.step()
    assert norms[-1] == pytest.approx(1.0, abs=1e-3)
    assert float(trainer.validation_step(batch)["loss"]) == pytest.approx(losses[-1], abs=0.5)


@pytest.mark.parametrize("network", FAMILIES)
def test_nnunet_loads_what_was_pretrained_through_our_hook(make, network, tmp_path, capsys):
    trainer = make(TRAINERS[network], network)
    donor = pretrained(network)
    with torch.no_grad():
        for parameter in donor.network.parameters():
            parameter.add_(1.0)
    file = checkpoint(donor, network, tmp_path / "checkpoint_final.pth")
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    ours, theirs = trainer.network.state_dict(), donor.network.state_dict()
    same = {key for key in ours if torch.equal(ours[key], theirs[key])}
    assert set(donor.encoder_keys) <= same
    assert not set(donor.decoder_keys) & same
    assert f"Pretrained weights from {file}" in capsys.readouterr().out


@pytest.mark.parametrize("network", FAMILIES)
def test_prediction_builds_the_network_for_the_patch_and_slides_in_patches(make, network, tmp_path, monkeypatch):
    """The road of nnUNetv2_predict: the class by its name, the network from the plans beside the checkpoint."""
    trainer = make(TRAINERS[network], network)
    trainer.initialize()
    folder = tmp_path / "model"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    trainer.logger.log("lrs", 0.0, 0)
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    monkeypatch.setenv("nnUNet_extTrainer", trainer_environment()["nnUNet_extTrainer"])
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, allow_tqdm=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    tiles = []
    predictor.network.register_forward_pre_hook(lambda module, args: tiles.append(tuple(args[0].shape[2:])))
    image = torch.randn(1, 40, 40, 70)
    logits = predictor.predict_sliding_window_return_logits(image)
    assert logits.shape == (3, 40, 40, 70)
    assert set(tiles) == {PATCHES[network]}
    assert torch.isfinite(logits).all()
    d, h, w = PATCHES[network]
    exact = image[None, :, :d, :h, :w]
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(exact), trainer.network.eval()(exact))


@pytest.mark.parametrize("letter", ["S", "L"])
def test_a_trainer_named_after_a_size_builds_it_whatever_the_plans_name(trainers, letter):
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    kwargs = {"embed_dim": 24, "eva_depth": 1, "eva_numheads": 2}
    name = "dynamic_network_architectures.architectures.primus.Primus"
    configuration = {"patch_size": [16, 16, 8], "architecture": {"network_class_name": name, "arch_kwargs": kwargs}}

    def built(trainer, **changes):
        manager = ConfigurationManager({**configuration, "architecture": {**configuration["architecture"], **changes}})
        with torch.device("meta"):
            return find(trainer).build_network_architecture(None, manager, 1, 2)

    assert built("PrimusTrainer_ft").embed_dim == 24
    assert built(f"PrimusTrainer_{letter}_ft").embed_dim == PRIMUS_SIZES[letter].width
    assert built("PrimusTrainer_ft", network_class_name="x.PlainConvUNet").embed_dim == PRIMUS_SIZES["M"].width


@pytest.mark.parametrize(
    ("network", "nearest"),
    [
        ("PrimusM", r"\(40, 56, 16\) and \(40, 56, 24\)"),
        ("ViT_B16", r"\(32, 48, 16\) and \(48, 64, 32\)"),
        ("SwinUNETR", r"\(32, 32, 32\) and \(64, 64, 32\)"),
    ],
)
def test_a_planned_patch_that_does_not_fit_says_where_one_comes_from(trainers, network, nearest):
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    architecture = {"network_class_name": "x.Net", "arch_kwargs": {}}
    manager = ConfigurationManager({"patch_size": [40, 56, 20], "architecture": architecture})
    message = rf"Nearest patch sizes that work: {nearest} .* -network {network} .* -p <PLANS>_{network}\."
    with pytest.raises(ValueError, match=message):
        find(TRAINERS[network]).build_network_architecture(None, manager, 1, 2)


SHORT = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


class Short{base}(recursive_find_trainer_class_by_name("{base}")):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        super().initialize()

    def perform_actual_validation(self, save_probabilities=False):
        pass  # whole cases, as nnUNetv2_predict does them below
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", FAMILIES)
def test_the_real_commands_fine_tune_and_predict(phantoms, network, tmp_path):
    home = phantoms.copy(tmp_path / "home")
    patch, base = ((32, 32, 64) if network == "SwinUNETR" else (16, 32, 32)), TRAINERS[network]
    classes = len(json.loads((home.folder / "dataset.json").read_text())["labels"])
    backbone = pretrained(network, patch, classes=classes)
    plans = write_network_plans(home.folder / "nnUNetPlans.json", "3d_fullres", network, backbone, patch).stem
    file = checkpoint(backbone, network, tmp_path / "checkpoint_final.pth", patch)
    own = tmp_path / "my trainers"
    own.mkdir()
    (own / "Short.py").write_text(SHORT.format(base=base))
    folders = trainer_environment({"nnUNet_extTrainer": str(own)})["nnUNet_extTrainer"]
    env = {**home.environment, "nnUNet_extTrainer": folders, "nnUNet_n_proc_DA": "0"}
    where = ("-p", plans, "-tr", f"Short{base}", "-device", "cpu")
    done = run_command(("nnUNetv2_train", home.number, "3d_fullres", "0", *where, "-pretrained_weights", file), env)
    assert f"Pretrained weights from {file}" in done.stdout
    folder = home.results / home.dataset / f"Short{base}__{plans}__3d_fullres" / "fold_0"
    assert (folder / "checkpoint_final.pth").is_file()
    images = sorted((home.raw / home.dataset / "imagesTr").iterdir())[:1]
    (tmp_path / "in").mkdir()
    shutil.copyfile(images[0], tmp_path / "in" / images[0].name)
    task = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-d", home.number, "-c", "3d_fullres", "-f", "0")
    run_command(("nnUNetv2_predict", *task, *where, "-npp", "1", "-nps", "1", "--disable_tta"), env)
    assert (tmp_path / "out" / images[0].name.replace("_0000", "")).is_file()
