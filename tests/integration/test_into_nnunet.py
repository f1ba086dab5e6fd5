"""The five routes from a pretrained file into nnU-Net, each with the real commands: on a dozen real images, or on
phantoms where the real ones are absent.

nnU-Net's trainers run 1000 epochs, so every route uses a *short* trainer in a user's own folder on
``nnUNet_extTrainer``: the trainer of the route with one epoch of two steps. It writes down the network right after it
was initialised and again when training starts; what lies between the two is the loading of pretrained weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_DATA, TINY, Home, run_command

from ssl_pretrain.transfer.extension import extension_folder, trainer_environment

pytestmark = pytest.mark.slow

CONFIGURATION, FOLD = "3d_fullres", "0"
RESENC_PLANS = "nnUNetResEncUNetMPlans"

SHORT = """
import json
import sys
from pathlib import Path

import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

BASE = {base}


class Short{name}(BASE):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        torch.manual_seed(1234)  # not the seed of the pretraining runs: fresh here is not what was fresh there
        super().initialize()
        self.write_down("initialized")

    def on_train_start(self):
        super().on_train_start()
        self.inference_allowed_mirroring_axes = None
        self.write_down("started")
        groups = self.optimizer.param_groups
        trained = {{id(p) for group in groups for p in group["params"]}}
        facts = {{
            "network": type(self.network).__name__,
            "loader": run_training.load_pretrained_weights.__module__,  # of an instance, too: that of its class
            "ours": sorted(name for name in sys.modules if name.startswith("ssl_pretrain")),
            "initial_lr": self.initial_lr,
            "schedule": type(self.lr_scheduler).__name__,
            "all_trained": trained == {{id(p) for p in self.network.parameters()}},
        }}
        Path(self.output_folder, "facts.json").write_text(json.dumps(facts))

    def perform_actual_validation(self, save_probabilities=False):
        # Three whole cases: for the stock trainer alone, to save time.
        if BASE is nnUNetTrainer:
            super().perform_actual_validation(save_probabilities)

    def write_down(self, moment):
        torch.save(self.network.state_dict(), Path(self.output_folder) / f"{{moment}}.pth")
"""

BASES = {
    "Stock": "nnUNetTrainer",
    "STUNet": 'recursive_find_trainer_class_by_name("STUNetTrainer_small_ft")',
    "ResEnc": 'recursive_find_trainer_class_by_name("ResEncTrainer_ft")',
}

OWN_LOADER = """
import torch


def load_pretrained_weights(network, fname, verbose=False):
    weights = torch.load(fname, weights_only=True)["network_weights"]
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith("encoder.stages.0."):
                tensor.copy_(2 * weights[name])
    print("MY OWN LOADER", verbose)
"""


@dataclass(frozen=True)
class Pretrained:
    """A finished pretraining run: its output, ``checkpoint_final.pth`` and that file's content."""

    stdout: str
    file: Path
    content: dict

    @property
    def weights(self):
        return self.content["network_weights"]

    @property
    def about(self):
        return self.content["pretraining"]

    def in_pretrained_keys(self, key):
        return key in set(self.about["pretrained_keys"])


@dataclass(frozen=True)
class Trained:
    """A finished run of ``nnUNetv2_train`` with a short trainer."""

    stdout: str
    folder: Path
    facts: dict
    initialized: dict
    started: dict
    final: dict


@pytest.fixture(scope="module")
def home(request, tmp_path_factory):
    original = request.getfixturevalue("hippocampus" if SHARED_DATA.is_dir() else "phantoms")
    copied = original.copy(tmp_path_factory.mktemp("routes of a user"))
    run_command(("nnUNetv2_plan_experiment", "-d", copied.number, "-pl", "nnUNetPlannerResEncM"), copied.environment)
    return copied


@pytest.fixture(scope="module", autouse=True)
def nothing_else_changes(home):
    """Neither the installed nnU-Net nor the data are touched by any of the routes."""
    import nnunetv2

    before = {**digests(Path(nnunetv2.__file__).parent, "*.py"), **digests(home.preprocessed, "*")}
    yield
    after = {**digests(Path(nnunetv2.__file__).parent, "*.py"), **digests(home.preprocessed, "*")}
    assert {file: after.get(file) for file in before} == before
    added = {file.name for file in set(after) - set(before)}
    assert added <= {"splits_final.json", "nnUNetPlans_STUNet_small.json", "nnUNetPlans_3d_fullres.index"}


def digests(folder, pattern):
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in folder.rglob(pattern) if file.is_file()}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """Folders with one short trainer each, as users have them."""
    return write_short_trainers(tmp_path_factory.mktemp("my trainers"), BASES)


def write_short_trainers(root: Path, bases: dict[str, str]) -> Path:
    """A folder below ``root`` with a short trainer for each of the bases, which are expressions."""
    for name, base in bases.items():
        (root / name).mkdir()
        (root / name / f"Short{name}Trainer.py").write_text(SHORT.format(base=base, name=name), encoding="utf-8")
    return root


def pretrain(home: Home, *flags):
    args = ("nnUNetv2_pretrain", home.number, CONFIGURATION, FOLD, *flags, *TINY)
    done = run_command(args, home.environment, cwd=home.root)
    file = home.root / re.findall(r"Finished: (.*)", done.stdout)[-1].strip()
    return Pretrained(done.stdout, file, torch.load(file, weights_only=True))


@pytest.fixture(scope="module")
def plain(home):
    """The network of nnU-Net's default plans, pretrained with SparK."""
    return pretrain(home, "-m", "SparK")


@pytest.fixture(scope="module")
def stunet(home):
    """STU-Net small, pretrained with AnatoMask."""
    return pretrain(home, "-network", "STUNet_small")


@pytest.fixture(scope="module")
def resenc(home):
    """A residual encoder U-Net with a stem, pretrained with AnatoMask into a folder beside the user."""
    return pretrain(home, "-p", RESENC_PLANS, "-o", "my output")


def train(home: Home, folders, name, *flags, env=None, command=None):
    """Run ``nnUNetv2_train`` with a short trainer; ``folders`` is what the user sets ``nnUNet_extTrainer`` to."""
    command = command or ("nnUNetv2_train", home.number, CONFIGURATION, FOLD, "-device", "cpu")
    variable = os.pathsep.join(map(str, folders))
    # Readers in the trainer's own process: starting others takes longer than the three batches they would read.
    env = {**home.environment, "nnUNet_extTrainer": variable, "nnUNet_n_proc_DA": "0", **(env or {})}
    done = run_command((*command, *flags, "-tr", f"Short{name}"), env)
    plans = flags[flags.index("-p") + 1] if "-p" in flags else "nnUNetPlans"
    plans = command[command.index("-p") + 1] if "-p" in command else plans
    folder = home.results / home.dataset / f"Short{name}__{plans}__{CONFIGURATION}" / f"fold_{FOLD}"
    moments = (torch.load(folder / f"{moment}.pth", weights_only=True) for moment in ("initialized", "started"))
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Trained(done.stdout, folder, facts, *moments, final)


def assert_holds(trained, source, taken):
    """The network that starts training has the ``source``'s tensors where ``taken(key)``, its own everywhere else."""
    assert trained.started.keys() == trained.initialized.keys()
    keys = [key for key in trained.started if taken(key)]
    assert keys
    wrong = [key for key in keys if not torch.equal(trained.started[key], source[key])]
    assert not wrong
    wrong = [k for k in trained.started if not taken(k) and not torch.equal(trained.started[k], trained.initialized[k])]
    assert not wrong
    # The comparison means something only if the two differ, and if what was loaded is what is then trained.
    # (Not so the lowest segmentation head, to which nnU-Net's deep supervision gives no weight.)
    weights = [key for key in keys if trained.started[key].ndim == 5 and "seg_" not in key]
    assert not any(torch.equal(trained.initialized[key], source[key]) for key in weights)
    assert not any(torch.equal(trained.final[key], trained.started[key]) for key in weights)
    assert trained.facts["all_trained"]


def printed_command(stdout):
    line = re.search(r"Fine-tune with:\s+(nnUNetv2_train.*)", stdout)[1]
    return tuple(part.strip("'\"") for part in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", line))


def target_network(home, plans_name, seed):
    """The network as nnU-Net builds it from a plans file."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(home.folder / f"{plans_name}.json")).get_configuration(CONFIGURATION)
    torch.manual_seed(seed)
    return get_network_from_plans(
        plans.network_arch_class_name,
        plans.network_arch_init_kwargs,
        plans.network_arch_init_kwargs_req_import,
        1,
        len(labels_of(home)),
        allow_init=True,
        deep_supervision=True,
    )


def labels_of(home):
    return set(json.loads((home.folder / "dataset.json").read_text(encoding="utf-8"))["labels"].values())


@pytest.mark.parametrize(
    ("network", "plans", "encoder"),
    [
        ("plain", "nnUNetPlans", ("encoder.", "decoder.encoder.")),
        ("stunet", "nnUNetPlans_STUNet_small", ("conv_blocks_context.",)),
        ("resenc", RESENC_PLANS, ("encoder.", "decoder.encoder.")),
    ],
)
def test_the_file_is_complete_and_says_what_is_pretrained_in_it(request, home, network, plans, encoder):
    pretrained = request.getfixturevalue(network)
    fresh_network = target_network(home, plans, seed=0).state_dict()
    weights, about = pretrained.weights, pretrained.about
    assert weights.keys() == fresh_network.keys()
    assert all(weights[key].shape == tensor.shape for key, tensor in fresh_network.items())
    trained, fresh = set(about["pretrained_keys"]), set(about["fresh_keys"])
    assert trained | fresh == weights.keys()
    assert not trained & fresh
    assert trained == {key for key in weights if key.startswith(encoder)}
    assert trained == set(about["encoder_keys"])
    # Fresh means: what nnU-Net's own initialisation gives for the seed of the run. Pretrained means: no longer that.
    assert all(torch.equal(weights[key], fresh_network[key]) for key in fresh)
    assert not any(torch.equal(weights[key], fresh_network[key]) for key in trained if weights[key].ndim == 5)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_the_printed_command_names_the_file_from_any_folder(home, resenc):
    command = printed_command(resenc.stdout)
    assert command[:5] == ("nnUNetv2_train", home.number, CONFIGURATION, FOLD, "-p")
    assert command[command.index("-pretrained_weights") + 1] == str(home.root / "my output" / "checkpoint_final.pth")


def test_route_1_stock_nnunet_loads_the_file_as_it_is(home, trainers, plain):
    """The command is the one that pretraining printed, with nothing of ours on nnU-Net's side."""
    command = printed_command(plain.stdout)
    assert command[command.index("-pretrained_weights") + 1] == str(plain.file)
    before = plain.file.read_bytes()
    trained = train(home, [trainers / "Stock"], "Stock", command=command)
    assert trained.facts["ours"] == []
    assert trained.facts["loader"] == "nnunetv2.run.load_pretrained_weights"
    assert_holds(trained, plain.weights, lambda key: ".seg_layers." not in key)
    assert plain.file.read_bytes() == before


def test_route_2_stock_nnunet_trains_an_stunet_by_its_plans_file(home, trainers, stunet):
    command = printed_command(stunet.stdout)
    assert command[command.index("-p") + 1] == "nnUNetPlans_STUNet_small"
    trained = train(home, [trainers / "Stock"], "Stock", command=command)
    assert trained.facts["network"] == "STUNet"
    assert trained.facts["loader"] == "nnunetv2.run.load_pretrained_weights"
    assert not [name for name in trained.facts["ours"] if name.startswith("ssl_pretrain.transfer")]
    # nnU-Net leaves out its own segmentation layers by their name; STU-Net's have another, so all of the file is taken.
    assert_holds(trained, stunet.weights, lambda key: ".seg_layers." not in key)
    assert (trained.folder / "validation" / "summary.json").is_file()


def test_route_3_our_trainer_fine_tunes_an_stunet_and_predicts(home, trainers, stunet, tmp_path):
    folders = [extension_folder(), trainers / "STUNet"]
    trained = train(home, folders, "STUNet", "-pretrained_weights", stunet.file)
    assert trained.facts["network"] == "STUNet"
    assert trained.facts["loader"] == "ssl_pretrain.transfer.hook"
    assert trained.facts["initial_lr"] == 1e-3
    assert_holds(trained, stunet.weights, stunet.in_pretrained_keys)
    assert f"Pretrained weights from {stunet.file}" in trained.stdout
    assert_predicts(home, folders, "STUNet", tmp_path)


def assert_predicts(home, folders, name, tmp_path):
    import SimpleITK

    images = sorted((home.raw / home.dataset / "imagesTr").iterdir())[:2]
    (tmp_path / "in").mkdir()
    for image in images:
        shutil.copyfile(image, tmp_path / "in" / image.name)
    task = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-d", home.number, "-c", CONFIGURATION, "-f", FOLD)
    machine = ("-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta")
    env = {**home.environment, "nnUNet_extTrainer": os.pathsep.join(map(str, folders))}
    run_command(("nnUNetv2_predict", *task, "-tr", f"Short{name}", *machine), env)
    for image in images:
        expected = SimpleITK.ReadImage(str(image))
        labels = SimpleITK.ReadImage(str(tmp_path / "out" / image.name.replace("_0000", "")))
        assert labels.GetSize() == expected.GetSize()
        assert labels.GetSpacing() == pytest.approx(expected.GetSpacing())
        assert set(np.unique(SimpleITK.GetArrayFromImage(labels))) <= labels_of(home)


def test_route_4_our_trainer_takes_an_encoder_only_file(home, trainers, resenc, tmp_path):
    encoder = {key: value for key, value in resenc.weights.items() if key.startswith("encoder.")}
    file = tmp_path / "encoder only.pth"
    torch.save({"network_weights": encoder}, file)
    folders = trainer_environment({"nnUNet_extTrainer": str(trainers / "ResEnc")})["nnUNet_extTrainer"]
    flags = ("-p", RESENC_PLANS, "-pretrained_weights", file)
    trained = train(home, folders.split(os.pathsep), "ResEnc", *flags)
    assert trained.facts["network"] == "ResidualEncoderUNet"
    assert trained.facts["schedule"] == "CourseLR"
    assert trained.facts["initial_lr"] == 1e-3
    # The decoder registers the encoder once more: the same tensors under other names.
    assert_holds(trained, resenc.weights, lambda key: key.removeprefix("decoder.") in encoder)
    assert f"Pretrained weights from {file}" in trained.stdout
    assert re.search(r"^loaded +encoder\.stem\.\S+ +32x1x3x3x3 +32x1x3x3x3", trained.stdout, re.MULTILINE)
    assert re.search(r"^fresh +decoder\.seg_layers\.0\.weight +-", trained.stdout, re.MULTILINE)


def test_route_5_the_users_own_function_is_the_one_that_runs(home, trainers, plain, tmp_path):
    """In a copy of the checkout, the file that the docs name is replaced by the user's."""
    for folder in ("ssl_pretrain", "nnunetv2"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "nnunetv2" / "run" / "load_pretrained_weights.py").write_text(OWN_LOADER, encoding="utf-8")
    folders = [tmp_path / "nnunetv2" / "training" / "nnUNetTrainer", trainers / "ResEnc"]
    flags = ("-pretrained_weights", plain.file)
    trained = train(home, folders, "ResEnc", *flags, env={"PYTHONPATH": str(tmp_path)})
    assert "MY OWN LOADER True" in trained.stdout
    doubled = {key: 2 * value for key, value in plain.weights.items()}
    first_stage = re.compile(r"(decoder\.)?encoder\.stages\.0\.")
    assert_holds(trained, doubled, lambda key: first_stage.match(key) is not None)
