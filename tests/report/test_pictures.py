"""Pictures: a reconstruction in masked cells, on planes that cut masked cells; or the columns that a method names."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from ssl_pretrain.report import pictures
from ssl_pretrain.report._figure import save_figure
from ssl_pretrain.report.pictures import choose_slices, draw_columns, draw_picture, draw_reconstruction

CELL = (4, 8, 8)
GRID = (4, 4, 4)


def a_crop(channels: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = np.zeros(GRID, dtype=bool)
    mask.reshape(-1)[rng.permutation(64)[:38]] = True
    image = rng.standard_normal((channels, 16, 32, 32)).astype(np.float32)
    visible = ~np.kron(mask, np.ones(CELL, dtype=bool))
    return {
        "image": image,
        "masked_input": image * visible,
        "reconstruction": 0.5 * image,
        "mask": mask,
        "cell": CELL,
        "title": "a crop",
    }


def rated(crop: dict[str, Any], hard_cells: int) -> dict[str, Any]:
    difficulty = np.where(crop["mask"], np.arange(64.0).reshape(GRID), np.nan)
    hard = np.zeros(GRID, dtype=bool)
    hard.reshape(-1)[np.flatnonzero(crop["mask"])[:hard_cells]] = True
    return crop | {"difficulty": difficulty, "hard": hard}


def draw(folder: Path, crop: dict[str, Any], name: str = "crop") -> np.ndarray:
    """Pixels ``(height, width, 4)`` of the picture."""
    target = folder / f"{name}.png"
    draw_reconstruction(target, **crop)
    return np.asarray(imread(target))


def columns_that_differ(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Leftmost and rightmost differing pixel as fractions of the width."""
    differing = np.flatnonzero((first != second).any(axis=(0, 2)))
    return differing[0] / first.shape[1], differing[-1] / first.shape[1]


def test_identical_input_gives_identical_pixels(tmp_path: Path) -> None:
    assert np.array_equal(draw(tmp_path, a_crop(), "one"), draw(tmp_path, a_crop(), "two"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_file_is_a_png_of_modest_size(tmp_path: Path) -> None:
    draw(tmp_path, rated(a_crop(2), 6))
    data = (tmp_path / "crop.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert 800 < width < 2000 and 500 < height < 2500
    assert len(data) < 1_000_000


def test_another_reconstruction_changes_reconstruction_and_error_only(tmp_path: Path) -> None:
    crop = a_crop()
    other = crop | {"reconstruction": 0.2 * crop["image"]}
    left, right = columns_that_differ(draw(tmp_path, crop), draw(tmp_path, other))
    # Four columns: the grey ones of the input end in the middle, the error begins at about 0.7.
    assert 0.45 < left < 0.55
    assert right > 0.75


def test_the_error_is_absolute_and_scaled_to_itself(tmp_path: Path) -> None:
    """Over- and underestimating look the same in the error column, which is why it can be told from the others."""
    crop = a_crop()
    above, below = (crop | {"reconstruction": crop["image"] + step} for step in (0.25, -0.25))
    _, right = columns_that_differ(draw(tmp_path, above), draw(tmp_path, below))
    assert right < 0.72


def test_predictions_in_visible_cells_are_not_shown(tmp_path: Path) -> None:
    crop = a_crop()
    masked = np.kron(crop["mask"], np.ones(CELL, dtype=bool))
    other = crop | {"reconstruction": np.where(masked, crop["reconstruction"], 99)}
    assert np.array_equal(draw(tmp_path, crop), draw(tmp_path, other))


def test_hard_cells_are_outlined_in_the_last_column(tmp_path: Path) -> None:
    crop = rated(a_crop(), 6)
    unmarked = draw(tmp_path, crop | {"hard": crop["hard"] & False})
    # The marked cell is the one that is cut anyway, so the planes stay.
    marked = np.zeros(GRID, dtype=bool)
    marked[tuple(voxel // size for voxel, size in zip(choose_slices(crop["mask"], CELL), CELL, strict=True))] = True
    left, _ = columns_that_differ(unmarked, draw(tmp_path, crop | {"hard": marked}))
    assert left > 0.7


def test_difficulty_adds_a_column_that_depends_on_it(tmp_path: Path) -> None:
    crop = a_crop()
    assert draw(tmp_path, rated(crop, 6)).shape[1] > draw(tmp_path, crop).shape[1]
    turned = rated(crop, 6)
    turned["difficulty"] = 63 - turned["difficulty"]
    left, _ = columns_that_differ(draw(tmp_path, rated(crop, 6)), draw(tmp_path, turned))
    assert left > 0.7


def test_the_slices_pass_through_the_masked_cell_nearest_to_the_centre() -> None:
    mask = np.zeros(GRID, dtype=bool)
    mask[3, 2, 1] = mask[0, 0, 0] = True
    assert choose_slices(mask, CELL) == (3 * 4 + 2, 2 * 8 + 4, 1 * 8 + 4)
    assert choose_slices(torch.from_numpy(mask), CELL) == choose_slices(mask, CELL)


def test_the_slices_prefer_a_hard_cell() -> None:
    mask = np.ones(GRID, dtype=bool)
    hard = np.zeros(GRID, dtype=bool)
    assert choose_slices(mask, CELL, hard) == choose_slices(mask, CELL)
    hard[0, 3, 0] = True
    assert choose_slices(mask, CELL, hard) == (2, 28, 4)


@pytest.mark.parametrize("seed", range(20))
def test_every_slice_passes_through_a_masked_cell(seed: int) -> None:
    mask = np.random.default_rng(seed).random((3, 5, 2)) < 0.1
    mask[seed % 3, seed % 5, seed % 2] = True
    slices = choose_slices(mask, (1, 4, 16))
    assert mask[tuple(voxel // size for voxel, size in zip(slices, (1, 4, 16), strict=True))]


@pytest.mark.parametrize("fill", [False, True])
def test_all_visible_and_all_masked_are_drawn(tmp_path: Path, fill: bool) -> None:
    assert draw(tmp_path, a_crop() | {"mask": np.full(GRID, fill)}).size


def test_constant_and_not_finite_values_are_drawn(tmp_path: Path) -> None:
    crop = rated(a_crop(), 0)
    constant = np.zeros_like(crop["image"])
    assert draw(tmp_path, crop | {"image": constant, "masked_input": constant, "reconstruction": constant}).size
    broken = crop | {"reconstruction": np.full_like(constant, np.nan), "difficulty": np.full(GRID, np.nan)}
    assert draw(tmp_path, broken).size


def test_tensors_are_drawn_like_arrays(tmp_path: Path) -> None:
    crop = rated(a_crop(), 6)
    tensors = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in crop.items()}
    tensors["reconstruction"].requires_grad_(True)
    assert np.array_equal(draw(tmp_path, crop), draw(tmp_path, tensors))


def test_thick_slices_make_the_picture_taller(tmp_path: Path) -> None:
    assert len(draw(tmp_path, a_crop() | {"spacing": (3.0, 1.0, 1.0)})) > len(draw(tmp_path, a_crop()))


def test_two_channels_are_drawn_and_no_more(tmp_path: Path) -> None:
    one, two, three = (draw(tmp_path, a_crop(channels)).shape for channels in (1, 2, 3))
    assert two[0] > 1.8 * one[0]
    assert three == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((16, 32, 32))}, r"image has shape \(16, 32, 32\).*\(C, D, H, W\)"),
        ({"reconstruction": np.zeros((1, 8, 32, 32))}, "reconstruction has shape .* must be equal"),
        ({"cell": (5, 8, 8)}, r"whole cells of \(5, 8, 8\)"),
        ({"mask": np.ones((4, 4, 2), dtype=bool)}, r"mask has shape \(4, 4, 2\).*grid of \(4, 4, 4\)"),
        ({"difficulty": np.ones((1, *GRID))}, "difficulty has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_reconstruction(tmp_path / "crop.png", **(a_crop() | change))
    assert not list(tmp_path.iterdir())


class Column(NamedTuple):
    heading: str
    kind: str
    values: np.ndarray
    classes: int = 0


def some_columns(channels: int = 1) -> tuple[Column, ...]:
    """An image, something made of it, how far off that is, and five classes; the error is large in one voxel."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((channels, 6, 8, 10))
    error = rng.random((channels, 6, 8, 10))
    error[:, 0, 0, 0] = 1000
    return (
        Column("seen", "image", image),
        Column("made", "image", 100 * image),
        Column("error", "error", error),
        Column("true", "classes", rng.integers(0, 5, (1, 6, 8, 10)), 5),
        Column("guessed", "classes", rng.integers(0, 5, (1, 6, 8, 10)), 5),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Figure]:
    """Draws columns, and returns the figure that was written."""
    figures: list[Figure] = []

    def keep(figure: Figure, target: Path, dpi: int) -> None:
        figures.append(figure)
        save_figure(figure, target, dpi)

    monkeypatch.setattr(pictures, "save_figure", keep)

    def draw(columns: Sequence[Column], **options: Any) -> Figure:
        draw_picture(tmp_path / "columns.png", {"columns": columns}, **{"title": "title", **options})
        assert (tmp_path / "columns.png").stat().st_size > 5000
        return figures[-1]

    return draw


def panels_of(figure: Figure, heading: str) -> list[Any]:
    """What is shown below a heading, from the first row of the first channel to the last of the last."""
    starts = [number for number, axes in enumerate(figure.axes) if axes.get_title() == heading]
    return [axes.images[0] for start in starts for axes in figure.axes[start : start + 3]]


def test_columns_have_their_headings_in_order_and_are_cut_through_the_centre(drawn: Callable[..., Figure]) -> None:
    columns = some_columns()
    figure = drawn(columns)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [column.heading for column in columns]
    assert [text.get_text() for text in figure.texts] == ["title"]
    for column in columns:
        shown = [np.asarray(panel.get_array()) for panel in panels_of(figure, column.heading)]
        volume = column.values[0]
        for plane, expected in zip(shown, (volume[3], volume[:, 4], volume[:, :, 5]), strict=True):
            np.testing.assert_allclose(plane, expected, rtol=1e-6)


def test_images_share_the_window_of_the_first_and_errors_begin_at_zero(drawn: Callable[..., Figure]) -> None:
    columns = some_columns()
    figure = drawn(columns)
    window = pytest.approx(tuple(np.percentile(columns[0].values, (0.5, 99.5))), rel=1e-5)
    for heading in ("seen", "made"):
        assert [panel.get_clim() for panel in panels_of(figure, heading)] == [window] * 3
    limits = [panel.get_clim() for panel in panels_of(figure, "error")]
    assert limits == [pytest.approx((0, np.percentile(columns[2].values, 99)), rel=1e-5)] * 3
    assert limits[0][1] < 2


@pytest.mark.parametrize("count", [2, 10, 11, 30])
def test_every_class_has_a_colour_of_its_own_and_a_place_in_the_legend(
    drawn: Callable[..., Figure], count: int
) -> None:
    values = np.arange(6 * 8 * 10).reshape(1, 6, 8, 10) % count
    figure = drawn([Column("label", "classes", values, count)])
    panel = panels_of(figure, "label")[0]
    colours = panel.cmap(panel.norm(np.arange(count)))
    assert len(np.unique(colours, axis=0)) == count
    assert np.ptp(colours[0][:3]) == 0, "class 0 is grey"
    assert all(np.ptp(colour[:3]) > 0.1 for colour in colours[1:])
    (bar,) = (axes for axes in figure.axes if not axes.get_title() and not axes.images)
    ticks = [int(tick) for tick in bar.get_yticks()]
    assert ticks[0] == 0 and ticks[-1] < count and len(ticks) <= 10
    assert count > 10 or ticks == list(range(count))


def test_neighbouring_columns_of_the_same_classes_share_a_legend(drawn: Callable[..., Figure]) -> None:
    *_, true, guessed = some_columns()
    assert len(drawn([true, guessed]).axes) == 3 + 3 + 1
    assert len(drawn([true, guessed._replace(classes=6)]).axes) == 3 + 3 + 2
    assert len(drawn([true, some_columns()[2], guessed]).axes) == 3 * 3 + 3


def test_a_column_of_one_channel_stands_beside_every_channel(drawn: Callable[..., Figure]) -> None:
    columns = some_columns(3)
    figure = drawn(columns)
    assert [text.get_text() for text in figure.texts] == ["title  (first 2 of 3 channels)"]
    true, seen = (
        [np.asarray(panel.get_array()) for panel in panels_of(figure, heading)] for heading in ("true", "seen")
    )
    assert len(true) == len(seen) == 6
    assert np.array_equal(true[0], true[3])
    np.testing.assert_allclose(seen[3], columns[0].values[1, 3], rtol=1e-6)


def test_values_that_are_not_finite_and_constant_images_are_drawn(drawn: Callable[..., Figure]) -> None:
    image, _, error, *_ = some_columns()
    figure = drawn([image._replace(values=0 * image.values), error._replace(values=np.nan * error.values)])
    shown = [np.ma.filled(panel.get_array(), np.nan) for panel in panels_of(figure, error.heading)]
    assert shown
    assert all(np.isnan(values).all() for values in shown)


def test_the_arrays_decide_which_picture_is_drawn(tmp_path: Path) -> None:
    crop = a_crop()
    title = crop.pop("title")
    draw_picture(tmp_path / "one.png", crop, title=title)
    draw_reconstruction(tmp_path / "two.png", **crop, title=title)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


IMAGE = Column("seen", "image", np.zeros((2, 4, 4, 4)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "has no columns: name at least one"),
        ([IMAGE._replace(kind="mask")], "seen: the kind of a column is image or error or classes, not 'mask'"),
        ([IMAGE._replace(values=np.zeros((4, 4, 4)))], r"seen has shape \(4, 4, 4\): one crop \(C, D, H, W\)"),
        ([IMAGE, IMAGE._replace(values=np.zeros((2, 4, 4, 5)))], r"\(2, 4, 4, 5\): all columns must have 2 channels"),
        ([IMAGE._replace(values=np.zeros((3, 4, 4, 4))), IMAGE], "must have 3 channels, or a single one, of"),
        ([Column("label", "classes", 7 * np.ones((1, 4, 4, 4)), 5)], "values from 7 to 7: a column of 5 classes holds"),
        ([Column("label", "classes", np.zeros((1, 4, 4, 4)))], "a column of 0 classes holds"),
    ],
)
def test_columns_that_cannot_be_drawn_are_refused(tmp_path: Path, columns: list[Column], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_columns(tmp_path / "crop.png", columns=columns, title="x")
    assert not list(tmp_path.iterdir())
