import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_pretrain.functional import windows as module
from ssl_pretrain.functional.windows import covering, disjoint, hand_over, slabs, whole_window, without

PATCH = (7, 9, 11)
sides = st.tuples(*[st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in PATCH])
window = sides.map(lambda w: tuple(slice(a, b) for a, b in w)).filter(lambda w: all(s.start < s.stop for s in w))


def counted(windows):
    """How many windows each voxel is in."""
    volume = torch.zeros(PATCH, dtype=torch.int64)
    for box in windows:
        volume[box] += 1
    return volume


@given(windows=st.lists(window, max_size=5))
def test_disjoint_windows_hold_each_voxel_once(windows):
    assert torch.equal(counted(disjoint(windows)), (counted(windows) > 0).long())


@given(windows=st.lists(window, max_size=5))
def test_what_remains_without_windows_is_all_but_them(windows):
    assert torch.equal(counted(without(whole_window(PATCH), windows)), (counted(windows) == 0).long())


@given(windows=st.lists(window, max_size=5))
def test_covering_windows_do_not_overlap_and_leave_nothing_out(windows):
    parts = covering(windows)
    found = counted(parts)
    assert found.max() <= 1
    assert (found[counted(windows) > 0] == 1).all()
    assert len(parts) < max(1, 2 * len(windows))


def test_a_single_window_is_covered_by_itself():
    box = (slice(1, 3), slice(2, 5), slice(0, 4))
    assert covering([box]) == disjoint([box]) == [box]


def test_slabs_are_the_window_in_parts_of_few_voxels_on_the_cpu_only(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 40)
    box = (slice(1, 6), slice(2, 6), slice(0, 5))
    parts = list(slabs(box, torch.device("cpu")))
    assert torch.equal(counted(parts), counted([box]))
    assert [d.stop - d.start for d, _, _ in parts] == [2, 2, 1]
    assert list(slabs(box, torch.device("cuda"))) == [box]


def test_parameters_arrive():
    assert torch.equal(hand_over(torch.arange(3), torch.device("cpu")), torch.arange(3))
