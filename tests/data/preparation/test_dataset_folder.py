"""What is there already: nothing of others is touched, nothing of ours without being asked."""

import json
from dataclasses import replace

import pytest
from made_images import write_image
from made_plans import MADE, SHAPE, contents, empty_home, fullres, made_cases, plan

from ssl_pretrain.data.phantoms import make_phantom
from ssl_pretrain.data.preparation.fingerprint import describes
from ssl_pretrain.data.preparation.planning import plan_unlabeled


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


@pytest.fixture
def cases(home, tmp_path):
    return made_cases(tmp_path / "images")


class TestPlanningAgain:
    def test_a_second_network_does_not_read_the_images_again(self, home, cases):
        plan(cases)
        before = (home.folder / "dataset_fingerprint.json").read_bytes()
        assert describes(json.loads(before), cases)
        seen = []
        request = replace(MADE, network="ResEncM")
        plan_unlabeled(request, cases, ".nii.gz", lambda results, total: seen.append(total) or results)
        assert seen == []
        assert (home.folder / "dataset_fingerprint.json").read_bytes() == before

    def test_nothing_is_changed_without_being_asked(self, home, cases, tmp_path):
        plan(cases)
        before = contents(home.root)
        more = made_cases(tmp_path / "more", count=1, shape=(20, 20, 20))
        for changes, images, message in [
            ({}, cases, r"nnUNetPlans.json exists. Give --overwrite to renew these plans, or another name \(-p\)"),
            ({"plans": "second"}, more, "dataset_fingerprint.json is of other images"),
            (
                {"plans": "second", "channel_names": ("CT",)},
                cases,
                r"says channel_names \{'0': 'image'\}, now it would be \{'0': 'CT'\}. Give --overwrite",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                plan(images, **changes)
        assert {file: content for file, content in contents(home.root).items() if file in before} == before

    def test_overwrite_renews_what_nnunet_planned_and_keeps_what_a_user_added(self, home, cases, tmp_path):
        planned = plan(cases)
        content = json.loads(planned.plans_file.read_text())
        content["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 5}
        content["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
        planned.plans_file.write_text(json.dumps(content))
        more = made_cases(tmp_path / "more", count=1, shape=(20, 20, 20))
        again = json.loads(plan(more, overwrite=True).plans_file.read_text())
        assert set(again["configurations"]) == {"2d", "3d_fullres", "mine"}
        assert again["original_median_shape_after_transp"] == [20, 20, 20]

    def test_other_channels_are_refused_while_other_plans_rely_on_them(self, home, cases):
        plan(cases)
        plan(cases, network="ResEncM")
        with pytest.raises(ValueError, match=r"but other plans rely on it: nnUNetResEncUNetMPlans\.json"):
            plan(cases, channel_names=("CT",), overwrite=True)

    def test_plans_of_another_preprocessing_never_share_a_folder_of_cases(self, home, cases):
        plan(cases, spacing=(1.0, 1.0, 1.0))
        with pytest.raises(ValueError, match=r"nnUNetPlans.json keeps its data in nnUNetPlans_2d, too, but .*spacing"):
            plan(cases, network="ResEncM")
        assert not (home.folder / "nnUNetResEncUNetMPlans.json").exists()
        named = plan(cases, network="ResEncM", plans="own")
        assert fullres(named)["data_identifier"] == "own_3d_fullres"
        isotropic = plan(cases, network="ResEncM", spacing=(1.0, 1.0, 1.0))
        assert fullres(isotropic)["data_identifier"] == "nnUNetResEncUNetMPlans_3d_fullres"


class TestDatasetsOfOthers:
    def test_a_number_that_is_taken_is_refused(self, home, cases):
        (home.results / "Dataset745_Theirs").mkdir()
        with pytest.raises(
            ValueError, match=r"Dataset number 745 is taken: .*Dataset745_Theirs. Choose another number"
        ):
            plan(cases)

    @pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
    def test_a_raw_dataset_with_images_is_refused(self, home, cases, folder):
        write_image(home.raw / home.dataset / folder / "a_0000.nii.gz", make_phantom(SHAPE, 0, 0)[0])
        with pytest.raises(ValueError, match=rf"{folder} is for images with labels, and not empty.*imagesUn"):
            plan(cases)

    @pytest.mark.parametrize("root", ["nnUNet_raw", "nnUNet_preprocessed"])
    def test_a_dataset_with_labels_is_refused_whatever_is_allowed(self, home, cases, root):
        folder = home.root / root / home.dataset
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
        before = contents(home.root)
        with pytest.raises(
            ValueError, match=r"describes a dataset with labels, which is left as it is\. Choose another"
        ):
            plan(cases, overwrite=True)
        assert contents(home.root) == before

    def test_unlabelled_images_may_be_in_the_raw_dataset(self, home):
        cases = made_cases(home.raw / home.dataset / "imagesUn")
        assert plan(cases).images == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "UNETR"}, r"Unknown network 'UNETR'. Choose from PlainConvUNet, ResEncM, ResEncL, ResEncXL"),
        ({"spacing": "mean"}, r"three numbers in mm above 0, median or none, got mean \(-spacing\)"),
        ({"spacing": (1.0, 1.0)}, r"got \(1.0, 1.0\)"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"got \(1.0, 0.0, 1.0\)"),
        ({"gpu_memory_target": 0.0}, "in GB and above 0, got 0.0"),
        ({"plans": "../mine"}, r"Plans are named in letters.*got '../mine' \(-p\)"),
        ({"number": 1000}, r"a number from 1 to 999, got 1000 \(-d\)"),
        ({"name": "Dataset745_Made"}, "'Dataset745_Made' is no name for a dataset. Give only what comes after"),
        ({"name": "a b"}, "'a b' is no name"),
        ({"channel_names": ("CT", "dose")}, r"2 names for the 1 channels of phantom_0 \(-channel_names\)"),
    ],
)
def test_what_is_not_allowed_is_said(home, cases, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(cases, **changes)
    assert contents(home.raw) == contents(home.preprocessed) == {}
