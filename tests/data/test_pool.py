from collections import Counter

import numpy as np
import pytest
from made_data import volume, write_case

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.pool import Case, CasePool, Source

MEMBERS = [
    *[Case(0, name, "first", CaseInfo()) for name in ("a", "b", "c")],
    Case(0, "d", "second", CaseInfo()),
    Case(1, "a", "third", CaseInfo()),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    for folder, names in (("one", "abcd"), ("two", "a")):
        for name in names:
            write_case(root / folder, name, volume(0, (8, 8, 8)))
    return [Source(f"Dataset00{i}_X", Cases(root / folder, 1)) for i, folder in enumerate(("one", "two"))]


def shares(sources, balance, of):
    pool, rng = CasePool(sources, MEMBERS, balance), np.random.default_rng(0)
    drawn = Counter(of(*pool.case(pool.draw(rng))) for _ in range(6000))
    return {key: count / 6000 for key, count in drawn.items()}


def test_every_case_is_drawn_as_often_as_any_other(sources):
    found = shares(sources, "cases", lambda cases, name: (cases.folder.name, name))
    assert len(found) == 5
    assert all(share == pytest.approx(0.2, abs=0.02) for share in found.values())


def test_every_dataset_is_drawn_as_often_as_any_other(sources):
    found = shares(sources, "datasets", lambda cases, name: (cases.folder.name, name))
    assert found["two", "a"] == pytest.approx(0.5, abs=0.02)
    assert all(found["one", name] == pytest.approx(0.125, abs=0.02) for name in "abcd")


def test_every_subject_is_drawn_as_often_as_any_other(sources):
    found = shares(sources, "subjects", lambda cases, name: (cases.folder.name, name))
    assert found["one", "d"] == pytest.approx(1 / 3, abs=0.02)
    assert found["two", "a"] == pytest.approx(1 / 3, abs=0.02)
    assert found["one", "b"] == pytest.approx(1 / 9, abs=0.02)


def test_cases_of_one_name_in_two_folders_are_told_apart(sources):
    pool = CasePool(sources, MEMBERS)
    assert len(pool) == 5
    drawn = {
        cases.folder.name
        for cases, name in (pool.case(pool.draw(np.random.default_rng(i))) for i in range(50))
        if name == "a"
    }
    assert drawn == {"one", "two"}


def test_a_channel_shows_what_the_collection_says_of_the_case_or_the_dataset_of_the_channel(tmp_path):
    for folder in ("one", "two"):
        write_case(tmp_path / folder, "a", volume(0, (8, 8, 8), channels=2))
    one, two = (Cases(tmp_path / folder, 2) for folder in ("one", "two"))
    sources = [Source("Dataset001_X", one, channel_names=("T2w", "CT")), Source("Dataset002_X", two)]
    said, unsaid = CaseInfo(modality="T1w"), CaseInfo()
    pool = CasePool(sources, [Case(0, "a", "x", unsaid), Case(0, "a", "x", said), Case(1, "a", "y", unsaid)])
    assert pool.modalities == ("CT", "T1w", "T2w", "unknown")
    assert pool.modality.tolist() == [[2, 0], [1, 1], [3, 3]]
