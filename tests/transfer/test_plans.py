"""Plans files that name another network, read back by nnU-Net itself."""

import copy
import json

import pytest
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.stunet import STUNet
from ssl_pretrain.transfer.plans import write_network_plans, write_stunet_plans

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


def configuration(dims, strides):
    return {
        "data_identifier": f"nnUNetPlans_{dims}d",
        "spacing": [1.0] * dims,
        "patch_size": [32] * dims,
        "batch_size": 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"n_stages": len(strides), "strides": strides},
            "_kw_requires_import": [],
        },
    }


PLANS = {
    "dataset_name": "Dataset900_Made",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "2d": configuration(2, [[1, 1], [2, 2]]),
        "3d_fullres": configuration(3, STRIDES),
        "3d_lowres": {**configuration(3, STRIDES), "data_identifier": "nnUNetPlans_3d_lowres", "spacing": [2.0] * 3},
        "3d_cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "from_2d": {"inherits_from": "2d"},
    },
}


@pytest.fixture
def plans_file(tmp_path):
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps(PLANS), encoding="utf-8")
    return file


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def edit(file, change):
    plans = read(file)
    change(plans["configurations"])
    file.write_text(json.dumps(plans), encoding="utf-8")


def test_only_name_and_architecture_change(plans_file):
    written = write_stunet_plans(plans_file, "3d_fullres", "small")
    assert written == plans_file.with_name("nnUNetPlans_STUNet_small.json")
    expected = copy.deepcopy(PLANS)
    expected["plans_name"] = "nnUNetPlans_STUNet_small"
    plans = read(written)
    architecture = plans["configurations"]["3d_fullres"].pop("architecture")
    del expected["configurations"]["3d_fullres"]["architecture"]
    assert plans == expected
    assert architecture["network_class_name"] == "ssl_pretrain.networks.stunet.STUNet"
    assert architecture["_kw_requires_import"] == []
    assert read(plans_file) == PLANS
    assert sorted(file.name for file in plans_file.parent.iterdir()) == sorted([plans_file.name, written.name])


def test_nnunet_builds_the_network_from_it_and_finds_the_same_data(plans_file):
    manager = PlansManager(str(write_stunet_plans(plans_file, "3d_fullres", "small")))
    planned = manager.get_configuration("3d_fullres")
    network = get_network_from_plans(
        planned.network_arch_class_name,
        planned.network_arch_init_kwargs,
        planned.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=True,
    )
    assert isinstance(network, STUNet)
    assert planned.pool_op_kernel_sizes == [*STRIDES, [1, 1, 1], [1, 1, 1]]
    assert planned.data_identifier == "nnUNetPlans_3d"
    assert manager.plans_name == "nnUNetPlans_STUNet_small"


def test_an_inheriting_configuration_changes_its_own_entry_only(plans_file):
    written = write_stunet_plans(plans_file, "3d_cascade", "base")
    configurations = read(written)["configurations"]
    assert configurations["3d_fullres"] == PLANS["configurations"]["3d_fullres"]
    assert configurations["3d_cascade"].keys() == {"inherits_from", "previous_stage", "architecture"}
    manager = PlansManager(str(written))
    assert manager.get_configuration("3d_cascade").network_arch_class_name.endswith("STUNet")
    assert manager.get_configuration("3d_cascade").data_identifier == "nnUNetPlans_3d"


def test_a_second_configuration_is_added_to_the_same_file(plans_file):
    first = write_stunet_plans(plans_file, "3d_fullres", "small")
    assert write_stunet_plans(plans_file, "3d_lowres", "small") == first
    configurations = read(first)["configurations"]
    for name in ("3d_fullres", "3d_lowres"):
        assert configurations[name]["architecture"]["network_class_name"].endswith("STUNet")


def test_a_configuration_made_later_is_taken_over(plans_file):
    written = write_stunet_plans(plans_file, "3d_fullres", "small")
    edit(written, lambda configurations: configurations.pop("3d_lowres"))
    write_stunet_plans(plans_file, "3d_lowres", "small")
    assert read(written)["configurations"]["3d_lowres"]["spacing"] == [2.0] * 3


def test_writing_again_keeps_what_the_user_edited(plans_file):
    written = write_stunet_plans(plans_file, "3d_fullres", "small")
    edit(written, lambda configurations: configurations["3d_fullres"].update(batch_size=7))
    before = written.read_bytes()
    assert write_stunet_plans(plans_file, "3d_fullres", "small") == written
    assert written.read_bytes() == before


def test_another_network_in_the_file_is_not_overwritten(plans_file):
    written = write_stunet_plans(plans_file, "3d_fullres", "small")
    edit(written, lambda c: c["3d_fullres"]["architecture"]["arch_kwargs"].update(n_blocks_per_stage=[9] * 6))
    before = written.read_bytes()
    with pytest.raises(ValueError, match="already describes another network for 3d_fullres"):
        write_stunet_plans(plans_file, "3d_fullres", "small")
    assert written.read_bytes() == before


def test_a_dataset_planned_anew_is_noticed(plans_file):
    write_stunet_plans(plans_file, "3d_fullres", "small")
    edit(plans_file, lambda configurations: configurations["3d_fullres"].update(spacing=[3.0] * 3))
    with pytest.raises(ValueError, match=r"about spacing of 3d_fullres: \[1.0, 1.0, 1.0\] and \[3.0, 3.0, 3.0\]"):
        write_stunet_plans(plans_file, "3d_fullres", "small")


def test_plans_of_an_older_nnunet_are_understood(plans_file):
    def to_old_format(configurations):
        del configurations["3d_fullres"]["architecture"]
        configurations["3d_fullres"]["pool_op_kernel_sizes"] = STRIDES

    edit(plans_file, to_old_format)
    written = write_stunet_plans(plans_file, "3d_fullres", "small")
    arch_kwargs = read(written)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arch_kwargs["strides"] == [*STRIDES, [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("3d_fullres", "tiny", "small, base, large, huge"),
        ("3d_full", "base", "no configuration '3d_full'.*3d_fullres, 3d_lowres"),
        ("2d", "base", "not 3-D"),
        ("from_2d", "base", "not 3-D"),
    ],
)
def test_impossible_requests_are_refused_and_write_nothing(plans_file, name, size, message):
    with pytest.raises(ValueError, match=message):
        write_stunet_plans(plans_file, name, size)
    assert [file.name for file in plans_file.parent.iterdir()] == [plans_file.name]


def test_broken_plans_are_refused(plans_file):
    edit(plans_file, lambda configurations: configurations["3d_fullres"]["architecture"].update(arch_kwargs={}))
    with pytest.raises(ValueError, match="names no strides"):
        write_stunet_plans(plans_file, "3d_fullres", "base")
    edit(plans_file, lambda configurations: configurations["2d"].update(inherits_from="from_2d"))
    with pytest.raises(ValueError, match="inherits from itself"):
        write_stunet_plans(plans_file, "2d", "base")
    plans_file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        write_stunet_plans(plans_file, "3d_fullres", "base")
    plans_file.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no 'configurations'"):
        write_stunet_plans(plans_file, "3d_fullres", "base")


def made(network, settings=None, patch=(32, 32, 32)):
    arch = {"arch_kwargs": {"strides": STRIDES, "kernel_sizes": [[3, 3, 3]] * 4}}
    return build_backbone(
        network, architecture=arch, input_channels=1, num_classes=3, patch=patch, settings=settings or {}
    )


def test_an_stunet_that_was_built_gets_the_plans_of_one_that_was_not(plans_file):
    expected = write_stunet_plans(plans_file, "3d_fullres", "small")
    before = expected.read_bytes()
    expected.unlink()
    written = write_network_plans(plans_file, "3d_fullres", "STUNet_small", made("STUNet_small"), (16, 16, 16))
    assert written == expected
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    ("network", "planned", "expected"),
    [
        ("ResEncM", [32, 32, 32], [32, 32, 32]),  # strides of these plans: their patch is as good as before
        ("ResEncL", [32, 64, 96], [32, 64, 96]),
        ("ResEncL", [40, 56, 40], [64, 64, 32]),  # not divisible by 32
        ("PrimusM", [32, 32, 32], [64, 64, 32]),  # divisible, but positions are learned for one patch size
    ],
)
def test_the_patch_of_pretraining_is_taken_over_where_the_network_needs_it(plans_file, network, planned, expected):
    edit(plans_file, lambda configurations: configurations["3d_fullres"].update(patch_size=planned))
    settings = {"width": 12, "depth": 1, **({"heads": 2} if network == "PrimusM" else {})}
    backbone = made(network, settings, (64, 64, 32))
    written = write_network_plans(plans_file, "3d_fullres", network, backbone, (64, 64, 32))
    assert written.name == f"nnUNetPlans_{network}.json"
    entry = read(written)["configurations"]["3d_fullres"]
    assert entry["patch_size"] == expected
    assert entry["batch_size"] == 2
    assert entry["architecture"]["network_class_name"] == backbone.architecture
    assert read(plans_file)["configurations"]["3d_fullres"]["patch_size"] == planned
    again = write_network_plans(plans_file, "3d_fullres", network, backbone, (64, 64, 32))
    assert read(again)["configurations"]["3d_fullres"] == entry


@pytest.mark.parametrize("network", ["ResEncM", "ResEncL"])
def test_stock_nnunet_builds_the_pretrained_resenc_from_it(plans_file, network):
    backbone = made(network, {"width": 4, "widest": 8, "depth": 1})
    manager = PlansManager(str(write_network_plans(plans_file, "3d_fullres", network, backbone, (32, 32, 32))))
    planned = manager.get_configuration("3d_fullres")
    theirs = get_network_from_plans(
        planned.network_arch_class_name,
        planned.network_arch_init_kwargs,
        planned.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=True,
    )
    theirs.load_state_dict(backbone.network.state_dict())
    assert planned.pool_op_kernel_sizes == backbone.architecture_kwargs["strides"]


def test_a_published_primus_is_named_and_another_is_described(plans_file):
    kwargs = {"embed_dim": 12, "eva_depth": 1, "eva_numheads": 2}
    small = made("PrimusM", {"width": 12, "depth": 1, "heads": 2})
    written = write_network_plans(plans_file, "3d_fullres", "PrimusM", small, (32, 32, 32))
    assert read(written)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] == kwargs
    small.architecture, small.architecture_kwargs = small.architecture + "M", None
    with pytest.raises(ValueError, match=r"already describes another network for 3d_fullres.*PrimusM of these plans"):
        write_network_plans(plans_file, "3d_fullres", "PrimusM", small, (32, 32, 32))
    written.unlink()
    write_network_plans(plans_file, "3d_fullres", "PrimusM", small, (32, 32, 32))
    architecture = read(written)["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"] == "dynamic_network_architectures.architectures.primus.PrimusM"
    assert architecture["arch_kwargs"] == {}


def test_no_plans_are_written_for_a_configuration_that_is_not_3d(plans_file):
    with pytest.raises(ValueError, match=r"is not 3-D \(patch size \[32, 32\]\); ResEncL is\."):
        write_network_plans(plans_file, "2d", "ResEncL", made("ResEncL", {"width": 4, "depth": 1}), (32, 32, 32))
    assert [file.name for file in plans_file.parent.iterdir()] == [plans_file.name]


def test_missing_plans_name_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="nnUNetv2_plan_and_preprocess"):
        write_stunet_plans(tmp_path / "nnUNetPlans.json", "3d_fullres", "base")
