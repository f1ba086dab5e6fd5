import json
import shutil

import pytest
from made_data import NAME, write_dataset

from ssl_pretrain.data.locate import locate, locate_explicit


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_dataset(tmp_path, cases=2, channels=2)


@pytest.mark.parametrize("name", ["7", "007", NAME])
def test_a_number_and_a_name_find_the_same(dataset, name):
    files, plan = locate(name, "3d_fullres", "nnUNetPlans")
    assert files.name == NAME
    assert files.data == dataset / "nnUNetPlans_3d_fullres"
    assert (plan.input_channels, plan.num_classes, plan.patch, plan.batch_size) == (2, 2, (16, 16, 16), 2)


def test_explicit_paths_find_the_same(dataset):
    expected = locate("7", "3d_fullres", "nnUNetPlans")
    for folder in (dataset, dataset / "nnUNetPlans_3d_fullres"):
        found = locate_explicit(
            preprocessed=folder,
            splits=dataset / "splits_final.json",
            dataset_json=dataset / "dataset.json",
            plans=dataset / "nnUNetPlans.json",
            configuration="3d_fullres",
        )
        assert found == expected


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ValueError, match=r"environment variable nnUNet_preprocessed is not set.*export"):
        locate("7", "3d_fullres", "nnUNetPlans")


def test_a_variable_that_names_no_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        locate("7", "3d_fullres", "nnUNetPlans")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("8", "3d_fullres", "nnUNetPlans"), FileNotFoundError, f"Dataset 8 is not in .*There: {NAME}.*-d 8"),
        (("Dataset008_X", "3d_fullres", "nnUNetPlans"), FileNotFoundError, "Dataset008_X is not in .*-d 8"),
        (("seven", "3d_fullres", "nnUNetPlans"), ValueError, "must be a number such as 4 or a name"),
        (("7", "3d_fullres", "OtherPlans"), FileNotFoundError, "'OtherPlans' do not exist.*There: nnUNetPlans"),
        (("7", "4d", "nnUNetPlans"), ValueError, "'4d' is not in .*There: 3d_fullres"),
        (
            ("7", "2d", "nnUNetPlans"),
            ValueError,
            "is 2-D; what is pretrained here is 3-D.*3d_fullres, 3d_cascade_fullres,",
        ),
        (
            ("7", "3d_planned_only", "nnUNetPlans"),
            FileNotFoundError,
            "is not preprocessed yet: .*nnUNetv2_preprocess -d 7 -plans_name nnUNetPlans -c 3d_planned_only",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(dataset, arguments, error, message):
    with pytest.raises(error, match=message):
        locate(*arguments)


def test_a_later_stage_of_a_cascade_is_neither_taken_nor_offered_where_images_have_no_segmentation(dataset):
    assert locate("7", "3d_cascade_fullres", "nnUNetPlans")[1].input_channels == 2 + 1
    choices = r"Choose from: 3d_fullres, 3d_planned_only\."
    with pytest.raises(ValueError, match=f"takes the segmentation of '3d_lowres' as input.* {choices}"):
        locate("7", "3d_cascade_fullres", "nnUNetPlans", cascades=False)
    with pytest.raises(ValueError, match=f"'2d' of .* is 2-D.* {choices}"):
        locate("7", "2d", "nnUNetPlans", cascades=False)


def test_a_configuration_that_is_broken_is_not_offered(dataset):
    file = dataset / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"] |= {"3d_lost": {"inherits_from": "3d_nowhere"}, "3d_empty": {}}
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"There: 3d_fullres, 3d_cascade_fullres, 3d_planned_only\."):
        locate("7", "4d", "nnUNetPlans")


def test_two_datasets_of_one_number_are_ambiguous(dataset, tmp_path):
    (tmp_path / "Dataset007_Other").mkdir()
    with pytest.raises(ValueError, match="Dataset number 7 is ambiguous: Dataset007_Made, Dataset007_Other"):
        locate("7", "3d_fullres", "nnUNetPlans")


def test_a_broken_plans_file_is_named(dataset):
    (dataset / "nnUNetPlans.json").write_text("{")
    with pytest.raises(ValueError, match=r"nnUNetPlans\.json is not valid JSON"):
        locate("7", "3d_fullres", "nnUNetPlans")
    (dataset / "nnUNetPlans.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"nnUNetPlans\.json is not a plans file of nnU-Net version 2: it has no 'configurations'"
    ):
        locate("7", "3d_fullres", "nnUNetPlans")


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [
        ("nnUNetPlans.json", "plans_name", "../elsewhere"),
        ("nnUNetPlans.json", "dataset_name", "/elsewhere"),
        ("dataset.json", "file_ending", "/../../elsewhere.nii.gz"),
    ],
)
def test_names_in_files_that_lead_elsewhere_are_refused(dataset, file, entry, value):
    content = json.loads((dataset / file).read_text())
    (dataset / file).write_text(json.dumps({**content, entry: value}))
    with pytest.raises(ValueError, match=f"{file}: {entry} '{value}' leads to another folder"):
        locate("7", "3d_fullres", "nnUNetPlans")


def test_a_folder_of_cases_elsewhere_is_refused(dataset):
    content = json.loads((dataset / "nnUNetPlans.json").read_text())
    content["configurations"]["3d_fullres"]["data_identifier"] = "../elsewhere"
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"configurations.3d_fullres.data_identifier '\.\./elsewhere' leads to another"
    ):
        locate("7", "3d_fullres", "nnUNetPlans")


@pytest.mark.parametrize("plans", ["../x/nnUNetPlans", "/x/nnUNetPlans", "", "a\0b"])
def test_plans_are_named_not_pathed(dataset, plans):
    with pytest.raises(ValueError, match=r"plans \(-p\) .* becomes a part of paths"):
        locate("7", "3d_fullres", plans)


def edit(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_plans_of_another_dataset_are_refused_with_both_names_and_the_remedy(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "Dataset009_Renamed")
    with pytest.raises(
        ValueError,
        match=rf"Renamed/nnUNetPlans\.json is of {NAME} by its entry dataset_name, but lies in the folder of "
        r"Dataset009_Renamed: .*nnUNetv2_move_plans_between_datasets instead; .*correct dataset_name",
    ):
        locate("9", "3d_fullres", "nnUNetPlans")
    edit(tmp_path / "Dataset009_Renamed" / "nnUNetPlans.json", dataset_name="Dataset009_Renamed")
    assert locate("9", "3d_fullres", "nnUNetPlans")[0].name == "Dataset009_Renamed"


def test_plans_that_call_themselves_otherwise_than_their_file_are_refused(dataset):
    shutil.copy(dataset / "nnUNetPlans.json", dataset / "MyPlans.json")
    with pytest.raises(ValueError, match=r"MyPlans\.json calls itself 'nnUNetPlans'.*Make plans_name 'MyPlans', or"):
        locate("7", "3d_fullres", "MyPlans")


def test_explicit_files_of_two_datasets_are_taken_with_a_warning(dataset, caplog):
    edit(dataset / "nnUNetPlans.json", dataset_name="Dataset008_Other")
    files, _ = locate_explicit(
        preprocessed=dataset,
        splits=dataset / "splits_final.json",
        dataset_json=dataset / "dataset.json",
        plans=dataset / "nnUNetPlans.json",
        configuration="3d_fullres",
    )
    assert files.name == "Dataset008_Other"
    assert f"The cases lie in {NAME}, and {dataset / 'nnUNetPlans.json'} is of Dataset008_Other" in caplog.text
