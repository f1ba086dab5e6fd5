"""Reading ``metrics.csv`` as runs leave it, and drawing it."""

import math
import struct
from pathlib import Path

import pytest

from ssl_pretrain.report.progress import COLUMNS, draw_progress, read_metrics
from ssl_pretrain.report.tables import format_table

HEADER = "epoch,train_loss,val_loss,lr,masked_fraction,images_per_second,epoch_seconds"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def a_run(path: Path, epochs: int, loss: float = 1.0) -> Path:
    rows = (f"{epoch},{loss / (epoch + 1)},{1.1 * loss / (epoch + 1)},1e-4,0.6,3.5,12.5" for epoch in range(epochs))
    return write(path, *rows)


def size_of_png(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_metrics_are_read_as_numbers_in_order_of_epochs(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "1,0.5,0.6,1e-4,0.6,3,10", "0,1.0,1.1,1e-5,0.6,2,11")
    metrics = read_metrics(file)
    assert tuple(metrics) == COLUMNS
    assert metrics["epoch"] == [0, 1]
    assert metrics["train_loss"] == [1.0, 0.5]
    assert metrics["epoch_seconds"] == [11, 10]


def test_missing_columns_and_cells_are_nan_and_others_ignored(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "0,0.5,,surplus", "1,inf,0.7,", "2,0.3", header="epoch,train_loss,val_loss,other")
    metrics = read_metrics(file)
    assert set(metrics) == set(COLUMNS)
    assert {len(values) for values in metrics.values()} == {3}
    assert metrics["train_loss"][::2] == [0.5, 0.3]
    assert math.isnan(metrics["train_loss"][1]) and math.isnan(metrics["val_loss"][0])
    assert all(math.isnan(value) for value in metrics["lr"])


def test_rows_of_one_epoch_are_merged_and_the_later_value_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "0,1.0,,,,,", "0,,2.0,,,,", "1,9,9,,,,", "1,0.5,,,,,")
    metrics = read_metrics(file)
    assert metrics["epoch"] == [0, 1]
    assert metrics["train_loss"] == [1.0, 0.5]
    assert metrics["val_loss"] == [2.0, 9.0]


def test_rows_without_epoch_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "1.0,10", "0.5,11", header="train_loss,epoch_seconds")
    assert read_metrics(file)["epoch"] == [0, 1]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv.*first epoch"):
        draw_progress(tmp_path / "nothing.csv", tmp_path / "progress.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [0, 1, 2, 1000])
def test_any_length_gives_a_picture_of_one_size(tmp_path: Path, epochs: int) -> None:
    target = tmp_path / "new" / "progress.png"
    draw_progress(a_run(tmp_path / "m.csv", epochs), target)
    assert size_of_png(target) == (900, 1050)
    assert 5_000 < target.stat().st_size < 400_000
    assert [path.name for path in target.parent.iterdir()] == ["progress.png"]


def test_an_empty_file_and_an_empty_column_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    draw_progress(tmp_path / "empty.csv", tmp_path / "empty.png")
    draw_progress(write(tmp_path / "m.csv", "0,1", "1,0.5", header="epoch,train_loss"), tmp_path / "train.png")
    assert size_of_png(tmp_path / "empty.png") == size_of_png(tmp_path / "train.png")


def test_the_picture_shows_the_metrics_and_nothing_else(tmp_path: Path) -> None:
    pictures = []
    for name, loss in (("a", 1.0), ("b", 1.0), ("c", 0.7)):
        draw_progress(a_run(tmp_path / f"{name}.csv", 5, loss), tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_a_redrawn_picture_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "progress.png"
    draw_progress(a_run(tmp_path / "m.csv", 2), target)
    before = target.read_bytes()
    draw_progress(a_run(tmp_path / "m.csv", 3), target)
    assert target.read_bytes() != before


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    draw_progress(a_run(tmp_path / "m.csv", 2), tmp_path / "progress.png")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)) == before
    assert not _pylab_helpers.Gcf.figs


def test_tables_are_aligned_and_wrong_rows_refused() -> None:
    lines = format_table(["start", "Dice"], [["pretrained", 0.5], ["scratch", None]]).splitlines()
    assert lines == ["start         Dice", "----------  ------", "pretrained  0.5000", "scratch          -"]
    assert format_table(["a"], []).splitlines() == ["a", "-"]
    with pytest.raises(ValueError, match="3 cells but the table has 2"):
        format_table(["a", "b"], [[1, 2, 3]])
