"""The commands that make collections, as a user types them."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from conftest import run_command

from ssl_pretrain.cli import convert_openmind, make_collection
from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import read_collection


@pytest.fixture
def study(tmp_path):
    for name in ("sub-1/anat/sub-1_T1w", "sub-1/anat/sub-1_mod-T1w_defacemask", "sub-2/ses-1/anat/sub-2_ses-1_T2w"):
        file = tmp_path / "my study" / f"{name}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((4, 5, 6), dtype=np.float32)), str(file))
    return tmp_path / "my study"


@pytest.fixture
def openmind(tmp_path):
    folder = tmp_path / "openmind"
    image = folder / "OpenMind" / "ds000001" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.touch()
    header = "image_path,modality,derived_from,anon_mask_path,anat_mask_path,image_quality_score\n"
    row = "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,,,,1.5\n"
    (folder / "openneuro_metadata.csv").write_text(header + row + row.replace("01", "02"), encoding="utf-8")
    return folder


def test_a_bids_folder_becomes_a_file_that_is_read_after_a_move(study, tmp_path):
    done = run_command(("nnUNetv2_make_collection", "-i", study, "-d", "12", "-name", "Mine"))
    file = study / "pretrain_data.json"
    assert (
        f"Wrote {file}: 1 datasets, 2 subjects, 2 images (T1w 1, T2w 1), 1 with an anonymisation mask, 0 with an "
        "anatomy mask" in done.stdout
    )
    assert f'nnUNetv2_plan_unlabeled -i "{file}" -d 12 -name Mine -spacing 1 1 1' in done.stdout
    assert done.stderr == ""
    shutil.move(study, tmp_path / "moved")
    cases = image_cases(read_collection(tmp_path / "moved" / "pretrain_data.json"))
    assert [case.identifier.rpartition("__")[2] for case in cases] == ["sub-1_T1w", "sub-2_ses-1_T2w"]
    assert all(case.images[0].is_file() for case in cases)
    assert cases[0].anonymization_mask.is_file()


def test_openmind_becomes_a_file_with_warnings(openmind):
    done = run_command(("nnUNetv2_convert_openmind", "-i", openmind))
    assert "1 of 2 images of the table are not in" in done.stdout
    assert "-d 745 -name OpenMind -spacing 1 1 1" in done.stdout
    document = json.loads((openmind / "pretrain_data.json").read_text(encoding="utf-8"))
    assert document["collection_name"] == "Dataset745_OpenMind"
    assert len(image_cases(read_collection(openmind / "pretrain_data.json"))) == 1


def test_flags_reach_the_collection(study, openmind, tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert make_collection.main(["-i", str(study), "-o", str(file), "--no_masks", "--absolute"]) == 0
    cases = image_cases(read_collection(file))
    assert [case.anonymization_mask for case in cases] == [None, None]
    assert str(study) in file.read_text(encoding="utf-8")
    assert read_collection(file).collection_name == "Dataset001_my_study"
    assert make_collection.main(["-i", str(study), "-o", str(file), "--overwrite", "-defacemask_marks", "kept"]) == 0
    assert image_cases(read_collection(file))[0].inverted == {"anonymization"}
    assert convert_openmind.main(["-i", str(openmind), "-o", str(file), "--overwrite", "--no_check", "-d", "3"]) == 0
    assert len(image_cases(read_collection(file))) == 2
    assert "-d 3 -name OpenMind" in capsys.readouterr().out


def test_a_file_that_exists_is_kept(study, capsys):
    file = study / "pretrain_data.json"
    file.write_text("mine", encoding="utf-8")
    assert make_collection.main(["-i", str(study)]) == 1
    assert (
        f"Error: {file} exists. Write another file (-o), or replace this one (--overwrite)." in capsys.readouterr().err
    )
    assert file.read_text(encoding="utf-8") == "mine"
    assert make_collection.main(["-i", str(study), "--overwrite"]) == 0
    assert len(image_cases(read_collection(file))) == 2


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (make_collection, ["-i", "gone"], "gone is not a folder"),
        (make_collection, ["-i", "."], "is not in BIDS layout"),
        (
            make_collection,
            ["-i", "my study", "-o", "gone/x.json"],
            "gone does not exist. Make it, or write elsewhere (-o)",
        ),
        (make_collection, ["-i", "my study", "-datatypes", "ct"], "Searched: ct (-datatypes)"),
        (make_collection, ["-i", "my study", "-d", "0"], "number of a dataset is from 1 to 999"),
        (convert_openmind, ["-i", "my study"], "openneuro_metadata.csv does not exist"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_status_1(study, monkeypatch, capsys, command, arguments, message):
    monkeypatch.chdir(study.parent)
    if arguments == ["-i", "."]:
        shutil.rmtree(study)
    assert command.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("Error: ")
    assert message in error
    assert "\n" not in error
