import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ssl_pretrain.functional.geometry import (
    allowed_cells,
    as_triple,
    check_cell,
    check_patch,
    cumulative_strides,
    default_cell,
    grid_of,
    is_maskable,
)

ISO = [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]
OPENKBP = [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (16, 32, 32)]


def test_published_patch_gets_the_published_cell():
    assert default_cell((112, 112, 128), ISO) == (16, 16, 16)
    assert grid_of((112, 112, 128), (16, 16, 16)) == (7, 7, 8)


def test_hippocampus_gets_the_only_small_cell_that_fits():
    strides = ISO[:4]
    assert allowed_cells(40, [1, 2, 4, 8]) == [1, 2, 4, 8, 40]
    assert default_cell((40, 56, 40), strides) == (8, 8, 8)


def test_a_map_coarser_than_the_cell_does_not_forbid_it():
    assert default_cell((80, 128, 128), OPENKBP) == (16, 16, 16)
    assert not is_maskable((16, 32, 32), (16, 16, 16))
    assert is_maskable((16, 16, 16), (16, 16, 16))


def test_a_patch_of_one_cell_is_divided_further():
    assert default_cell((16, 16, 16), ISO[:4]) == (8, 8, 8)


@given(
    patch=st.tuples(*[st.sampled_from([16, 24, 32, 40, 48, 64, 96, 128])] * 3),
    steps=st.lists(st.tuples(*[st.sampled_from([1, 2])] * 3), min_size=1, max_size=5),
)
def test_the_default_cell_always_passes_the_check(patch, steps):
    strides = cumulative_strides([(1, 1, 1), *steps])
    assume(all(p % s == 0 for p, s in zip(patch, strides[-1], strict=True)))
    cell = default_cell(patch, strides)
    check_cell(cell, patch, strides)
    for stride in strides:
        if is_maskable(stride, cell):
            assert all(c % s == 0 for c, s in zip(cell, stride, strict=True))


def test_a_patch_that_does_not_divide_names_axis_and_alternatives():
    with pytest.raises(ValueError, match=r"along H\. Nearest patch sizes that work: \(40, 48, 40\) and \(40, 56, 40\)"):
        check_patch((40, 50, 40), (8, 8, 8))


def test_a_cell_that_does_not_fit_names_axis_and_alternatives():
    with pytest.raises(ValueError, match=r"along D, W.*Cells that work: D: 1, 2, 4, 8, 40; H: 1, 2, 4, 8, 56; W:"):
        check_cell((16, 8, 16), (40, 56, 40), ISO[:4])


def test_a_single_cell_is_refused():
    with pytest.raises(ValueError, match="at least two cells"):
        check_cell((32, 32, 32), (32, 32, 32), ISO)


@pytest.mark.parametrize("value", [(1, 2), (0, 1, 1), (1.5, 1, 1), ()])
def test_what_is_no_triple_is_refused_by_name(value):
    with pytest.raises(ValueError, match="mask_cell must be one or three positive whole numbers"):
        as_triple(value, "mask_cell")


def test_one_number_stands_for_three():
    assert as_triple(4, "x") == as_triple([4], "x") == (4, 4, 4)
