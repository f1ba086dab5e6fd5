"""A dataset without labels: nnU-Net reads its plans, and makes the same itself where labels play no role."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Home
from made_images import write_image
from made_plans import SHAPE, empty_home, fullres, made_cases, plan
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.locate import read_plan
from ssl_pretrain.data.phantoms import make_phantom, write_phantom_dataset
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.planners import patches_that_work
from ssl_pretrain.data.preparation.sources import find_images


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


@pytest.fixture
def cases(home, tmp_path):
    return made_cases(tmp_path / "images")


def preprocess(planned, case: ImageCase) -> np.ndarray:
    """As nnU-Net prepares a case that is to be predicted, by what is on disk."""
    manager = PlansManager(str(planned.plans_file))
    configuration = manager.get_configuration("3d_fullres")
    files = [str(file) for file in case.images]
    run = configuration.preprocessor_class(verbose=False).run_case
    return run(files, None, manager, configuration, str(planned.folder / "dataset.json"))[0]


@pytest.mark.parametrize(
    ("network", "name", "network_class"),
    [
        ("PlainConvUNet", "nnUNetPlans", "PlainConvUNet"),
        ("ResEncM", "nnUNetResEncUNetMPlans", "ResidualEncoderUNet"),
        ("ResEncL", "nnUNetResEncUNetLPlans", "ResidualEncoderUNet"),
    ],
)
def test_nnunet_reads_the_plans_and_their_network_runs(home, cases, network, name, network_class):
    planned = plan(cases, network=network)
    assert planned.plans_file == home.folder / f"{name}.json"
    manager = PlansManager(str(planned.plans_file))
    configuration = manager.get_configuration("3d_fullres")
    assert manager.plans_name == name
    assert manager.experiment_planner_class is not None
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIO"
    assert configuration.data_identifier == "nnUNetPlans_3d_fullres"
    assert configuration.network_arch_class_name.endswith(network_class)
    described = read_plan(planned.plans_file, home.folder / "dataset.json", "3d_fullres")
    net = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        described.input_channels,
        described.num_classes,
        deep_supervision=False,
    )
    with torch.no_grad():
        out = net(torch.zeros(1, 1, *configuration.patch_size))
    assert out.shape == (1, 1, *configuration.patch_size)


def assert_planned_alike(ours: dict, theirs: dict) -> None:
    """But for names and for what nnU-Net takes from the labels: intensities in them."""
    of_labels = ("dataset_name", "foreground_intensity_properties_per_channel")
    assert {k: v for k, v in ours.items() if k not in of_labels} == {
        k: v for k, v in theirs.items() if k not in of_labels
    }


def plan_with_nnunet(home: Home, dataset: str, planners: list[type[ExperimentPlanner]]) -> list[dict]:
    """As ``nnUNetv2_plan_and_preprocess --no_pp`` does it."""
    DatasetFingerprintExtractor(dataset, num_processes=1).run()
    for planner in planners:
        planner(dataset).plan_experiment()
    files = [home.preprocessed / dataset / f"{planner(dataset).plans_identifier}.json" for planner in planners]
    return [json.loads(file.read_text()) for file in files]


def read_fingerprint(folder: Path) -> dict:
    return json.loads((folder / "dataset_fingerprint.json").read_text())


def test_the_plans_are_those_that_nnunet_makes_of_the_same_images_with_labels(home):
    labelled = "Dataset900_Phantoms"
    write_phantom_dataset(home.raw / labelled, cases=5, shape=SHAPE, seed=0)
    theirs = plan_with_nnunet(home, labelled, [ExperimentPlanner, nnUNetPlannerResEncM])
    cases = find_images([str(home.raw / labelled / "imagesTr")], channels=1, file_ending=".nii.gz")
    for network, expected in zip(("PlainConvUNet", "ResEncM"), theirs, strict=True):
        assert_planned_alike(json.loads(plan(cases, network=network).plans_file.read_text()), expected)
    ours, nnunets = read_fingerprint(home.folder), read_fingerprint(home.preprocessed / labelled)
    for entry in ("spacings", "shapes_after_crop", "median_relative_size_after_cropping"):
        assert ours[entry] == nnunets[entry]
    intensities = "foreground_intensity_properties_per_channel"
    assert ours[intensities]["0"].keys() == nnunets[intensities]["0"].keys()
    assert ours.keys() - {"ssl_pretrain"} == nnunets.keys()


def test_real_scans_with_axes_in_another_order_are_planned_as_by_nnunet(shared_data, home):
    source = shared_data / "Dataset221_OpenKBP"
    labelled = home.raw / "Dataset221_OpenKBP"
    for folder in ("imagesTr", "labelsTr"):
        (labelled / folder).mkdir(parents=True)
        for file in sorted((source / folder).iterdir())[:4]:
            shutil.copyfile(file, labelled / folder / file.name)
    description = json.loads((source / "dataset.json").read_text())
    (labelled / "dataset.json").write_text(json.dumps({**description, "numTraining": 4}))
    (theirs,) = plan_with_nnunet(home, labelled.name, [ExperimentPlanner])
    cases = find_images([str(labelled / "imagesTr")], channels=1, file_ending=".nii.gz")
    ours = json.loads(plan(cases, channel_names=("CT",)).plans_file.read_text())
    assert_planned_alike(ours, theirs)
    assert ours["transpose_forward"] == [1, 0, 2]
    assert ours["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]


def test_the_dataset_is_one_without_labels_and_nothing_looks_for_images(home, cases):
    planned = plan(cases)
    description = json.loads((home.raw / home.dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0}
    assert (description["numTraining"], description["dataset"]) == (3, {})
    assert (home.folder / "dataset.json").read_bytes() == (home.raw / home.dataset / "dataset.json").read_bytes()
    assert [path.name for path in (home.raw / home.dataset).iterdir()] == ["dataset.json"]
    assert (planned.images, planned.failures.entries) == (3, [])


@pytest.mark.parametrize(
    ("spacing", "shape"), [("median", SHAPE), ((4.0, 2.0, 1.0), (12, 32, 64)), ("none", SHAPE)], ids=str
)
def test_images_are_resampled_to_the_spacing_asked_for(home, cases, spacing, shape):
    planned = plan(cases, spacing=spacing)
    assert preprocess(planned, cases[0]).shape == (1, *shape)


def test_without_resampling_an_image_of_another_spacing_keeps_its_voxels(home, cases, tmp_path):
    voxels = make_phantom((20, 24, 28), seed=9, index=0)[0]
    file = write_image(tmp_path / "other_0000.nii.gz", voxels, spacing=(3, 3, 1))
    other = ImageCase(identifier="other", images=(file,))
    planned = plan([*cases, other], spacing="none")
    assert planned.plans["plans_name"] == "nnUNetPlans_noResampling"
    assert set(planned.plans["configurations"]) == {"2d", "3d_fullres"}
    result = preprocess(planned, other)[0]
    expected = (voxels - voxels.mean()) / voxels.std()
    assert np.allclose(result.transpose(planned.plans["transpose_backward"]), expected, atol=1e-4)
    assert preprocess(plan([*cases, other]), other)[0].shape != voxels.shape


def test_two_channels(home, tmp_path):
    cases = made_cases(tmp_path / "two", channels=2)
    planned = plan(cases, channel_names=("CT", "dose"))
    assert fullres(planned)["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert set(planned.plans["foreground_intensity_properties_per_channel"]) == {"0", "1"}
    assert preprocess(planned, cases[0]).shape == (2, *SHAPE)
    assert read_plan(planned.plans_file, home.folder / "dataset.json", "3d_fullres").input_channels == 2
    again = plan(cases, number=746)
    assert json.loads((again.folder / "dataset.json").read_text())["channel_names"] == {"0": "image_0", "1": "image_1"}


@pytest.mark.parametrize(
    ("modalities", "scheme"), [(("CT", "ct"), "CT"), (("CT", "T1w"), "ZScore"), ((None, None), "ZScore")]
)
def test_ct_is_normalised_as_ct_if_every_image_is_said_to_be_one(home, cases, modalities, scheme):
    told = [replace(case, info=CaseInfo(modality=m)) for case, m in zip(cases, modalities, strict=False)]
    assert fullres(plan(told))["normalization_schemes"] == [f"{scheme}Normalization"]


def test_thick_slices_are_pooled_less_along_them(home, tmp_path):
    """The slices are along the last axis of the array, which the plans put first."""
    planned = plan(made_cases(tmp_path / "thick", shape=(64, 64, 16), spacing=(1.0, 1.0, 6.0)))
    assert planned.plans["transpose_forward"] == [2, 0, 1]
    strides = fullres(planned)["architecture"]["arch_kwargs"]["strides"]
    assert tuple(strides[1]) == (1, 2, 2)
    assert np.prod([s[0] for s in strides]) < np.prod([s[1] for s in strides])


class TestPatchSize:
    def test_the_size_that_nnunet_chooses_gives_its_own_plan(self, home, cases):
        own = plan(cases, network="ResEncM")
        for file in home.folder.glob("*.json"):
            file.unlink()
        patch = tuple(int(n) for n in fullres(own)["patch_size"])
        assert plan(cases, network="ResEncM", patch_size=patch).plans == own.plans

    @pytest.mark.parametrize("network", ["PlainConvUNet", "ResEncM"])
    def test_the_network_fits_the_size(self, home, cases, network):
        planned = plan(cases, network=network, patch_size=(16, 48, 16))
        assert fullres(planned)["patch_size"] == (16, 48, 16)
        kwargs = fullres(planned)["architecture"]["arch_kwargs"]
        assert np.prod(kwargs["strides"], axis=0).tolist() == [4, 8, 4]
        assert kwargs["n_stages"] == len(kwargs["kernel_sizes"]) == len(kwargs["features_per_stage"]) == 4
        described = read_plan(planned.plans_file, home.folder / "dataset.json", "3d_fullres")
        net = get_network_from_plans(*described.architecture.values(), 1, 1, deep_supervision=False)
        assert net(torch.zeros(1, 1, 16, 48, 16)).shape == (1, 1, 16, 48, 16)

    def test_one_that_the_strides_do_not_divide_is_refused_with_some_that_work(self, home, cases):
        with pytest.raises(
            ValueError, match=r"-patch_size 18 32 30 is not .*mm\. These work: 16 32 24 and 20 32 32\.$"
        ):
            plan(cases, patch_size=(18, 32, 30))

    def test_sizes_that_work_are_left_alone_by_nnunet(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            spacing = rng.uniform(0.5, 6, 3).tolist()
            patch = tuple(int(n) for n in rng.integers(4, 200, 3))
            found = patches_that_work(spacing, patch, 4)
            assert all(patches_that_work(spacing, near, 4) == [near] for near in found)
            if len(found) == 2:
                assert all(low <= p <= high for low, p, high in zip(found[0], patch, found[1], strict=True))

    def test_one_beyond_image_or_memory_is_planned_and_said(self, home, cases, caplog):
        planned = plan(cases, patch_size=(64, 64, 64), gpu_memory_target=0.5)
        assert fullres(planned)["batch_size"] == 2
        assert "A patch of 64 64 64 is larger than the median image of 24 32 32 voxels" in caplog.text
        assert "batch size 2 needs about 1 GB by nnU-Net's estimate, more than the target of 0.5 GB" in caplog.text


def test_less_memory_means_a_smaller_patch(home, tmp_path):
    cases = made_cases(tmp_path / "large", count=1, shape=(64, 64, 64))
    sizes = [np.prod(fullres(plan(cases, gpu_memory_target=g, plans=f"{g}"))["patch_size"]) for g in (8.0, 0.3)]
    assert sizes[1] < sizes[0] == 64**3


def test_hounsfield_units_without_ct_normalisation_are_warned_of(home, cases, tmp_path, caplog):
    for case in cases:
        voxels = np.random.default_rng(0).uniform(-1000, 500, SHAPE).astype(np.float32)
        write_image(case.images[0], voxels)
    plan(cases)
    assert "looks like CT in Hounsfield units (from -99" in caplog.text
    caplog.clear()
    plan(cases, channel_names=("CT",), overwrite=True)
    assert caplog.text == ""


def test_what_nnunet_prints_is_not_shown(home, cases, capsys):
    plan(cases)
    assert capsys.readouterr() == ("", "")
