"""Pictures: columns of slices through a crop, which cut the cells that matter; crops beside their neighbours."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from ssl_pretrain.methods.base import Column
from ssl_pretrain.report import pictures
from ssl_pretrain.report._figure import save_figure
from ssl_pretrain.report.pictures import choose_slices, draw_neighbours, draw_picture

CELL = (4, 8, 8)
GRID = (4, 4, 4)
SHAPE = (16, 32, 32)


def per_voxel(cells: Tensor) -> Tensor:
    """(gd, gh, gw) -> (1, D, H, W)."""
    return cells.repeat_interleave(4, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)[None]


def some_cells(seed: int = 0, count: int = 38) -> Tensor:
    return (torch.randperm(64, generator=torch.Generator().manual_seed(seed)) < count).reshape(GRID)


def masked(channels: int = 1) -> tuple[Column, ...]:
    """What a method that masks shows: input, masked input, reconstruction and error."""
    mask = some_cells()
    hidden = per_voxel(mask)
    image = torch.randn(channels, *SHAPE, generator=torch.Generator().manual_seed(0))
    return (
        Column("input", "image", image),
        Column("masked input", "image", image * ~hidden, tinted=mask),
        Column("reconstruction", "image", torch.where(hidden, 0.5 * image, image), dimmed=~mask),
        Column("absolute error", "error", torch.where(hidden, 0.5 * image.abs(), torch.nan)),
    )


def rated(channels: int = 1) -> tuple[Column, ...]:
    """The same with a rating of the masked cells, six of which are outlined."""
    columns = masked(channels)
    mask = columns[1].tinted
    assert mask is not None
    rating = torch.where(mask, torch.arange(64.0).reshape(GRID), torch.nan)
    hard = mask & (mask.flatten().cumsum(0).reshape(GRID) <= 6)
    return (*columns, Column("difficulty", "rating", per_voxel(rating), outlined=hard))


def own(channels: int = 1) -> tuple[Column, ...]:
    """An image, something made of it, how far off that is, and five classes; the error is large in one voxel."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(channels, 6, 8, 10, generator=rng)
    error = torch.rand(channels, 6, 8, 10, generator=rng)
    error[:, 0, 0, 0] = 1000
    return (
        Column("seen", "image", image),
        Column("made", "image", 100 * image),
        Column("error", "error", error),
        Column("true", "classes", torch.randint(5, (1, 6, 8, 10), generator=rng), 5),
        Column("guessed", "classes", torch.randint(5, (1, 6, 8, 10), generator=rng), 5),
    )


def pixels(folder: Path, columns: Sequence[Column], name: str = "crop", **options: Any) -> np.ndarray:
    """Pixels ``(height, width, 4)`` of the picture."""
    target = folder / f"{name}.png"
    draw_picture(target, columns, **{"title": "a crop", **options})
    return np.asarray(imread(target))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, in the order in which they were."""
    kept: list[Figure] = []

    def keep(figure: Figure, target: Path, dpi: int) -> None:
        kept.append(figure)
        save_figure(figure, target, dpi)

    monkeypatch.setattr(pictures, "save_figure", keep)
    return kept


@pytest.fixture
def drawn(figures: list[Figure], tmp_path: Path) -> Callable[[Sequence[Column]], Figure]:
    """Draws columns, and returns the figure that was written."""

    def draw(columns: Sequence[Column]) -> Figure:
        draw_picture(tmp_path / "columns.png", columns, title="title")
        assert (tmp_path / "columns.png").stat().st_size > 5000
        return figures[-1]

    return draw


def axes_of(figure: Figure, heading: str) -> list[Any]:
    """The axes below a heading, from the first row of the first channel to the last of the last."""
    starts = [number for number, axes in enumerate(figure.axes) if axes.get_title() == heading]
    return [axes for start in starts for axes in figure.axes[start : start + 3]]


def slices_of(figure: Figure, heading: str, layer: int = 0) -> list[np.ndarray]:
    """What is shown below a heading, NaN where there is nothing."""
    return [np.ma.filled(axes.images[layer].get_array(), np.nan) for axes in axes_of(figure, heading)]


def test_identical_input_gives_identical_pixels(tmp_path: Path) -> None:
    assert np.array_equal(pixels(tmp_path, rated(), "one"), pixels(tmp_path, rated(), "two"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_file_is_a_png_of_modest_size(tmp_path: Path) -> None:
    pixels(tmp_path, rated(2))
    data = (tmp_path / "crop.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert 800 < width < 2000 and 500 < height < 2500
    assert len(data) < 1_000_000


@pytest.mark.parametrize("number", range(5))
def test_a_column_changes_its_own_place_alone(tmp_path: Path, number: int) -> None:
    columns = list(rated())
    before = pixels(tmp_path, columns)
    values = columns[number].values.clone()
    # The extreme values stay what they were, and with them the window and the colour bars.
    low, high = values[values.isfinite()].quantile(torch.tensor([0.2, 0.8]))
    values[(values > low) & (values < high)] = low
    columns[number] = columns[number]._replace(values=values)
    differing = np.flatnonzero((before != pixels(tmp_path, columns)).any(axis=(0, 2))) / before.shape[1]
    # The first image lies below the rating, too.
    edges = (0.0, 0.2, 0.38, 0.553, 0.77, 1.0)
    assert edges[number] < differing[0] < edges[number + 1]
    assert number == 0 or differing[-1] < edges[number + 1]


def test_columns_have_their_headings_in_order_and_are_cut_through_the_centre(drawn: Callable[..., Figure]) -> None:
    columns = own()
    figure = drawn(columns)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [column.heading for column in columns]
    assert [text.get_text() for text in figure.texts] == ["title"]
    for column in columns:
        volume = column.values[0].numpy()
        expected = (volume[3], volume[:, 4], volume[:, :, 5])
        for plane, slice_ in zip(slices_of(figure, column.heading), expected, strict=True):
            np.testing.assert_array_equal(plane, slice_)


@pytest.mark.parametrize("columns", [own(2), rated(2)], ids=["own", "rated"])
def test_images_share_the_window_of_the_first_and_errors_begin_at_zero(
    drawn: Callable[..., Figure], columns: tuple[Column, ...]
) -> None:
    figure = drawn(columns)
    for column in columns:
        limits = [axes.images[0].get_clim() for axes in axes_of(figure, column.heading)]
        for channel in (0, 1):
            low, high = np.percentile(columns[0].values[channel], (0.5, 99.5))
            if column.kind == "error":
                low, high = 0, np.nanpercentile(column.values[channel], 99)
                assert high < 2
            if column.kind in ("image", "error"):
                assert limits[3 * channel : 3 * channel + 3] == [pytest.approx((low, high), rel=1e-5)] * 3


def test_nothing_is_shown_where_an_error_is_nan(drawn: Callable[..., Figure]) -> None:
    columns = masked()
    figure = drawn(columns)
    depth, height, width = choose_slices(SHAPE, [some_cells().numpy()])
    volume = columns[3].values[0].numpy()
    for plane, expected in zip(
        slices_of(figure, "absolute error"), (volume[depth], volume[:, height], volume[:, :, width]), strict=True
    ):
        np.testing.assert_array_equal(plane, expected)
        assert np.isnan(plane).any() and not np.isnan(plane).all()


@pytest.mark.parametrize(
    ("heading", "colour", "opacity"), [("masked input", "#3f6ea8", 0.65), ("reconstruction", "black", 0.5)]
)
def test_tinted_cells_are_veiled_and_dimmed_ones_darker(
    drawn: Callable[..., Figure], heading: str, colour: str, opacity: float
) -> None:
    column = next(column for column in masked() if column.heading == heading)
    cells = column.tinted if column.dimmed is None else column.dimmed
    assert cells is not None
    depth, height, width = choose_slices(SHAPE, [some_cells().numpy()])
    volume = per_voxel(cells)[0].numpy()
    planes = (volume[depth], volume[:, height], volume[:, :, width])
    for veil, expected in zip(slices_of(drawn(masked()), heading, layer=1), planes, strict=True):
        np.testing.assert_allclose(veil[..., 3], opacity * expected)
        np.testing.assert_allclose(veil[expected][:, :3], [to_rgb(colour)] * expected.sum())


def test_a_rating_lies_over_the_first_image_whose_black_is_shown_as_mid_grey(drawn: Callable[..., Figure]) -> None:
    columns = rated(2)
    figure = drawn(columns)
    low, high = np.percentile(columns[0].values[1], (0.5, 99.5))
    for axes, image in zip(axes_of(figure, "difficulty")[3:], slices_of(figure, "input")[3:], strict=True):
        below, above = axes.images
        np.testing.assert_array_equal(below.get_array(), image)
        assert below.get_clim() == pytest.approx((2 * low - high, high), rel=1e-5)
        rating = columns[4].values[columns[4].values.isfinite()]
        assert above.get_clim() == (rating.min(), rating.max())
        assert above.get_alpha() == 0.65
    alone = drawn(columns[4:])
    assert [len(axes.images) for axes in axes_of(alone, "difficulty")] == [1, 1, 1]


def test_lines_go_around_the_outlined_cells(drawn: Callable[..., Figure]) -> None:
    """Two neighbours and one apart: the line between the two is missing."""
    hard = torch.zeros(GRID, dtype=torch.bool)
    hard[1, 1, 1] = hard[1, 1, 2] = hard[1, 3, 0] = True
    columns = rated()
    figure = drawn([*columns[:4], columns[4]._replace(outlined=hard)])
    axial = axes_of(figure, "difficulty")[0]
    assert [len(axes.collections) for axes in figure.axes if axes.images].count(1) == 3
    lines = {tuple(map(tuple, line)) for line in axial.collections[0].get_segments()}

    def around(x: float, y: float, width: float) -> set[Any]:
        """Sides, 8 voxels each, of a cell or a row of cells that begins at (x, y)."""
        across = [((left, row), (left + 8, row)) for left in np.arange(x, x + width, 8) for row in (y, y + 8)]
        return {*across, ((x, y), (x, y + 8)), ((x + width, y), (x + width, y + 8))}

    assert lines == around(7.5, 7.5, 16) | around(-0.5, 23.5, 8)


@pytest.mark.parametrize("count", [2, 10, 11, 30])
def test_every_class_has_a_colour_of_its_own_and_a_place_in_the_legend(
    drawn: Callable[..., Figure], count: int
) -> None:
    values = torch.arange(6 * 8 * 10).reshape(1, 6, 8, 10) % count
    figure = drawn([Column("label", "classes", values, count)])
    panel = axes_of(figure, "label")[0].images[0]
    colours = panel.cmap(panel.norm(np.arange(count)))
    assert len(np.unique(colours, axis=0)) == count
    assert np.ptp(colours[0][:3]) == 0, "class 0 is grey"
    assert all(np.ptp(colour[:3]) > 0.1 for colour in colours[1:])
    (bar,) = (axes for axes in figure.axes if not axes.get_title() and not axes.images)
    ticks = [int(tick) for tick in bar.get_yticks()]
    assert ticks[0] == 0 and ticks[-1] < count and len(ticks) <= 10
    assert count > 10 or ticks == list(range(count))


def test_neighbouring_columns_of_the_same_classes_share_a_legend(drawn: Callable[..., Figure]) -> None:
    *_, error, true, guessed = own()
    assert len(drawn([true, guessed]).axes) == 3 + 3 + 1
    assert len(drawn([true, guessed._replace(classes=6)]).axes) == 3 + 3 + 2
    assert len(drawn([true, error, guessed]).axes) == 3 * 3 + 3
    assert len(drawn([error, error]).axes) == 3 + 3 + 2


def test_a_column_of_one_channel_stands_beside_every_channel(drawn: Callable[..., Figure]) -> None:
    columns = own(3)
    figure = drawn(columns)
    assert [text.get_text() for text in figure.texts] == ["title  (first 2 of 3 channels)"]
    true, seen = slices_of(figure, "true"), slices_of(figure, "seen")
    assert len(true) == len(seen) == 6
    assert np.array_equal(true[0], true[3])
    np.testing.assert_array_equal(seen[3], columns[0].values[1, 3])


def test_the_slices_pass_through_the_cell_nearest_to_the_centre() -> None:
    cells = np.zeros(GRID, dtype=bool)
    assert choose_slices(SHAPE) == choose_slices(SHAPE, [cells]) == (8, 16, 16)
    assert choose_slices((5, 7, 9)) == (2, 3, 4)
    cells[3, 2, 1] = cells[0, 0, 0] = True
    assert choose_slices(SHAPE, [cells]) == (3 * 4 + 2, 2 * 8 + 4, 1 * 8 + 4)


@pytest.mark.parametrize("seed", range(20))
def test_every_slice_passes_through_a_wanted_cell(seed: int) -> None:
    cells = np.random.default_rng(seed).random((3, 5, 2)) < 0.1
    cells[seed % 3, seed % 5, seed % 2] = True
    slices = choose_slices((3, 20, 32), [cells])
    assert cells[tuple(voxel // size for voxel, size in zip(slices, (1, 4, 16), strict=True))]


def test_outlined_cells_are_cut_before_tinted_ones(drawn: Callable[..., Figure]) -> None:
    *columns, difficulty = rated()
    hard = torch.zeros(GRID, dtype=torch.bool)
    hard[0, 3, 0] = True
    for outlined, wanted in ((torch.zeros_like(hard), some_cells()), (hard, hard)):
        figure = drawn([*columns, difficulty._replace(outlined=outlined)])
        beside = [int(axes.get_ylabel().split(" = ")[1]) for axes in axes_of(figure, "input")]
        assert beside == list(choose_slices(SHAPE, [wanted.numpy()]))


@pytest.mark.parametrize("fill", [False, True])
def test_all_visible_and_all_masked_are_drawn(drawn: Callable[..., Figure], fill: bool) -> None:
    everywhere = torch.full(GRID, fill)
    image, seen, made, error = masked()
    drawn([image, seen._replace(tinted=everywhere), made._replace(dimmed=~everywhere), error])


def test_values_that_are_not_finite_and_constant_images_are_drawn(drawn: Callable[..., Figure]) -> None:
    constant, *others = rated()
    figure = drawn(
        [constant._replace(values=0 * constant.values)]
        + [other._replace(values=torch.full_like(other.values, torch.nan)) for other in others]
    )
    for other in others:
        layer = 1 if other.kind == "rating" else 0
        assert all(np.isnan(plane).all() for plane in slices_of(figure, other.heading, layer))


def test_tensors_of_a_graph_and_of_other_types_are_drawn(tmp_path: Path) -> None:
    columns = rated()
    doubles = [column._replace(values=column.values.double().requires_grad_()) for column in columns]
    assert np.array_equal(pixels(tmp_path, columns), pixels(tmp_path, doubles))
    halves = [column._replace(values=column.values.bfloat16()) for column in columns]
    assert pixels(tmp_path, halves).size


def test_thick_slices_make_the_picture_taller(tmp_path: Path) -> None:
    assert len(pixels(tmp_path, masked(), spacing=(3.0, 1.0, 1.0))) > len(pixels(tmp_path, masked()))


def test_two_channels_are_drawn_and_no_more(tmp_path: Path) -> None:
    one, two, three = (pixels(tmp_path, masked(channels)).shape for channels in (1, 2, 3))
    assert two[0] > 1.8 * one[0]
    assert three == two


IMAGE = Column("seen", "image", torch.zeros(2, 4, 4, 4))
LABEL = Column("label", "classes", torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "has no columns: name at least one"),
        ([IMAGE._replace(kind="mask")], "seen: the kind of a column is image or error or .* or rating, not 'mask'"),
        ([IMAGE._replace(values=torch.zeros(4, 4, 4))], r"seen has shape \(4, 4, 4\): one crop \(C, D, H, W\)"),
        ([IMAGE, IMAGE._replace(values=torch.zeros(2, 4, 4, 5))], r"\(2, 4, 4, 5\): all columns must have 2 channels"),
        ([IMAGE._replace(values=torch.zeros(3, 4, 4, 4)), IMAGE], "must have 3 channels, or a single one, of"),
        ([LABEL._replace(values=LABEL.values + 7, classes=5)], "values from 7 to 7: a column of 5 classes holds"),
        ([LABEL], "a column of 0 classes holds"),
        ([IMAGE._replace(tinted=torch.ones(2, 3, 2))], r"seen: tinted has shape \(2, 3, 2\).* \(4, 4, 4\) voxels"),
        ([IMAGE._replace(dimmed=torch.ones(1, 2, 2, 2))], r"dimmed has shape \(1, 2, 2, 2\).*not made of whole cells"),
        ([IMAGE._replace(outlined=torch.ones(8, 8, 8))], r"outlined has shape \(8, 8, 8\)"),
    ],
)
def test_columns_that_cannot_be_drawn_are_refused(tmp_path: Path, columns: list[Column], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_picture(tmp_path / "crop.png", columns, title="x")
    assert not list(tmp_path.iterdir())


def test_neighbours_stand_at_the_right_of_their_query(tmp_path: Path, figures: list[Figure]) -> None:
    crops = [scale * torch.randn(2, 5, 8, 10, requires_grad=True) for scale in (1, 10, 100, 0)]
    rows = [[("a", crops[0]), ("near a", crops[1]), ("far", crops[2])], [("b", crops[3]), ("near b", crops[0])]]
    draw_neighbours(tmp_path / "near.png", rows, title="title", spacing=(1.0, 2.0, 1.0))
    (figure,) = figures
    assert [text.get_text() for text in figure.texts] == ["title  (first of 2 channels)"]
    assert [axes.get_title() for axes in figure.axes] == ["a", "near a", "far", "b", "near b"]
    for axes, (_, crop) in zip(figure.axes, [pair for row in rows for pair in row], strict=True):
        shown = crop[0].detach().numpy()
        np.testing.assert_array_equal(axes.images[0].get_array(), shown[2])
        low, high = np.percentile(shown, (0.5, 99.5))
        assert axes.images[0].get_clim() == pytest.approx((low, high if high > low else low + 1), rel=1e-5)
        assert axes.get_aspect() == 2
    lefts, bottoms = np.array([axes.get_position().p0 for axes in figure.axes]).T
    np.testing.assert_allclose(lefts[3:], lefts[:2])
    assert lefts[0] < lefts[1] < lefts[2]
    assert bottoms[0] == bottoms[1] == bottoms[2] > bottoms[3] == bottoms[4]


@pytest.mark.parametrize("shapes", [[], [(1, 4, 4, 4), (1, 4, 4, 5)], [(4, 4, 4)]])
def test_crops_that_cannot_stand_side_by_side_are_refused(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"The crops have shapes .*: all must have the same, \(C, D, H, W\)"):
        draw_neighbours(tmp_path / "near.png", [[("x", torch.zeros(shape)) for shape in shapes]], title="x")
    assert not list(tmp_path.iterdir())
