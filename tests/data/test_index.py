import json
import pickle

import numpy as np
import pytest
from made_data import volume, write_case, write_unlabelled

from ssl_pretrain.data.cases import CaseError, Cases
from ssl_pretrain.data.index import index_file

INFO = {"subject": "s1", "modality": "T1w", "quality": 2.0}


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write_unlabelled(tmp_path / "cases", f"case_{i}", volume(i, (20, 22, 24 + i)), {**INFO, "subject": f"s{i}"})
    return tmp_path / "cases"


def opened(cases, monkeypatch):
    """Names of the cases that are opened for their size."""
    names, read = [], Cases._entry

    def noted(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Cases, "_entry", noted)
    cases.index()
    return names


def test_the_index_knows_shapes_and_what_preprocessing_kept(folder):
    index = Cases(folder, 1, labelled=False).index()
    assert index.identifiers == ["case_0", "case_1", "case_2"]
    assert index.shapes.tolist() == [[1, 20, 22, 24 + i] for i in range(3)]
    assert [about["info"]["subject"] for about in index.about] == ["s0", "s1", "s2"]
    assert index_file(folder).is_file()
    assert index_file(folder).parent == folder.parent, "nnU-Net wants nothing but cases in their folder"


def test_a_second_run_opens_no_case_and_finds_the_same(folder, monkeypatch):
    first = Cases(folder, 1, labelled=False).index()
    cases = Cases(folder, 1, labelled=False)
    assert opened(cases, monkeypatch) == []
    again = cases.index()
    assert again.about == first.about
    assert np.array_equal(again.shapes, first.shapes)
    assert cases.shape("case_1") == (20, 22, 25)


def test_only_what_is_new_or_changed_is_opened_again(folder, monkeypatch):
    Cases(folder, 1, labelled=False).index()
    write_unlabelled(folder, "case_1", volume(7, (20, 22, 30)), INFO)
    write_unlabelled(folder, "case_9", volume(9), INFO)
    (folder / "case_0.b2nd").unlink()
    cases = Cases(folder, 1, labelled=False)
    assert opened(cases, monkeypatch) == ["case_1", "case_9"]
    assert cases.index().shapes[:, 3].tolist() == [30, 26, 24]
    assert set(json.loads(index_file(folder).read_text())["cases"]) == {"case_1", "case_2", "case_9"}


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", '{"cases": 3}', '{"other": {}}', "[1]", '{"version": 1}', '{"version": 1, "cases": []}'),
        '{"version": 1, "cases": {"case_0": null, "case_1": [null, [1, 2, 3, 4], {}], "case_2": [[1, 2, 3], 7, {}]}}',
    ],
)
def test_a_broken_index_is_made_again(folder, content):
    index_file(folder).write_text(content)
    assert len(Cases(folder, 1, labelled=False).index().identifiers) == 3
    assert len(json.loads(index_file(folder).read_text())["cases"]) == 3


def test_an_index_that_cannot_be_kept_is_no_error(folder):
    index_file(folder).mkdir()
    assert len(Cases(folder, 1, labelled=False).index().identifiers) == 3


def test_a_case_that_shrank_while_a_run_was_reading_is_named(folder):
    cases = Cases(folder, 1, labelled=False)
    cases.index()
    write_unlabelled(folder, "case_1", volume(7, (8, 8, 8)))
    with pytest.raises(CaseError, match=r"case_1\.b2nd is \(1, 8, 8, 8\) voxels, expected \(1, 20, 22, 25\)"):
        cases.read("case_1", ((0, 0, 0), (8, 8, 8)))


def test_a_wrong_number_of_channels_is_found_before_training(folder):
    write_case(folder, "two", volume(0, channels=2))
    with pytest.raises(CaseError, match=r"two\.b2nd has 2 channels, the plans say 1"):
        Cases(folder, 1, labelled=False).index()
    with pytest.raises(CaseError, match=r"case_0\.b2nd has 1 channels, the plans say 2"):
        Cases(folder, 2, labelled=False).index()


def test_what_is_known_about_a_case_is_read_again_when_its_properties_change(folder):
    Cases(folder, 1, labelled=False).index()
    properties = pickle.loads((folder / "case_1.pkl").read_bytes())
    properties["ssl_pretrain"]["info"]["modality"] = "T2w"
    (folder / "case_1.pkl").write_bytes(pickle.dumps(properties))
    assert [about["info"]["modality"] for about in Cases(folder, 1, labelled=False).index().about] == [
        "T1w",
        "T2w",
        "T1w",
    ]


def test_one_bad_case_does_not_cost_the_work_on_the_others(folder, monkeypatch):
    (folder / "case_2.b2nd").write_bytes(b"nothing")
    with pytest.raises(CaseError, match=r"case_2\.b2nd is truncated or corrupt.*nnUNetv2_preprocess"):
        Cases(folder, 1, labelled=False).index()
    (folder / "case_2.b2nd").unlink()
    assert opened(Cases(folder, 1, labelled=False), monkeypatch) == []


def test_an_unpacked_copy_beside_a_compressed_case_is_not_taken_for_it(folder, monkeypatch):
    np.save(folder / "case_1.npy", volume(0))
    Cases(folder, 1, labelled=False).index()
    write_unlabelled(folder, "case_1", volume(7, (20, 22, 30)), INFO)
    assert opened(Cases(folder, 1, labelled=False), monkeypatch) == ["case_1"]
