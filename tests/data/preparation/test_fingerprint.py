"""What is measured of images without labels, and what becomes of those that cannot be read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from made_images import write_image
from made_plans import MADE, SHAPE, contents, empty_home, made_cases, plan
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from ssl_pretrain.data.phantoms import make_phantom
from ssl_pretrain.data.preparation.fingerprint import extract_fingerprint
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.planning import plan_unlabeled


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


@pytest.fixture
def cases(home, tmp_path):
    return made_cases(tmp_path / "images")


def test_intensities_are_of_what_is_above_the_lowest_value(tmp_path):
    voxels = np.full(SHAPE, -1024, dtype=np.float32)
    voxels[4:20, 8:24, 8:24] = np.random.default_rng(0).normal(50, 10, (16, 16, 16))
    case = ImageCase(identifier="a", images=(write_image(tmp_path / "a_0000.nii.gz", voxels),))
    found, _ = extract_fingerprint([case], SimpleITKIO(), 1, 0)
    statistics = found["foreground_intensity_properties_per_channel"]["0"]
    body = voxels[voxels > -1024]
    assert statistics["mean"] == pytest.approx(body.mean(), abs=0.05)
    assert statistics["std"] == pytest.approx(body.std(), abs=0.05)
    assert statistics["percentile_99_5"] == pytest.approx(np.percentile(body, 99.5), abs=0.2)
    assert (statistics["min"], statistics["max"]) == (body.min(), body.max())


@pytest.mark.parametrize("slices", [1, 7])
def test_a_thin_image_is_measured_like_any_other(tmp_path, slices):
    voxels = np.random.default_rng(0).normal(size=(slices, 32, 32)).astype(np.float32)
    case = ImageCase(identifier="a", images=(write_image(tmp_path / "a_0000.nii.gz", voxels, (1, 1, 10)),))
    found, failed = extract_fingerprint([case], SimpleITKIO(), 1, 0)
    assert (found["shapes_after_crop"], failed) == ([[slices, 32, 32]], {})


def test_padding_with_zeros_is_cropped(tmp_path):
    voxels = np.zeros(SHAPE, dtype=np.float32)
    voxels[4:20, 8:24, 8:24] = np.random.default_rng(0).uniform(1, 2, (16, 16, 16))
    case = ImageCase(identifier="a", images=(write_image(tmp_path / "a_0000.nii.gz", voxels),))
    found, _ = extract_fingerprint([case], SimpleITKIO(), 1, 0)
    assert found["shapes_after_crop"] == [[16, 16, 16]]
    assert found["median_relative_size_after_cropping"] == pytest.approx(16**3 / np.prod(SHAPE))


def test_the_fingerprint_does_not_depend_on_the_processes(cases):
    alone, _ = extract_fingerprint(cases, SimpleITKIO(), 1, 0)
    together, _ = extract_fingerprint(cases, SimpleITKIO(), 1, 2)
    assert alone == together


def test_a_channel_that_is_the_same_everywhere_has_that_value(tmp_path):
    files = (
        write_image(tmp_path / "a_0000.nii.gz", make_phantom(SHAPE, 0, 0)[0]),
        write_image(tmp_path / "a_0001.nii.gz", np.full(SHAPE, 7, dtype=np.float32)),
    )
    found, _ = extract_fingerprint([ImageCase(identifier="a", images=files)], SimpleITKIO(), 2, 0)
    assert found["foreground_intensity_properties_per_channel"]["1"]["mean"] == 7


def test_broken_images_are_left_out_and_reported(home, cases, tmp_path):
    broken = tmp_path / "images" / "broken_0000.nii.gz"
    broken.write_bytes(cases[0].images[0].read_bytes()[:300])
    planned = plan([ImageCase(identifier="broken", images=(broken,)), *cases])
    assert planned.images == 3
    assert json.loads((home.raw / home.dataset / "dataset.json").read_text())["numTraining"] == 3
    (entry,) = json.loads((home.folder / "failed.json").read_text())
    assert (entry["identifier"], entry["files"]) == ("broken", [str(broken)])
    assert "truncated or damaged" in entry["reason"]


def test_they_are_not_read_again_for_a_second_network_until_asked(home, cases, tmp_path):
    (tmp_path / "images" / "phantom_1_0000.nii.gz").write_text("no image")
    first = plan(cases)
    seen = []

    def watch(results, total):
        seen.append(total)
        return results

    second = plan_unlabeled(replace(MADE, network="ResEncM"), cases, ".nii.gz", watch)
    assert seen == []
    assert second.images == 2
    assert second.failures.entries == first.failures.entries == json.loads((home.folder / "failed.json").read_text())
    plan_unlabeled(replace(MADE, overwrite=True), cases, ".nii.gz", watch)
    assert seen == [3]


def test_repaired_images_are_planned_with_on_request(home, cases, tmp_path):
    (tmp_path / "images" / "phantom_1_0000.nii.gz").write_text("no image")
    assert plan(cases).images == 2
    made_cases(tmp_path / "images")
    with pytest.raises(ValueError, match=r"is of other images, or these have changed\. Give --overwrite"):
        plan(cases, plans="second")
    assert plan(cases, overwrite=True).images == 3
    assert not (home.folder / "failed.json").exists()


def test_no_image_that_can_be_used_is_an_error_with_the_first_reason(home, tmp_path):
    file = write_image(tmp_path / "same_0000.nii.gz", np.ones(SHAPE, dtype=np.float32))
    with pytest.raises(ValueError, match=r"None of the 1 images can be used. The first: .*same_0000.*there is nothing"):
        plan([ImageCase(identifier="same", images=(file,))])
    assert contents(home.raw) == contents(home.preprocessed) == {}


def test_a_2d_image_in_a_3d_format_is_refused(home, tmp_path):
    file = tmp_path / "flat_0000.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.eye(32, dtype=np.float32)), str(file))
    with pytest.raises(ValueError, match=r"None of the 1 images can be used. The first: .*flat_0000.nii.gz is 2-D"):
        plan([ImageCase(identifier="flat", images=(file,))])
