"""Studies on disk: begun, continued, grown and refused; arms, subsets and the mirror of the dataset."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_data import NAME, volume, write_case
from made_study import contents, finish, read, settings, write_home, write_weights

from ssl_pretrain.files import LOCK, locked
from ssl_pretrain.study import worker
from ssl_pretrain.study.arms import groups_of, scratch_trainer
from ssl_pretrain.study.launch import run_all, slurm_script, worker_command
from ssl_pretrain.study.study import Study, begin, label_names, resume
from ssl_pretrain.transfer.adapt import FineTuningTarget, adapt_weights, save_content


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return write_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "pretrained")


@pytest.fixture
def study(tmp_path, dataset, weights):
    return begin(settings(weights), tmp_path / "study")


def mirror_of(study: Study) -> Path:
    return study.folder / "nnUNet_preprocessed" / NAME


def test_a_study_leaves_the_dataset_as_it_is(tmp_path, dataset, weights):
    before = contents(tmp_path / "home")
    begin(settings(weights), tmp_path / "study")
    assert contents(tmp_path / "home") == before
    assert "splits_final.json" not in {p.name for p in dataset.iterdir()}


def test_the_mirror_shows_the_same_data_with_splits_of_its_own(study, dataset):
    mirror = mirror_of(study)
    data = mirror / "nnUNetPlans_3d_fullres"
    assert {p.name for p in data.iterdir()} == {p.name for p in (dataset / data.name).iterdir()}
    assert all(p.is_symlink() for p in data.iterdir()) and not data.is_symlink()
    assert contents(data) == contents(dataset / data.name)
    assert (mirror / "nnUNetPlans.json").read_bytes() == (dataset / "nnUNetPlans.json").read_bytes()
    assert not (mirror / "nnUNetPlans.json").is_symlink()


def test_every_arm_has_the_same_nested_subsets_and_the_validation_cases_of_nnunet(study):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    theirs = generate_crossval_split([f"case_{i:02d}" for i in range(10)], seed=12345, n_splits=5)[0]
    splits = read(mirror_of(study) / "splits_final.json")
    assert len(splits) == 6  # 3 seeds, 2 sizes; not one for each arm
    for seed in range(3):
        small, large = (splits[study.numbers[0, seed, n]] for n in (2, 4))
        assert set(small["train"]) < set(large["train"]) < set(theirs["train"])
        assert small["val"] == large["val"] == sorted(theirs["val"])
    assert len({tuple(s["train"]) for s in splits}) > 3


def test_the_users_own_split_is_taken(tmp_path, dataset, weights):
    split = [{"train": [f"case_{i:02d}" for i in range(7)], "val": ["case_07", "case_09"]}]
    (dataset / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    study = begin(settings(weights, fractions=(0.5,)), tmp_path / "study")
    assert study.folds == {0: {"train": split[0]["train"], "validation": split[0]["val"]}}
    assert [size.counts for size in study.sizes] == [{0: 2}, {0: 4}]


def test_arms_are_named_by_method_or_folder_and_have_their_scratch(tmp_path, dataset, weights):
    other = write_weights(tmp_path / "longer", seed=1)
    foreign = tmp_path / "theirs" / "model.pth"
    foreign.parent.mkdir()
    torch.save({"network_weights": torch.load(weights)["network_weights"]}, foreign)
    study = begin(settings(weights, other, foreign), tmp_path / "study")
    assert [arm.name for arm in study.arms] == ["scratch", "SparK pretrained", "SparK longer", "theirs"]
    assert [arm.baseline for arm in study.arms] == [None, "scratch", "scratch", "scratch"]
    assert [arm.method for arm in study.arms] == [None, "SparK", "SparK", None]
    assert all(0.5 < arm.loaded <= 1 for arm in study.arms[1:])


def test_files_of_one_method_are_told_apart_also_when_a_study_grows(tmp_path, dataset, weights):
    files = [write_weights(tmp_path / name, seed=i) for i, name in enumerate(("SparK_8000_steps", "cell_8"), start=1)]
    study = begin(settings(*files), tmp_path / "study")
    assert [arm.name for arm in study.arms[1:]] == ["SparK_8000_steps", "SparK cell_8"]
    grown = resume(settings(*files, weights), tmp_path / "study")
    assert [arm.name for arm in grown.arms[1:]] == ["SparK_8000_steps", "SparK cell_8", "SparK pretrained"]


def write_pretraining(folder: Path, seed: int, **config: object) -> Path:
    """A checkpoint of ours that says which seed it was pretrained with."""
    file = write_weights(folder, seed, **config)
    content = torch.load(file)
    content["pretraining"]["seed"] = seed
    torch.save(content, file)
    return file


def test_pretrainings_that_differ_in_their_seed_alone_are_one_arm(tmp_path, dataset):
    files = [write_pretraining(tmp_path / f"s{seed}", seed, output_folder=f"o{seed}") for seed in range(2)]
    longer = write_pretraining(tmp_path / "longer", 5, iters=500)
    study = begin(settings(*files), tmp_path / "one")
    assert [(arm.name, arm.group) for arm in study.arms] == [
        ("scratch", None),
        ("SparK s0", "SparK"),
        ("SparK s1", "SparK"),
    ]
    assert list(groups_of(study.arms)) == ["scratch", "SparK"]
    assert len(study.runs) == 3 * 2 * 3
    assert Study.read(study.folder) == study

    both = begin(settings(*files, longer), tmp_path / "both")
    assert [(arm.name, arm.shown) for arm in both.arms[1:]] == [
        ("SparK s0 s0", "SparK s0"),
        ("SparK s0 s1", "SparK s0"),
        ("SparK longer", "SparK longer"),
    ]


def test_a_study_can_get_another_pretraining_of_an_arm(tmp_path, dataset):
    files = [write_pretraining(tmp_path / f"s{seed}", seed) for seed in range(2)]
    study = begin(settings(files[0]), tmp_path / "study")
    grown = resume(settings(*files), study.folder)
    assert [(arm.name, arm.shown) for arm in grown.arms[1:]] == [("SparK", "SparK"), ("SparK s1", "SparK")]
    assert grown.arms[:2] == study.arms


def test_pretrainings_that_take_turns_are_as_many_as_at_the_beginning(tmp_path, dataset):
    files = [write_pretraining(tmp_path / f"s{seed}", seed) for seed in range(3)]
    study = begin(settings(*files[:2], spread=True), tmp_path / "study")
    assert [(run.arm, run.seed) for run in study.runs if run.cases == 2 and run.arm != "scratch"] == [
        ("SparK s0", 0),
        ("SparK s1", 1),
        ("SparK s0", 2),
    ]
    assert Study.read(study.folder) == study
    with pytest.raises(ValueError, match=r"one pretraining of an arm\. One more .*such as SparK_s\d/.*Begin another"):
        resume(settings(*files, spread=True), study.folder)
    with pytest.raises(ValueError, match="--spread was on and is off"):
        resume(settings(*files[:2]), study.folder)


def test_primary_comparisons_are_named_before_the_runs(tmp_path, dataset, weights):
    study = begin(settings(weights, primary=("SparK@2",)), tmp_path / "study")
    assert study.primary == {("SparK", "2 cases")}
    with pytest.raises(ValueError, match=r"other settings: -primary was SparK@2 and is SparK@2 SparK@4\. Leave these"):
        resume(replace(study.settings, primary=("SparK@2", "SparK@4")), study.folder)
    for wrong in ("MAE@2", "SparK@3", "scratch@2"):
        with pytest.raises(ValueError, match=rf"-primary {wrong} is none .* Arms: SparK; training cases: 2, 4\."):
            begin(settings(weights, primary=(wrong,)), tmp_path / wrong)


def test_another_network_has_its_own_plans_trainer_and_scratch(tmp_path, dataset, weights):
    plans = read(dataset / "nnUNetPlans.json")
    plans["plans_name"] = "nnUNetPlans_PrimusS_depth2"
    (dataset / "nnUNetPlans_PrimusS_depth2.json").write_text(json.dumps(plans), encoding="utf-8")
    primus = write_weights(tmp_path / "primus", seed=1, network="PrimusS", network_settings={"depth": 2})
    # The trainer is given: the made file is not really of a Primus.
    study = begin(settings(weights, primus, trainer="ResEncTrainer_ft_5ep"), tmp_path / "study")
    assert [(arm.name, arm.plans, arm.trainer, arm.baseline) for arm in study.arms] == [
        ("scratch", "nnUNetPlans", "ResEncTrainer_scratch_5ep", None),
        ("SparK pretrained", "nnUNetPlans", "ResEncTrainer_ft_5ep", "scratch"),
        ("scratch nnUNetPlans_PrimusS_depth2", "nnUNetPlans_PrimusS_depth2", "ResEncTrainer_scratch_5ep", None),
        (
            *("SparK primus", "nnUNetPlans_PrimusS_depth2", "ResEncTrainer_ft_5ep"),
            "scratch nnUNetPlans_PrimusS_depth2",
        ),
    ]


@pytest.mark.parametrize(
    ("trainer", "scratch"),
    [
        ("ResEncTrainer_ft_150ep_sawtooth", "ResEncTrainer_scratch_150ep_sawtooth"),
        ("STUNetTrainer_small_ft", "STUNetTrainer_small_scratch"),
        ("UNETRTrainer", "UNETRTrainer_scratch"),
        ("ResEncTrainer_scratch", "ResEncTrainer_scratch"),
        ("nnUNetTrainer", "nnUNetTrainer"),
        ("Mine_ft", "Mine_ft"),
    ],
)
def test_scratch_has_the_same_schedule(trainer, scratch):
    assert scratch_trainer(trainer) == scratch


def test_the_trainer_from_scratch_can_be_given(tmp_path, dataset, weights):
    study = begin(settings(weights, scratch_trainer="ResEncTrainer_ft"), tmp_path / "study")
    assert [arm.trainer for arm in study.arms] == ["ResEncTrainer_ft", "nnUNetTrainer"]


def test_a_study_is_read_as_it_was_written(study):
    assert Study.read(study.folder) == study


def test_done_runs_are_not_pending(study):
    assert len(study.pending) == len(study.runs) == 12
    finish(study, study.runs[3], 0.5)
    assert study.runs[3] not in study.pending and len(study.pending) == 11


def test_a_study_grows_and_keeps_the_numbers_of_its_subsets(study, tmp_path):
    before = read(mirror_of(study) / "splits_final.json")
    finish(study, study.runs[0], 0.5)
    other = write_weights(tmp_path / "longer", seed=1)
    more = replace(study.settings, seeds=4, cases=(2, 4, 6), weights=(*study.settings.weights, str(other)))
    grown = resume(more, study.folder)
    assert read(mirror_of(study) / "splits_final.json")[:6] == before
    assert {s: n for s, n in grown.numbers.items() if s in study.numbers} == study.numbers
    assert len(grown.runs) == 4 * 3 * 3
    assert len(grown.pending) == len(grown.runs) - 1
    assert grown.arms[:2] == study.arms


def test_a_study_of_other_settings_is_refused_with_what_differs(study, weights):
    wanted = settings(weights, epochs=7, seeds=2)
    with pytest.raises(FileExistsError, match=r"holds a study already with other settings \(-seeds was 3 and is 2; -e"):
        begin(wanted, study.folder)
    with pytest.raises(ValueError, match=r"other settings: -seeds was 3 and is 2; -epochs was 1 and is 7. Leave these"):
        resume(wanted, study.folder)
    with pytest.raises(FileExistsError, match=r"holds a study already. Continue it with --c, or choose another folder"):
        begin(study.settings, study.folder)


def test_folds_of_a_study_stay_when_cases_are_added(tmp_path, dataset, weights):
    """Fold 7 is in no file of splits: nnU-Net's rule draws it from the cases there are."""
    study = begin(settings(weights, folds=(7,)), tmp_path / "study")
    for i in range(10, 13):
        write_case(dataset / "nnUNetPlans_3d_fullres", f"case_{i}", volume(i))
        (dataset / "gt_segmentations" / f"case_{i}.nii.gz").touch()
    fresh = begin(settings(weights, folds=(7,)), tmp_path / "fresh")
    assert fresh.folds != study.folds
    assert resume(replace(study.settings, seeds=4), study.folder).folds == study.folds


def test_a_beginning_that_was_stopped_can_be_begun_again(tmp_path, dataset, weights):
    study = begin(settings(weights), tmp_path / "study")
    (study.folder / "study.json").unlink()
    (mirror_of(study) / "splits_final.json").write_text("[", encoding="utf-8")
    again = begin(settings(weights), tmp_path / "study")
    assert again == replace(study, begun=again.begun)


def test_data_that_have_moved_are_linked_again(study, dataset, monkeypatch):
    moved = dataset.parents[1] / "elsewhere"
    dataset.parent.rename(moved)
    monkeypatch.setenv("nnUNet_preprocessed", str(moved))
    data = mirror_of(study) / "nnUNetPlans_3d_fullres"
    assert not any(file.exists() for file in data.iterdir())
    resume(study.settings, study.folder)
    assert contents(data) == contents(moved / NAME / data.name)


def test_weights_that_have_moved_are_followed_by_their_content(study, weights, tmp_path):
    place = tmp_path / "new place.pth"
    weights.rename(place)
    with pytest.raises(FileNotFoundError, match=r"does not exist"):
        resume(study.settings, study.folder)
    other = write_weights(tmp_path / "other", seed=3)
    with pytest.raises(ValueError, match=r"other settings: -w was .*checkpoint_final.pth and is .*other"):
        resume(replace(study.settings, weights=(str(other),)), study.folder)
    moved = resume(replace(study.settings, weights=(str(place),)), study.folder)
    assert moved.arms == [study.arms[0], replace(study.arms[1], weights=str(place))]
    assert Study.read(study.folder) == moved
    assert resume(moved.settings, study.folder) == moved
    grown = resume(replace(moved.settings, weights=(str(other), str(place))), study.folder)
    assert [arm.name for arm in grown.arms] == ["scratch", "SparK", "SparK other"]


def test_settings_that_touch_no_run_need_no_weights(study, weights):
    for run in study.runs:
        finish(study, run, 0.5)
    weights.unlink()
    resume(replace(study.settings, collapsed_below=0.25), study.folder)
    assert Study.read(study.folder).settings.collapsed_below == 0.25


@pytest.mark.parametrize("content", ['{"a": 1}', '{"settings": {"x": 2}}', '{"settings": 3}'])
def test_a_file_of_another_program_is_named(study, content):
    (study.folder / "study.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"study.json: .*It is not what this command writes. Choose another folder"):
        Study.read(study.folder)


def test_a_file_is_no_folder(tmp_path, dataset, weights):
    (tmp_path / "study").touch()
    with pytest.raises(FileExistsError, match=r"study is a file. Choose a folder with -o"):
        begin(settings(weights), tmp_path / "study")


def test_a_schedule_that_the_epochs_are_too_few_for_is_refused(tmp_path, dataset, weights):
    with pytest.raises(ValueError, match=r"frozen100 freezes the encoder for 100 epochs, and the run has 2"):
        begin(settings(weights, trainer="ResEncTrainer_ft_frozen100", epochs=2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"frozen100 .* the run has 2"):
        begin(settings(weights, scratch_trainer="ResEncTrainer_scratch_frozen100", epochs=2), tmp_path / "b")
    begin(settings(weights, trainer="ResEncTrainer_ft_frozen100", epochs=None), tmp_path / "c")


def test_networks_that_nnunet_trained_with_the_labels_of_validation_cases_are_refused(tmp_path, dataset, weights):
    def trained_on(fold, of=NAME):
        arguments = {"plans": {"dataset_name": of, "plans_name": "p"}, "configuration": "3d_fullres", "fold": fold}
        content = {
            "network_weights": torch.load(weights)["network_weights"],
            "trainer_name": "nnUNetTrainer",
            "init_args": arguments,
        }
        file = tmp_path / f"{of}_{fold}" / "checkpoint_final.pth"
        file.parent.mkdir()
        torch.save(content, file)
        return file

    for fold in (1, "all"):
        with pytest.raises(
            ValueError, match=rf"with the labels of {NAME}, fold {fold}: validation cases of fold 0 are"
        ):
            begin(settings(trained_on(fold)), tmp_path / f"study {fold}")
    assert begin(settings(trained_on(0)), tmp_path / "same").arms[1].name == f"{NAME}_0"
    assert begin(settings(trained_on(1, "Dataset099_Other")), tmp_path / "other").arms[1].loaded > 0.5


def test_one_content_is_one_arm_and_says_so(tmp_path, dataset, weights, caplog):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    with caplog.at_level(logging.WARNING, "ssl_pretrain"):
        study = begin(settings(weights, copy), tmp_path / "study")
    assert [arm.name for arm in study.arms] == ["scratch", "SparK"]
    assert f"{copy} has the content of {weights}: one arm, SparK, for both." in caplog.text


def test_files_without_a_method_are_named_by_what_tells_them_apart(tmp_path, dataset, weights, monkeypatch):
    content = torch.load(weights)["network_weights"]
    files = []
    for i, name in enumerate(("swin 48.pth", "swin 96.pth", "fold_1/checkpoint_final.pth", "model_final.pth")):
        file = tmp_path / "theirs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"network_weights": {key: value + i for key, value in content.items()}}, file)
        files.append(file)
    study = begin(settings(*files), tmp_path / "study")
    assert [arm.name for arm in study.arms[1:]] == ["swin 48", "swin 96", "fold_1", "theirs"]


def test_a_run_that_another_process_is_at_is_left_to_it(study, capfd, caplog):
    run = study.runs[0]
    study.run_folder(run).mkdir(parents=True)
    with locked(study.run_folder(run)):
        assert worker.main([str(study.folder), run.name]) == worker.BUSY
        assert "scratch/2cases_fold0_seed0 is being run by another process." in capfd.readouterr().err
        for other in study.runs[1:]:
            finish(study, other, 0.5)
        with caplog.at_level(logging.INFO, "ssl_pretrain"):
            analysis = run_all(study)
    assert f"{run.name} is being run by another process and is left to it" in caplog.text
    assert f"1/1  {run.name}  no result yet" in caplog.text
    assert {o.run.name for o in analysis.outcomes if o.status != "done"} == {run.name}
    assert {file.name for file in study.run_folder(run).iterdir()} == {LOCK}
    finish(study, run, 0.5)
    assert worker.main([str(study.folder), run.name]) == 0, "it is free again"


def test_weights_that_change_after_the_beginning_are_not_trained_from(study, weights):
    write_weights(weights.parent, seed=5)
    run = study.run("SparK/2cases_fold0_seed0")
    with pytest.raises(ValueError, match=r"is not the file that arm SparK of this study began with"):
        worker.fine_tune(study, run, None, 1)


def test_checkpoints_that_a_killed_run_left_are_deleted(study):
    run = study.runs[0]
    finish(study, run, 0.5)
    left = study.run_folder(run) / "nnUNet_results" / "fold_0" / "checkpoint_latest.pth"
    left.parent.mkdir(parents=True)
    left.touch()
    assert worker.main([str(study.folder), run.name]) == 0
    assert left.parent.is_dir() and not left.exists()


def test_folders_that_hold_no_study_are_refused(tmp_path, dataset, weights):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match=r"photos is not empty. Choose another folder with -o, or remove it"):
        begin(settings(weights), tmp_path / "photos")
    with pytest.raises(
        FileNotFoundError, match=r"photos holds no study: there is no study.json. Begin one with -d, -c"
    ):
        Study.read(tmp_path / "photos")


def test_a_file_that_has_changed_is_refused(study, weights):
    write_weights(weights.parent, seed=5)
    with pytest.raises(ValueError, match=r"is not the file that arm SparK of this study began with: it has changed"):
        resume(study.settings, study.folder)
    with pytest.raises(ValueError, match=r"is not the file that arm SparK of this study began with"):
        resume(replace(study.settings, seeds=9), study.folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint_final.pth does not exist \(-w\). Check the path"):
        resume(study.settings, study.folder)


def test_a_finished_study_needs_no_weights(study, weights):
    for run in study.runs:
        finish(study, run, 0.5)
    weights.unlink()
    assert resume(study.settings, study.folder).pending == []


def test_runs_have_names(study):
    assert study.run("SparK/4cases_fold0_seed2").cases == 4
    with pytest.raises(ValueError, match=r"has no run 'x'. There are 12, such as scratch/2cases_fold0_seed0"):
        study.run("x")


def test_validation_cases_among_the_training_cases_are_left_out_of_training(tmp_path, dataset, weights, caplog):
    split = [{"train": ["case_00", "case_01", "case_02"], "val": ["case_02", "case_03"]}]
    (dataset / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    study = begin(settings(weights, cases=(2,)), tmp_path / "study")
    assert "trains on 1 of its validation cases, e.g. case_02: they are left out" in caplog.text
    assert study.folds == {0: {"train": ["case_00", "case_01"], "validation": ["case_02", "case_03"]}}
    for written in json.loads((study.folder / "nnUNet_preprocessed" / dataset.name / "splits_final.json").read_text()):
        assert not set(written["train"]) & set(written["val"])


def test_a_network_that_nnunet_trained_on_validation_cases_is_refused_for_its_own_fold(tmp_path, dataset, weights):
    split = [{"train": ["case_00", "case_01", "case_02"], "val": ["case_02", "case_03"]}]
    (dataset / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    supervised = weights.with_name("supervised.pth")
    content = torch.load(weights, weights_only=True)
    about = {"init_args": {"plans": {"dataset_name": dataset.name}, "configuration": "3d_fullres", "fold": 0}}
    torch.save({"network_weights": content["network_weights"], "trainer_name": "nnUNetTrainer", **about}, supervised)
    with pytest.raises(ValueError, match=r"validation cases of fold 0 are among its training cases"):
        begin(settings(supervised, cases=(2,)), tmp_path / "study")


def test_labels_that_are_not_there_are_asked_for(tmp_path, dataset, weights):
    for file in (dataset / "gt_segmentations").iterdir():
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks the labels of 2 validation cases, .*Run nnUNetv2_preprocess again"
    ):
        begin(settings(weights), tmp_path / "study")


def test_plans_must_be_there_and_preprocessed(tmp_path, dataset, weights):
    with pytest.raises(FileNotFoundError, match=r"Plans Mine, which -p asks for, do not exist in .*There: nnUNetPlans"):
        begin(settings(weights, plans="Mine"), tmp_path / "a")
    of_others = write_weights(tmp_path / "others", plans="TheirPlans")
    with pytest.raises(FileNotFoundError, match=r"Plans TheirPlans, which .*others.* was made for, do not exist"):
        begin(settings(of_others), tmp_path / "b")
    own = write_weights(tmp_path / "own", network="my.module:Net")
    with pytest.raises(ValueError, match=r"is of my.module:Net, a network that no plans can name. Give plans \(-p\)"):
        begin(settings(own), tmp_path / "c")
    for file in (dataset / "nnUNetPlans_3d_fullres").iterdir():
        file.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"preprocess"):
        begin(settings(weights), tmp_path / "d")


def test_a_later_stage_of_a_cascade_is_refused_for_a_reason_of_studies(tmp_path, dataset, weights):
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    later = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_cascade_fullres"] = later
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"-c 3d_cascade_fullres takes .* which each run of a study would need"):
        begin(replace(settings(weights), configuration="3d_cascade_fullres"), tmp_path / "a")


def test_weights_pretrained_at_another_spacing_are_warned_about(tmp_path, dataset, caplog):
    begin(settings(write_weights(tmp_path / "own")), tmp_path / "a")
    assert "size of voxel" not in caplog.text
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [0.4, 1.0, 1.0]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    begin(settings(write_weights(tmp_path / "other")), tmp_path / "b")
    assert "up to 2.5 times another size of voxel" in caplog.text


def test_an_adapted_file_is_of_the_plans_and_the_trainer_that_it_was_adapted_to(tmp_path, dataset):
    of_others = write_weights(tmp_path / "others", plans="TheirPlans")
    made, about = (json.loads((dataset / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    target = FineTuningTarget({**made, "plans_name": "nnUNetPlans"}, about, "3d_fullres", "ResEncTrainer_ft_3ep")
    save_content(adapt_weights(of_others, target).content, tmp_path / "adapted.pth")
    scratch, adapted = begin(settings(tmp_path / "adapted.pth"), tmp_path / "study").arms
    assert (adapted.plans, adapted.trainer) == ("nnUNetPlans", "ResEncTrainer_ft_3ep")
    assert (scratch.plans, scratch.trainer) == ("nnUNetPlans", "ResEncTrainer_scratch_3ep")


def test_weights_that_do_not_fit_and_unknown_trainers_are_refused_before_anything_runs(tmp_path, dataset, weights):
    wrong = tmp_path / "wrong" / "model.pth"
    wrong.parent.mkdir()
    torch.save({"network_weights": {"some.weight": torch.zeros(3)}}, wrong)
    with pytest.raises(ValueError, match=r"model.pth"):
        begin(settings(wrong), tmp_path / "a")
    with pytest.raises(ValueError, match=r"no trainer"):
        begin(settings(weights, trainer="NobodysTrainer"), tmp_path / "b")
    assert not any((tmp_path / name / "study.json").exists() for name in "ab")


def test_weights_that_give_little_are_warned_about(tmp_path, dataset, weights, caplog):
    content = torch.load(weights)["network_weights"]
    some = {name: value for name, value in content.items() if name.startswith("encoder.stages.0")}
    torch.save({"network_weights": some}, weights)
    with caplog.at_level(logging.WARNING, "ssl_pretrain"):
        begin(settings(weights), tmp_path / "study")
    assert "% of the parameters of the network of nnUNetPlans. Do the plans (-p) suit the weights?" in caplog.text


def transductive(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "transductive" in record.getMessage()]


def test_weights_that_saw_the_images_of_validation_cases_are_warned_about(tmp_path, dataset, caplog):
    caplog.set_level(logging.WARNING, "ssl_pretrain")
    begin(settings(write_weights(tmp_path / "same fold", dataset="7", fold="0")), tmp_path / "a")
    begin(settings(write_weights(tmp_path / "elsewhere", dataset="8", fold="all")), tmp_path / "b")
    assert transductive(caplog) == []
    begin(settings(write_weights(tmp_path / "all", dataset="7", fold="all")), tmp_path / "c")
    assert "SparK was pretrained on images of 2 of the 2 validation cases of fold 0" in transductive(caplog)[0]


def test_the_list_of_cases_beside_the_weights_decides(tmp_path, dataset, caplog):
    caplog.set_level(logging.WARNING, "ssl_pretrain")
    file = write_weights(tmp_path / "all", dataset="7", fold="all")
    study = begin(settings(file), tmp_path / "a")
    seen = study.folds[0]["validation"][1]
    caplog.clear()
    listed = {
        "train": [f"{NAME}/nnUNetPlans_3d_fullres/{seen}", "Dataset008_Other/x/" + study.folds[0]["validation"][0]]
    }
    (file.parent / "cases.json").write_text(json.dumps(listed), encoding="utf-8")
    begin(settings(file), tmp_path / "b")
    assert f"on images of 1 of the 2 validation cases of fold 0 (e.g. {seen})" in transductive(caplog)[0]


def test_a_file_system_without_links_is_reported(tmp_path, dataset, weights, monkeypatch):
    def refuse(self, target, target_is_directory=False):
        raise OSError("operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OSError, match=r"cannot hold links to the preprocessed data .*not permitted.*developer mode"):
        begin(settings(weights), tmp_path / "study")


def test_labels_and_regions_have_the_keys_of_nnunets_summary():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4}
    assert label_names(labels) == {"(1, 2, 3)": "whole", "(2, 3)": "core", "3": "tip"}


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("dataset", lambda content: content["dataset"].update(name="../x")),
        ("configuration", lambda content: content["settings"].update(configuration="../x")),
        ("plans of arm scratch", lambda content: content["arms"][0].update(plans="../x")),
        ("case", lambda content: content["dataset"]["folds"]["0"]["validation"].append("../x")),
    ],
)
def test_a_study_that_names_places_elsewhere_is_refused(study, entry, change):
    content = read(study.folder / "study.json")
    change(content)
    (study.folder / "study.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"study.json: {entry} '\.\./x' leads to another folder"):
        Study.read(study.folder)


def test_weights_that_name_plans_elsewhere_are_refused(tmp_path, dataset):
    file = write_weights(tmp_path / "pretrained", plans="../../x")
    with pytest.raises(ValueError, match=r"checkpoint_final.pth: plans '\.\./\.\./x' leads to another folder"):
        begin(settings(file), tmp_path / "study")


def strange_plans(folder: Path) -> None:
    content = read(folder / "nnUNetPlans.json")
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "strange_layers.Act"
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))


def test_plans_that_name_code_are_refused_at_the_beginning_and_by_each_run(tmp_path, study, dataset, weights):
    run = study.runs[0]
    mirror = mirror_of(study)
    splits = read(mirror / "splits_final.json")
    (mirror / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["../x"]}]))
    with pytest.raises(ValueError, match=r"splits_final.json: case '\.\./x' leads to another folder"):
        worker.check_plans(study, study.arm(run.arm))
    (mirror / "splits_final.json").write_text(json.dumps(splits))
    worker.check_plans(study, study.arm(run.arm))
    strange_plans(mirror)
    with pytest.raises(ValueError, match=r"code that we do not know: nonlin 'strange_layers\.Act'"):
        worker.check_plans(study, study.arm(run.arm))
    worker.check_plans(replace(study, trust_plans=True), study.arm(run.arm))
    strange_plans(dataset)
    with pytest.raises(ValueError, match="code that we do not know"):
        begin(settings(weights), tmp_path / "other")


def test_trust_is_said_on_the_command_line_of_each_run_and_not_kept(study):
    assert "trust_plans" not in (study.folder / "study.json").read_text()
    assert "-trust_plans" not in slurm_script(study, 1)
    assert (
        slurm_script(replace(study, trust_plans=True), 1)
        .rstrip()
        .endswith('"${runs[$SLURM_ARRAY_TASK_ID]}" -trust_plans')
    )
    assert worker_command()[-2:] == ["-m", "ssl_pretrain.study.worker"]
