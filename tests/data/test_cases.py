import os
import pickle

import numpy as np
import pytest
from made_data import volume, write_case, write_unlabelled

from ssl_pretrain.data.cases import CaseError, Cases

WHOLE = ((0, 0, 0), (20, 22, 24))


@pytest.mark.parametrize("fmt", ["b2nd", "npz"])
@pytest.mark.parametrize("labels", [True, False])
def test_reads_both_formats_with_and_without_labels(tmp_path, fmt, labels):
    if fmt == "npz" and not labels:
        np.savez_compressed(tmp_path / "a.npz", data=volume(0))
    else:
        write_case(tmp_path, "a", volume(0), fmt, labels)
    cases = Cases(tmp_path, 1)
    assert cases.identifiers == ["a"]
    assert cases.shape("a") == (20, 22, 24)
    np.testing.assert_array_equal(cases.read("a", WHOLE), volume(0))
    assert bool(cases.foreground("a")) == labels


def test_an_unpacked_npy_is_preferred(tmp_path):
    write_case(tmp_path, "a", volume(0), "npz")
    np.save(tmp_path / "a.npy", volume(1))
    np.testing.assert_array_equal(Cases(tmp_path, 1).read("a", WHOLE), volume(1))


def test_a_box_beyond_the_volume_is_padded_with_zeros(tmp_path):
    write_case(tmp_path, "a", volume(0))
    box = Cases(tmp_path, 1).read("a", ((-3, 5, 20), (25, 10, 30)))
    assert box.shape == (1, 28, 5, 10)
    np.testing.assert_array_equal(box[:, 3:23, :, :4], volume(0)[:, :, 5:10, 20:])
    assert not box[:, :3].any()
    assert not box[..., 4:].any()
    assert not Cases(tmp_path, 1).read("a", ((100, 0, 0), (104, 4, 4))).any()


def test_another_number_of_channels_names_file_and_remedy(tmp_path):
    write_case(tmp_path, "a", volume(0, channels=2))
    with pytest.raises(CaseError, match=r"a\.b2nd has 2 channels, the plans say 1.*nnUNetv2_plan_and_preprocess"):
        Cases(tmp_path, 1).shape("a")


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_a_truncated_file_names_itself_and_the_remedy(tmp_path, keep):
    write_case(tmp_path, "a", volume(0))
    file = tmp_path / "a.b2nd"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CaseError, match=r"a\.b2nd is truncated or corrupt.*Delete it and run nnUNetv2_preprocess"):
        Cases(tmp_path, 1).read("a", WHOLE)


def test_a_file_that_is_no_archive_names_itself(tmp_path):
    (tmp_path / "a.npz").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CaseError, match=r"a\.npz is truncated or corrupt"):
        Cases(tmp_path, 1).read("a", WHOLE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_voxel_names_the_file(tmp_path, bad):
    image = volume(0)
    image[0, 3, 3, 3] = bad
    write_case(tmp_path, "a", image)
    with pytest.raises(CaseError, match=r"a\.b2nd holds NaN or Inf"):
        Cases(tmp_path, 1).read("a", WHOLE)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "the whole file must be a dictionary, got list"),
        ({"class_locations": [1]}, "class_locations must be a dictionary, got list"),
        ({"class_locations": {1: 3.5}}, "class_locations must be rows of 3 or 4 whole numbers"),
        ({"class_locations": {1: np.ones((2, 4))}}, "class_locations must be rows of 3 or 4 whole numbers"),
        ({"class_locations": {1: [[1, 2], [3]]}}, "class_locations must be rows of 3 or 4 whole numbers"),
        ({"class_locations": Runs()}, r"is refused: opening it would run (posix|nt)\.mkdir, and what is kept with"),
        (b"\x80\x04.", r"is truncated or corrupt \("),
    ],
)
def test_what_is_kept_with_a_case_is_checked_and_runs_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path, "a", volume(0))
    file = tmp_path / "a.pkl"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(CaseError, match=rf"a\.pkl:? {message}") as refusal:
        Cases(tmp_path, 1).foreground("a")
    assert "Delete it and run nnUNetv2_preprocess for this configuration again." in str(refusal.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ([1], "ssl_pretrain must be a dictionary, got list"),
        ({"info": "T1w"}, r"ssl_pretrain\.info: Input should be a valid dictionary, got 'T1w'"),
        ({"info": {"quality": np.ones(2)}}, r"ssl_pretrain\.info\.quality"),
        ({"made_with": 3}, r"ssl_pretrain\.made_with: Input should be a valid string"),
    ],
)
def test_what_is_kept_with_an_unlabelled_case_is_checked(tmp_path, ours, message):
    folder = tmp_path / "made_unlabeled"
    write_unlabelled(folder, "a", volume(0), masks={"anatomy": np.ones((20, 22, 24))})
    cases = Cases(folder, 1, labelled=False)
    assert cases.anatomy("a").shape == (20 * 22 * 24, 3)
    (folder / "a.pkl").write_bytes(pickle.dumps({"ssl_pretrain": ours}))
    with pytest.raises(ValueError, match=rf"a\.pkl: {message}.*nnUNetv2_preprocess_unlabeled"):
        cases.index()
    (folder / "a.pkl").write_bytes(pickle.dumps({"ssl_pretrain": {"anatomy_voxels": np.ones((5, 2), int)}}))
    with pytest.raises(CaseError, match=r"a\.pkl: anatomy_voxels must be rows of 3 whole numbers"):
        cases.anatomy("a")


def test_a_case_that_went_missing_is_named(tmp_path):
    write_case(tmp_path, "a", volume(0))
    with pytest.raises(CaseError, match=r"Case 'b' has no image"):
        Cases(tmp_path, 1).shape("b")


def test_an_empty_folder_and_mixed_formats_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no preprocessed case"):
        Cases(tmp_path, 1)
    write_case(tmp_path, "a", volume(0))
    write_case(tmp_path, "b", volume(0), "npz")
    with pytest.raises(ValueError, match=r"mixes \.b2nd and \.npz"):
        Cases(tmp_path, 1)
