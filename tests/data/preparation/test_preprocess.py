"""One image through nnU-Net's preprocessor: the same arrays, masks where they belong, never half a case."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import blosc2
import numpy as np
import pytest
from made_data import volume
from made_images import complete_plans, write_image
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError
from ssl_pretrain.data.preparation.preprocess import Preprocessor, sample_voxels
from ssl_pretrain.data.preparation.stored import fault_of, image_file, mask_file, read_properties, read_whole
from ssl_pretrain.data.preprocessing import digest, preprocessing_of

DATASET = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "any"}, "file_ending": ".nii.gz"}

ON_A_FULL_DISK = """
import pathlib, pickle, resource, signal, sys
preprocessor, case = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
preprocessor.preprocess(case)  # what is imported on the way may write caches
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for most in (0, 500, 3000, 20_000, 10**9):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        preprocessor(case)
        print("written")
    except OSError as error:
        print(error)
    print(sorted(file.name for file in preprocessor.folder.glob("*.*")), list(preprocessor.staging.iterdir()))
"""


def preprocessor_for(folder, plans=None, channels=1):
    folder.mkdir(exist_ok=True)
    (folder / "staging").mkdir()
    plans = plans or complete_plans(channels)
    return Preprocessor(
        plans=plans,
        configuration="3d_fullres",
        dataset=DATASET,
        channels=channels,
        folder=folder,
        staging=folder / "staging",
    )


def case_of(*files, **masks):
    return ImageCase(identifier="x", images=files, info=CaseInfo(subject="s", modality="CT"), **masks)


def by_nnunet(folder, case, plans):
    """What nnU-Net's preprocessor saves for the same files without a segmentation."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    folder.mkdir()
    images = [str(file) for file in case.images]
    preprocessor = configuration.preprocessor_class(verbose=False)
    preprocessor.run_case_save(str(folder / "x"), images, None, manager, configuration, DATASET)
    return folder


def assert_the_same(ours, theirs):
    for name in ("x.b2nd", "x_seg.b2nd"):
        one, other = (blosc2.open(str(folder / name)) for folder in (ours, theirs))
        assert one.dtype == other.dtype
        assert one[:].tobytes() == other[:].tobytes()
        assert (one.shape, one.chunks, one.blocks) == (other.shape, other.chunks, other.blocks)
        assert one.schunk.cparams == other.schunk.cparams
    one, other = (pickle.loads((folder / "x.pkl").read_bytes()) for folder in (ours, theirs))
    del one["ssl_pretrain"]
    assert pickle.dumps(one) == pickle.dumps(other)


def bordered(index=0, channels=1):
    """A volume with a border of zeros, which nnU-Net crops away."""
    image = np.zeros((channels, 30, 36, 28), dtype=np.float32)
    image[:, 4:24, 6:28, 2:26] = volume(index, channels=channels)
    return image


@pytest.mark.parametrize(
    ("channels", "entries"),
    [
        (1, {}),
        (2, {"spacing": [2.0, 0.8, 1.1]}),
        (1, {"scheme": "CTNormalization", "spacing": [4.0, 1.0, 1.0]}),
        (1, {"use_mask_for_norm": [True], "patch_size": [8, 24, 24]}),
    ],
)
def test_the_arrays_are_those_of_nnunet(tmp_path, channels, entries):
    plans = {**complete_plans(channels, **entries), "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    files = [write_image(tmp_path / f"x_{c:04d}.nii.gz", v, (1, 2, 3)) for c, v in enumerate(bordered(0, channels))]
    ours = preprocessor_for(tmp_path / "ours", plans, channels)
    made = ours(case_of(*files))
    assert_the_same(ours.folder, by_nnunet(tmp_path / "theirs", case_of(*files), plans))
    assert read_whole(image_file(ours.folder, "x")).shape == (channels, *made.shape)
    assert sorted(f.name for f in ours.folder.iterdir()) == ["staging", "x.b2nd", "x.pkl", "x_seg.b2nd"]
    assert list(ours.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "channels"),
    [("Dataset221_OpenKBP/imagesUn/openkbp_002", 1), ("Dataset222_OpenKBPDose/imagesTr/*", 2)],
)
def test_real_images_become_what_nnunet_makes_of_them(shared_data, tmp_path, name, channels):
    files = sorted(shared_data.glob(f"{name}_0*.nii.gz"))[-channels:]
    plans = complete_plans(channels, scheme="CTNormalization", spacing=[4.688, 2.5, 4.688], patch_size=[80, 128, 128])
    plans |= {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    ours = preprocessor_for(tmp_path / "ours", plans, channels)
    ours(case_of(*files))
    assert_the_same(ours.folder, by_nnunet(tmp_path / "theirs", case_of(*files), plans))


def test_what_is_kept_with_a_case(tmp_path):
    file = write_image(tmp_path / "x_0000.nii.gz", volume(0)[0])
    preprocessor = preprocessor_for(tmp_path / "out")
    preprocessor(case_of(file))
    assert read_properties(tmp_path / "out", "x")["ssl_pretrain"] == {
        "info": {"subject": "s", "modality": "CT"},
        "made_with": digest(preprocessing_of(preprocessor.plans, "3d_fullres")),
        "sources": [str(file)],
    }
    cases = Cases(tmp_path / "out", 1, labelled=False)
    assert cases.identifiers == ["x"]
    assert cases.foreground("x") == {}
    assert cases.index().about == [{k: v for k, v in cases.properties("x")["ssl_pretrain"].items() if k != "sources"}]


def test_masks_follow_the_image_voxel_by_voxel(tmp_path):
    """The image itself shows where the mask must be: it is bright there."""
    marks = np.zeros((30, 36, 28), dtype=np.uint8)
    marks[8:14, 10:20, 5:9] = 7
    image = bordered()[0] * 0.01
    image[marks > 0] += 100
    plans = {**complete_plans(spacing=[1.0, 1.5, 1.0]), "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    masks = {"anatomy_mask": marks, "anonymization_mask": (marks == 0).astype(np.float32)}
    files = {name: write_image(tmp_path / f"{name}.nii.gz", v, (1, 1, 2)) for name, v in masks.items()}
    preprocessor = preprocessor_for(tmp_path / "out", plans)
    preprocessor(case_of(write_image(tmp_path / "x_0000.nii.gz", image, (1, 1, 2)), **files))
    voxels = read_whole(image_file(preprocessor.folder, "x"))
    # Cropped to 20 x 22 x 24, transposed, resampled from (1, 2, 1) mm to (1, 1.5, 1) mm.
    assert voxels.shape == (1, 24, 27, 22)
    anatomy, anonymised = (
        read_whole(mask_file(preprocessor.folder, kind, "x")) for kind in ("anatomy", "anonymization")
    )
    for mask in (anatomy, anonymised):
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert mask.shape == (1, *voxels.shape[1:])
    assert np.array_equal(anatomy, voxels > voxels.max() / 2)
    assert np.array_equal(anonymised, 1 - anatomy)
    kept = read_properties(preprocessor.folder, "x")["ssl_pretrain"]["anatomy_voxels"]
    assert kept.dtype == np.int32
    assert np.array_equal(kept, np.argwhere(anatomy[0]))
    assert fault_of(preprocessor.folder, "x", 1, ("anatomy", "anonymization")) is None


def test_masks_outside_of_what_is_not_zero_stay_masks(tmp_path):
    """The frame that nnU-Net does not crop is -1 in its segmentation; in a mask it is what the mask says."""
    image, marks = bordered()[0], np.zeros((30, 36, 28), dtype=np.int16)
    image[10:12, 6:20, 2:20] = 0
    marks[11:13] = 1
    file = write_image(tmp_path / "m.nii.gz", marks)
    preprocessor = preprocessor_for(tmp_path / "out")
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", image), anonymization_mask=file)
    preprocessor(case)
    assert read_whole(preprocessor.folder / "x_seg.b2nd").min() == -1
    mask = read_whole(mask_file(preprocessor.folder, "anonymization", "x"))
    assert np.array_equal(mask[0], marks[4:24, 6:28, 2:26])


def test_an_inverted_mask_is_stored_as_1_where_it_counts_and_what_was_done_is_kept(tmp_path):
    """As OpenMind's, which are 1 in the background: crops are centred on the head."""
    head = np.zeros((20, 22, 24), dtype=bool)
    head[5:15, 6:16, 7:17] = True
    image = np.where(head, 500, 10) + volume(0)[0]
    file = write_image(tmp_path / "x_0000.nii.gz", image.astype(np.float32))
    background = write_image(tmp_path / "fb_mask.nii.gz", (~head).astype(np.uint8))
    preprocessor = preprocessor_for(tmp_path / "out")
    right = case_of(file, anatomy_mask=background, anonymization_mask=background, inverted=frozenset({"anatomy"}))
    made = preprocessor(right)
    assert np.array_equal(read_whole(mask_file(preprocessor.folder, "anatomy", "x"))[0], head)
    assert np.array_equal(read_whole(mask_file(preprocessor.folder, "anonymization", "x"))[0], ~head)
    kept = read_properties(preprocessor.folder, "x")["ssl_pretrain"]
    assert np.array_equal(kept["anatomy_voxels"], np.argwhere(head))
    assert kept["masks"] == {
        "anatomy": {"inverted": True, "doubt": None},
        "anonymization": {"inverted": False, "doubt": "it marks 91 % of the image"},
    }
    assert made.doubts == {"anatomy": None, "anonymization": "it marks 91 % of the image"}
    assert preprocessor(replace(right, inverted=frozenset())).doubts["anatomy"] == "it holds the corners of the volume"


def thin(tmp_path, slices, mm, **entries):
    """Preprocess an image of some slices of 32 x 32 voxels of 1 mm."""
    voxels = np.random.default_rng(0).normal(size=(slices, 32, 32)).astype(np.float32)
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", voxels, (1, 1, mm)))
    return preprocessor_for(tmp_path / "out", complete_plans(**entries)).preprocess(case)[0].image.shape[1:]


@pytest.mark.parametrize("slices", [1, 2, 6, 7])
def test_a_thin_image_is_taken_where_the_patch_is_thin(tmp_path, slices):
    """nnU-Net plans a patch of 7 for slices of 10 mm."""
    assert thin(tmp_path, slices, 10, patch_size=[7, 32, 32], spacing=[10.0, 1.0, 1.0]) == (slices, 32, 32)


def test_a_thin_image_whose_slices_are_thick_is_taken_where_they_become_many(tmp_path):
    assert thin(tmp_path, 6, 5, patch_size=[32, 32, 32]) == (30, 32, 32)


@pytest.mark.parametrize("mm", [0.1, 0.001])
def test_an_image_of_which_resampling_leaves_almost_nothing_is_refused_with_numbers(tmp_path, mm):
    with pytest.raises(ImageError) as error:
        thin(tmp_path, 20, mm, patch_size=[32, 32, 32])
    assert str(error.value) == (
        f"{tmp_path / 'x_0000.nii.gz'}: 20 x 32 x 32 voxels of {mm} x 1 x 1 mm become {round(20 * mm)} x 32 x 32 by "
        "the plans, but at least 4 x 4 x 4 are needed, an eighth of their patch of 32 x 32 x 32: most of a crop would "
        "be padding. If the spacing in its header is wrong, correct it; else leave the image out, or take plans with a "
        "smaller patch or a finer spacing."
    )


def test_the_smallest_image_is_an_eighth_of_the_patch_rounded_up(tmp_path):
    assert thin(tmp_path, 3, 1, patch_size=[24, 32, 32]) == (3, 32, 32)
    with pytest.raises(ImageError, match="3 x 32 x 32 by the plans, but at least 4 x 4 x 4 are needed"):
        thin(tmp_path / "again", 3, 1, patch_size=[25, 32, 32])


def test_what_cropping_leaves_is_what_counts(tmp_path):
    voxels = np.zeros((20, 32, 32), dtype=np.float32)
    voxels[4:6] = np.random.default_rng(0).normal(size=(2, 32, 32))
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", voxels))
    with pytest.raises(ImageError, match="2 x 32 x 32 voxels of 1 x 1 x 1 mm become 2 x 32 x 32 by the plans"):
        preprocessor_for(tmp_path / "out", complete_plans(patch_size=[32, 32, 32])).preprocess(case)


def test_without_resampling_the_spacing_does_not_count(tmp_path):
    untouched = {f"resampling_fn_{what}": "no_resampling_hack" for what in ("data", "seg")}
    untouched |= {f"resampling_fn_{what}_kwargs": {} for what in ("data", "seg")}
    assert thin(tmp_path, 20, 0.1, patch_size=[32, 32, 32], **untouched) == (20, 32, 32)


def test_masks_that_mark_nothing_or_everything_are_warned_of(tmp_path):
    nothing, everything = (write_image(tmp_path / f"{v}.nii.gz", np.full((20, 22, 24), v, "uint8")) for v in (0, 1))
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", volume(0)[0]), anatomy_mask=nothing)
    preprocessor = preprocessor_for(tmp_path / "out")
    warnings = preprocessor(replace(case, anonymization_mask=everything)).warnings
    assert [w.partition(" marks ")[2][:9] for w in warnings] == ["nothing, ", "the whole"]
    assert len(read_properties(preprocessor.folder, "x")["ssl_pretrain"]["anatomy_voxels"]) == 0


def test_a_case_made_again_leaves_nothing_of_the_old_one(tmp_path):
    preprocessor = preprocessor_for(tmp_path / "out")
    mask = write_image(tmp_path / "m.nii.gz", np.ones((20, 22, 24), dtype=np.uint8))
    file = write_image(tmp_path / "x_0000.nii.gz", volume(0)[0])
    preprocessor(case_of(file, anatomy_mask=mask))
    write_image(file, volume(1)[0])
    preprocessor(case_of(file))
    assert not mask_file(preprocessor.folder, "anatomy", "x").exists()
    assert "anatomy_voxels" not in read_properties(preprocessor.folder, "x")["ssl_pretrain"]
    write_image(file, np.zeros((20, 22, 24)))
    with pytest.raises(ImageError, match="nothing to learn"):
        preprocessor(case_of(file))
    assert not image_file(preprocessor.folder, "x").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot limit the size of files")
def test_a_full_disk_is_an_error_and_never_a_case(tmp_path):
    """Files may only become so large, from nothing at all to enough, so that one write after the other fails."""
    rng = np.random.default_rng(0)
    mask = write_image(tmp_path / "m.nii.gz", (rng.random((20, 22, 24)) > 0.5).astype(np.uint8))
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", volume(0)[0]), anatomy_mask=mask)
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((preprocessor_for(tmp_path / "out"), case)))
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *failed, success, complete = done.stdout.splitlines()
    for message, left in zip(failed[::2], failed[1::2], strict=True):
        assert message.startswith(f"x could not be written to {tmp_path / 'out'}: ")
        assert "is there no space left, or a quota?" in message
        assert "Free some, then run the command again" in message
        assert left == "[] []"
    assert len(failed) == 2 * 4
    assert (success, complete) == ("written", "['x.b2nd', 'x.pkl', 'x_seg.b2nd'] []")


def test_damage_is_found_by_reading_everything(tmp_path):
    mask = write_image(tmp_path / "m.nii.gz", np.ones((20, 22, 24), dtype=np.uint8))
    case = case_of(write_image(tmp_path / "x_0000.nii.gz", volume(0)[0]), anatomy_mask=mask)
    preprocessor = preprocessor_for(tmp_path / "out")
    folder = preprocessor.folder

    def damaged(name, change):
        preprocessor(case)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(change(content))
        return fault_of(folder, "x", 1, ("anatomy",))

    assert damaged("x.pkl", lambda b: b) is None
    assert damaged("x.pkl", lambda b: b[:20]) == "x.pkl cannot be read"
    assert damaged("x.b2nd", lambda b: b[: len(b) // 2]).startswith("x.b2nd cannot be read (")
    assert damaged("x_seg.b2nd", lambda b: b"").startswith("x_seg.b2nd cannot be read (")
    assert damaged("anatomy/x.b2nd", lambda b: b[:100]).startswith("anatomy/x.b2nd cannot be read (")
    preprocessor(case)
    assert fault_of(folder, "x", 2) == "x.b2nd has the shape (1, 20, 22, 24) and type float32"
    blosc2.asarray(np.full((1, 20, 22, 24), 255, np.uint8), urlpath=str(folder / "anatomy/x.b2nd"), mode="w")
    assert fault_of(folder, "x", 1, ("anatomy",)) == "anatomy/x.b2nd has values that were never written"
    blosc2.asarray(np.full((1, 20, 22, 24), np.nan, np.float32), urlpath=str(folder / "x.b2nd"), mode="w")
    assert fault_of(folder, "x", 1) == "x.b2nd has values that were never written"


def test_voxels_are_drawn_without_replacement_and_from_everywhere():
    mask = np.random.default_rng(0).random((9, 30, 31)) > 0.3
    mask[2] = False
    drawn = sample_voxels(mask, 1000, seed=3)
    assert drawn.shape == (1000, 3)
    assert len(np.unique(drawn, axis=0)) == 1000
    assert mask[tuple(drawn.T)].all()
    assert set(drawn[:, 0]) == {0, 1, 3, 4, 5, 6, 7, 8}
    assert np.array_equal(drawn, sample_voxels(mask, 1000, seed=3))
    assert not np.array_equal(drawn, sample_voxels(mask, 1000, seed=4))
    assert np.array_equal(sample_voxels(mask, 10**6, seed=0), np.argwhere(mask))
    assert sample_voxels(np.zeros_like(mask), 10, seed=0).shape == (0, 3)
