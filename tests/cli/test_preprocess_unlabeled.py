"""``nnUNetv2_preprocess_unlabeled`` as a user types it: messages, exit status, parts, kills, what is on disk."""

import json
import os
import pickle
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FEW_PROCESSES, REPOSITORY, run_command
from made_data import IDENTIFIER, volume, write_case
from made_images import complete_plans, write_image, write_images, write_planned

from ssl_pretrain.cli.preprocess_unlabeled import build_parser, main
from ssl_pretrain.cli.pretrain import build_parser as pretrain_parser
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.preparation.stored import fault_of, read_whole

COMMAND = "nnUNetv2_preprocess_unlabeled"
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A planned dataset that was never preprocessed, with unlabelled images beside its labelled ones."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = write_planned(tmp_path / "nnUNet_preprocessed")
    raw = tmp_path / "nnUNet_raw" / folder.name
    write_images(raw / "imagesUn", ["un_1", "un_2", "un_3"])
    write_images(raw / "imagesTs", ["ts_1"])
    write_images(raw / "imagesTr", ["tr_1"])
    return folder


@pytest.fixture
def raw(dataset, tmp_path):
    return tmp_path / "nnUNet_raw" / dataset.name


@pytest.fixture
def out(dataset):
    return dataset / f"{IDENTIFIER}_unlabeled"


def run(*arguments, inputs=("raw",)):
    return main(["-i", *map(str, inputs), "-d", "7", "-np", "0", *map(str, arguments)])


def done(out):
    return sorted(f.name.removesuffix(".b2nd") for f in out.glob("*.b2nd") if not f.name.endswith("_seg.b2nd"))


def start(*arguments):
    """The command in a process group of its own."""
    script = shutil.which(COMMAND, path=str(Path(sys.executable).parent))
    env = {**os.environ, **FEW_PROCESSES, "PYTHONUTF8": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([script, *map(str, arguments)], env=env, start_new_session=True, **pipes)


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None) and time.monotonic() < deadline:
        time.sleep(0.005)


def normalised(index):
    """What nnU-Net's z-score makes of a made volume that needs no resampling."""
    image = volume(index)
    image -= image.mean()
    image /= max(image.std(), 1e-8)
    return image


def living(group):
    """Processes of a group; without those that have ended and wait for init to collect them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += [file.parent.name] * (int(of_group) == group and state != "Z")
    return found


def test_raw_from_beginning_to_end(dataset, out, capsys):
    """The real command with a real process, then once more."""
    first = run_command((COMMAND, "-i", "raw", "-d", "7", "-np", "1"))
    assert "Dataset007_Made, nnUNetPlans 3d_fullres: 4 images. 0 are done, 4 to do (-np 1)" in first.stdout
    for name in ("ts_1", "un_1", "un_2", "un_3"):
        assert first.stdout.count(f"{name}: 20 x 22 x 24 voxels, ") == 1
    assert f"4 of 4 images are preprocessed in {out} (4 of them now, in 0 min " in first.stdout
    assert "preprocessing: 100%" in first.stderr
    typed = next(line.split() for line in first.stdout.splitlines() if line.startswith("    nnUNetv2_pretrain"))
    assert vars(pretrain_parser().parse_args(typed[1:]))["dataset"] == "7"
    assert Cases(out, 1, labelled=False).identifiers == ["ts_1", "un_1", "un_2", "un_3"]
    assert [f.name for f in out.iterdir() if f.suffix not in (".b2nd", ".pkl")] == []
    before = {f.name: f.stat().st_mtime_ns for f in out.iterdir()}
    assert run() == 0
    shown = capsys.readouterr().out
    assert "4 images. 4 are done, 0 to do" in shown
    assert "4 of 4 images are preprocessed" in shown
    assert {f.name: f.stat().st_mtime_ns for f in out.iterdir()} == before


def test_a_case_that_fails_is_reported_and_the_others_are_done(raw, out, capsys):
    bad = write_image(raw / "imagesUn" / "un_2_0000.nii.gz", np.full((20, 22, 24), 3.0))
    assert run() == 1
    shown = capsys.readouterr().out
    assert f"FAILED un_2: {bad}: every voxel is 3, there is nothing to learn" in shown
    assert f"1 failed and will not be pretrained on: {out / 'failed.json'} says why" in shown
    assert done(out) == ["ts_1", "un_1", "un_3"]
    (entry,) = json.loads((out / "failed.json").read_text())
    assert (entry["identifier"], entry["files"]) == ("un_2", [str(bad)])
    assert "nothing to learn" in entry["reason"]
    write_image(bad, volume(7)[0])
    assert run() == 0
    assert "4 images. 3 are done, 1 to do" in capsys.readouterr().out
    assert done(out) == ["ts_1", "un_1", "un_2", "un_3"]
    assert not (out / "failed.json").exists()


def test_nothing_but_failures(raw, out, capsys):
    for file in raw.rglob("*.nii.gz"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert run() == 1
    assert "nnUNetv2_pretrain" not in capsys.readouterr().out
    assert len(json.loads((out / "failed.json").read_text())) == 4


def test_a_warning_stands_beneath_its_case(raw, capsys):
    image = volume(0)[0]
    image[3, 3, 3] = 1e4
    file = write_image(raw / "imagesUn" / "un_1_0000.nii.gz", image)
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("un_1: ")) + 1]
    assert below.startswith(f"    warning: {file}: intensities reach from ")


def assert_whole(out):
    assert [fault_of(out, name, 1) for name in done(out)] == [None] * len(done(out))


@needs_signals
@pytest.mark.parametrize(("processes", "kills"), [(0, 2), (2, 1)])
def test_killed_at_any_point_and_run_again_nothing_is_lost_or_half(tmp_path, dataset, out, processes, kills):
    names = [f"case_{i:02d}" for i in range(15)]
    folder = write_images(tmp_path / "many", names)
    for _ in range(kills):
        before = len(done(out)) if out.is_dir() else 0
        process = start("-i", folder, "-d", "7", "-np", processes)
        wait_until(lambda enough=2 * before + 3: len(list(out.glob("*.b2nd"))) > enough, process)
        # With processes only their parent is killed: they finish what they have, and end.
        process.kill()
        process.communicate()
        assert_whole(out)
        assert before < len(done(out)) < 15
    assert run(inputs=[folder]) == 0
    assert done(out) == names
    assert not list(out.glob(".incomplete*"))
    assert_whole(out)
    for i, name in enumerate(names):
        assert np.allclose(read_whole(out / f"{name}.b2nd"), normalised(i), atol=1e-5)


@needs_signals
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopping_ends_all_processes_at_once(tmp_path, dataset, out, number, status):
    folder = write_images(tmp_path / "many", [f"case_{i:02d}" for i in range(40)])
    process = start("-i", folder, "-d", "7", "-np", "1")
    wait_until(lambda: any(out.glob("*.b2nd")), process)
    # As a cluster and a terminal do: to every process of the group.
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert "What is done is kept; the same command goes on." in error
    assert "Traceback" not in error
    # Python's own tracker of shared memory ends a moment after its parent.
    wait_until(lambda: not living(process.pid), None)
    assert living(process.pid) == []
    assert not list(out.glob(".incomplete*"))
    assert 0 < len(done(out)) < 40
    assert_whole(out)


def test_parts_at_the_same_time_share_the_work(tmp_path, dataset, out):
    names = [f"case_{i:02d}" for i in range(7)]
    folder = write_images(tmp_path / "many", names)
    for name in names[:2]:
        (folder / f"{name}_0000.nii.gz").write_bytes(b"")
    parts = [start("-i", folder, "-d", "7", "-np", "0", "-part_id", i, "-num_parts", 2) for i in range(2)]
    shown = [process.communicate()[0] for process in parts]
    assert [process.returncode for process in parts] == [1, 1]
    assert done(out) == names[2:]
    for i, (text, count) in enumerate(zip(shown, (4, 3), strict=True)):
        assert f"7 images, of which {count} are part {i} of 2. 0 are done, {count} to do" in text
        assert f"{count - 1} of {count} images of part {i} are preprocessed" in text
        assert "When all parts are done, pretrain with" in text
        (entry,) = json.loads((out / f"failed_{i}_of_2.json").read_text())
        assert entry["identifier"] == names[i]
    assert not (out / "failed.json").exists()
    assert not list(out.glob(".incomplete*"))


def test_other_plans_are_refused_and_overwritten_only_when_asked(dataset, out, capsys):
    assert run() == 0
    plans = complete_plans(spacing=[2.0, 1.0, 1.0])
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert run() == 1
    error = capsys.readouterr().err
    assert f"{out} has cases that were preprocessed with other plans than nnUNetPlans 3d_fullres are now" in error
    assert "ts_1, un_1, un_2 and 1 more. Make them again with --overwrite" in error
    assert read_whole(out / "un_1.b2nd").shape == (1, 20, 22, 24)
    assert run("--overwrite") == 0
    assert read_whole(out / "un_1.b2nd").shape == (1, 10, 22, 24)
    assert run() == 0


def test_overwriting_leaves_nothing_of_a_case_that_fails_now(raw, out):
    assert run() == 0
    (raw / "imagesUn" / "un_1_0000.nii.gz").write_bytes(b"")
    assert run("--overwrite") == 1
    assert done(out) == ["ts_1", "un_2", "un_3"]


def test_verify_makes_damaged_cases_again(out, capsys):
    assert run() == 0
    whole = (out / "un_1.b2nd").read_bytes()
    (out / "un_1.b2nd").write_bytes(whole[: len(whole) // 2])
    (out / "un_2_seg.b2nd").unlink()
    (out / "un_3.pkl").write_bytes(b"")
    capsys.readouterr()
    assert run("--verify") == 0
    shown = capsys.readouterr().out
    assert "un_1 is damaged and made again: un_1.b2nd cannot be read" in shown
    assert "un_2 is damaged and made again: un_2_seg.b2nd cannot be read" in shown
    assert "un_3: its .pkl is missing or damaged, so it is made again" in shown
    assert "4 images. 1 are done, 3 to do" in shown
    assert run("--verify") == 0
    assert "4 images. 4 are done, 0 to do" in capsys.readouterr().out
    assert np.allclose(read_whole(out / "un_1.b2nd"), normalised(0), atol=1e-5)


def test_verify_reads_in_processes_that_damage_may_end(out):
    assert run() == 0
    content = bytearray((out / "un_1.b2nd").read_bytes())
    content[200:-200:7] = bytes(255 - b for b in content[200:-200:7])
    (out / "un_1.b2nd").write_bytes(content)
    assert run("-np", "1", "--verify") == 0
    assert np.allclose(read_whole(out / "un_1.b2nd"), normalised(0), atol=1e-5)


def collection(tmp_path, images, masks=None):
    """Two subjects of different modality and quality, the first with two images."""
    entries = [
        ("p1", "T1w", images / "a_0000.nii.gz"),
        ("p1", "T1w", images / "b_0000.nii.gz"),
        ("p2", "T2w", images / "c_0000.nii.gz"),
    ]
    subjects = {}
    for subject, modality, file in entries:
        made = subjects.setdefault(
            subject, {"subject_id": subject, "sessions": {"s": {"session_id": "s", "images": []}}}
        )
        entry = {"name": file.name, "image_path": str(file), "modality": modality, "associated_masks": masks}
        made["sessions"]["s"]["images"].append(entry)
    scores = [{"modality": m, "derived_from": None, "image_quality_score": q} for m, q in (("T1w", 2), ("T2w", 4))]
    info = {"dataset_index": "d", "dataset_info": {"image_quality_score": scores}, "subjects": subjects}
    file = tmp_path / "pretrain_data.json"
    file.write_text(json.dumps({"collection_index": 1, "collection_name": "C", "datasets": {"d": info}}))
    return file


def test_a_collection_with_masks_and_filters(tmp_path, dataset, out, capsys):
    images = write_images(tmp_path / "images", ["a", "b", "c"])
    file = collection(tmp_path, images)
    assert run("-filter", "modality=T1w", "quality<=3", inputs=[file]) == 0
    assert done(out) == ["C__d__p1__s__a_0000", "C__d__p1__s__b_0000"]
    kept = pickle.loads((out / "C__d__p1__s__a_0000.pkl").read_bytes())["ssl_pretrain"]["info"]
    assert kept == {"dataset": "d", "subject": "C__d__p1", "session": "s", "modality": "T1w", "quality": 2.0}
    assert run("-filter", "modality=CT", inputs=[file]) == 1
    assert "modality=CT" in capsys.readouterr().err
    # Masks that the finished cases do not have are missing, so these cases are made again.
    mask = write_image(tmp_path / "mask.nii.gz", np.pad(np.ones((4, 4, 4), "uint8"), ((5, 11), (5, 13), (5, 15))))
    file = collection(tmp_path, images, {"anatomy_mask": str(mask), "anonymization_mask": None})
    assert run(inputs=[file]) == 0
    assert "3 images. 0 are done, 3 to do" in capsys.readouterr().out
    cases = Cases(out, 1, labelled=False)
    assert len(cases.anatomy("C__d__p2__s__c_0000")) == 64
    assert (len(cases.masked("anatomy")), cases.masked("anonymization")) == (3, set())
    assert run("--verify", inputs=[file]) == 0
    assert "3 are done, 0 to do" in capsys.readouterr().out


def test_a_mask_that_is_the_other_way_round_is_said_once_and_made_anew_when_the_collection_says_so(
    tmp_path, dataset, out, capsys
):
    images = write_images(tmp_path / "images", ["a", "b", "c"])
    air = np.pad(np.zeros((10, 11, 12), "uint8"), ((5, 5), (5, 6), (6, 6)), constant_values=1)
    mask = write_image(tmp_path / "fb_mask.nii.gz", air)
    file = collection(tmp_path, images, {"anatomy_mask": str(mask), "anonymization_mask": None})
    assert run(inputs=[file]) == 0
    shown = capsys.readouterr().out
    assert shown.count("other way round") == 1
    assert "3 of 3 anatomy masks look as if they were the other way round, e.g. " in shown
    assert f"{mask}: it holds the corners of the volume. Look at one. If 0 is the anatomy" in shown
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "inverted_masks": ["anatomy_mask"]}))
    assert run(inputs=[file]) == 0
    shown = capsys.readouterr().out
    assert "3 finished cases have a mask that was taken the other way round than the collection says" in shown
    assert "0 are done, 3 to do" in shown
    assert np.array_equal(read_whole(out / "anatomy" / "C__d__p1__s__a_0000.b2nd")[0], 1 - air)
    assert run(inputs=[file]) == 0
    assert "3 are done, 0 to do" in capsys.readouterr().out


def test_two_channels(tmp_path, dataset, out):
    shutil.rmtree(dataset)
    write_planned(dataset.parent, channels=2)
    assert run(inputs=[write_images(tmp_path / "two", ["a", "b"], channels=2, ending=".mha")]) == 0
    assert read_whole(out / "a.b2nd").shape == (2, 20, 22, 24)


def test_the_same_images_in_another_place_are_done_with_a_word(tmp_path, raw, out, capsys):
    assert run() == 0
    moved = shutil.move(raw / "imagesUn", tmp_path / "elsewhere")
    assert run(inputs=[moved]) == 0
    shown = capsys.readouterr().out
    assert f"Finished cases (3) were made from files in another place, such as {raw / 'imagesUn'}" in shown
    assert "3 images. 3 are done, 0 to do" in shown


def test_images_called_like_labelled_cases(tmp_path, dataset, raw, capsys):
    same = write_images(tmp_path / "more", ["tr_1", "new"])
    assert run(inputs=[same]) == 1
    error = capsys.readouterr().err
    assert f"called like labelled cases of Dataset007_Made: tr_1 ({same / 'tr_1_0000.nii.gz'}). If they are" in error
    shutil.rmtree(raw)
    write_case(dataset / IDENTIFIER, "new", volume(0))
    assert run(inputs=[same]) == 1
    assert "called like labelled cases of Dataset007_Made: new (" in capsys.readouterr().err
    content = json.loads((dataset / "dataset.json").read_text())
    shutil.rmtree(dataset / IDENTIFIER)
    (dataset / "dataset.json").write_text(json.dumps({**content, "dataset": {"tr_1": {"images": [], "label": ""}}}))
    assert run(inputs=[same]) == 1
    assert "tr_1 (" in capsys.readouterr().err


def old_version(plans):
    return {"plans_per_stage": {}, "num_stages": 1, "base_num_features": 32, "modalities": {"0": "CT"}}


def without_entries(plans):
    del plans["image_reader_writer"], plans["configurations"]["3d_fullres"]["resampling_fn_seg"]
    return plans


def unknown_reader(plans):
    return {**plans, "image_reader_writer": "HoloIO"}


def borrowed_resampling(plans):
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "deepcopy"
    return plans


def unknown_preprocessor(plans):
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "MyPreprocessor"
    return plans


def unknown_resampling(plans):
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "my_resampling"
    return plans


def lost_parent(plans):
    plans["configurations"]["3d_fullres"]["inherits_from"] = "3d_gone"
    return plans


def two_channels(plans):
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    return plans


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (old_version, "is a plans file of nnU-Net version 1 (it has plans_per_stage, num_stages, base_num_features)"),
        (lambda plans: {"a": 1}, "is not a plans file of nnU-Net version 2: it has no 'configurations'"),
        (without_entries, "lacks image_reader_writer, configurations.3d_fullres.resampling_fn_seg: it is of another"),
        (
            unknown_reader,
            "names something that this nnU-Net does not have: Unable to find reader writer class 'HoloIO'",
        ),
        (unknown_preprocessor, "does not have: preprocessor_name 'MyPreprocessor'"),
        (borrowed_resampling, "does not have: a reader, preprocessor or way of resampling that is of copy"),
        (unknown_resampling, "names something that this nnU-Net does not have: "),
        (lost_parent, "configuration '3d_fullres' inherits from '3d_gone', which leads nowhere"),
        (two_channels, "nnUNetPlans.json are for 2. Plan the dataset again"),
    ],
)
def test_plans_of_another_version(dataset, capsys, change, message):
    file = dataset / "nnUNetPlans.json"
    file.write_text(json.dumps(change(complete_plans())))
    assert run() == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(dataset.glob("*_unlabeled")) == []


def test_a_dataset_without_a_file_ending(dataset, capsys):
    content = json.loads((dataset / "dataset.json").read_text())
    del content["file_ending"]
    (dataset / "dataset.json").write_text(json.dumps(content))
    assert run() == 1
    assert "dataset.json: file_ending: Field required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-part_id", "2", "-num_parts", "2"], "-part_id goes from 0 to -num_parts minus 1, 1 here; got 2."),
        (["-part_id", "-1"], "-part_id goes from 0 to -num_parts minus 1, 0 here; got -1."),
        (["-num_parts", "0"], "-num_parts must be 1 or more, got 0."),
        (["-np", "-2"], "-np must be 0 or more, got -2."),
        (["-d", "8"], "Dataset 8 is not in "),
        (["-p", "Nothing"], "Plans 'Nothing' do not exist in "),
        (["-c", "3d_nothing"], "Configuration '3d_nothing' is not in "),
        (["-c", "2d"], "what is pretrained here is 3-D. Choose from: 3d_fullres, 3d_planned_only."),
        (
            ["-c", "3d_cascade_fullres"],
            "which unlabelled images do not have. Choose from: 3d_fullres, 3d_planned_only.",
        ),
        (["-i", "gone"], "gone does not exist. Name folders, image files, a pretrain_data.json or 'raw'"),
        (["-filter", "colour=red"], "colour"),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_1(dataset, out, capsys, arguments, message):
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("Error: ")
    assert "\n" not in error
    assert not out.exists()


def test_raw_without_the_variable(dataset, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    assert run() == 1
    assert "The environment variable nnUNet_raw is not set" in capsys.readouterr().err


def test_a_folder_needs_no_raw_data(tmp_path, dataset, out, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert run(inputs=[write_images(tmp_path / "more", ["a"])]) == 0
    kept = pickle.loads((out / "a.pkl").read_bytes())["ssl_pretrain"]
    assert kept["info"] == {"subject": "Dataset007_Made__a"}


def test_real_unlabelled_images(shared_data, tmp_path, dataset, out):
    files = sorted((shared_data / "Dataset221_OpenKBP" / "imagesUn").iterdir())[:2]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(complete_plans(spacing=[2.5, 4.688, 4.688])))
    assert run(inputs=files) == 0
    assert done(out) == [file.name.removesuffix("_0000.nii.gz") for file in files]


def test_the_documentation_has_every_flag_and_only_commands_that_are_accepted(capsys):
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "documentation").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    typed = [line for line in lines if line.startswith(COMMAND)]
    assert len(typed) > 5
    for line in typed:
        build_parser().parse_args(shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "3"))[1:])
    page = (REPOSITORY / "documentation" / "how-to" / "unlabelled-images.md").read_text(encoding="utf-8")
    section = page.partition("\n## Flags\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"`(--?\w+)(?: INPUT …| CONDITION …)?`", section))
    assert rows == {option for a in build_parser()._actions for option in a.option_strings} - {"-h", "--help"}


def test_a_corrected_collection_renews_what_is_known_about_finished_cases(dataset, out, tmp_path, capsys):
    write_images(tmp_path / "images", ["a"])
    file = tmp_path / "pretrain_data.json"

    def write(modality):
        image = {"name": "a.nii.gz", "image_path": "images/a_0000.nii.gz", "modality": modality}
        session = {"images": [image]}
        subjects = {"sub-1": {"sessions": {"ses-1": session}}}
        content = {
            "collection_index": 1,
            "collection_name": "C",
            "datasets": {"ds": {"dataset_index": "ds", "subjects": subjects}},
        }
        file.write_text(json.dumps(content))

    write("T1w")
    assert run(inputs=[file]) == 0
    (name,) = done(out)
    before = (out / f"{name}.b2nd").stat().st_mtime_ns
    assert Cases(out, 1, labelled=False).index().about[0]["info"]["modality"] == "T1w"
    write("T2w")
    assert run(inputs=[file]) == 0
    assert "what is known about 1 finished cases has changed" in capsys.readouterr().out
    assert (out / f"{name}.b2nd").stat().st_mtime_ns == before, "its voxels stay"
    assert Cases(out, 1, labelled=False).index().about[0]["info"]["modality"] == "T2w"


def test_what_another_process_is_writing_is_left_alone_and_what_a_dead_one_left_is_removed(dataset, out):
    alive, dead = (out / f".incomplete_0_of_1__{platform.node()}__{n}" for n in (os.getppid(), 2**22 + 1))
    for folder in (alive, dead):
        folder.mkdir(parents=True)
        (folder / "half.b2nd").write_bytes(b"x")
    assert run() == 0
    assert (alive / "half.b2nd").is_file()
    assert not dead.exists()
    assert [f.name for f in out.glob(".incomplete*")] == [alive.name]
