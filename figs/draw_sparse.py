"""Draw how the ``blocks`` backend packs visible cells: ``sparse_blocks.png``, beside this script.

    python figs/draw_sparse.py

Nothing in the picture is made up: a real random mask, and :class:`Packing` moves the colours and the cell numbers. The
convolved picture is compared with a dense convolution times the mask before anything is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.masking import count_masked, random_mask, repeat_to
from ssl_pretrain.report._figure import new_figure, save_figure
from ssl_pretrain.sparse.block_conv import Geometry, block_conv, conv_geometry
from ssl_pretrain.sparse.packing import Packing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = Path(__file__).resolve().parent / "sparse_blocks.png"
DPI = 150
WIDTH, HEIGHT = 10.0, 5.0

GRID: Triple = (5, 1, 5)
CELL = 4
SHAPE: Triple = (20, 1, 20)
KERNEL: Triple = (3, 1, 3)
SEED = 5

# Ink on white paper: 0, which masked voxels hold, is white.
HUES = (
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    *((140, 86, 75), (227, 119, 194), (0, 105, 105), (188, 189, 34), (23, 190, 207)),
)
SIZE = 9.5
TIMES = "\N{MULTIPLICATION SIGN}"
DARK, PALE, MASKED, RED = "#222222", "#b8b8b8", "#f0f0f0", "#d00000"


class Example(NamedTuple):
    """What the panels show. A map has four channels: three inks, and the number of the cell a voxel belongs to.

    Attributes:
        volume: (1, 4, 20, 1, 20), 0 in masked cells.
        packed: (1, 4, 10·4, 1, 4).
        haloed: (10, 4, 6, 1, 6), one cell each.
        convolved: inks (1, 3, 20, 1, 20), the mean over 3×3 voxels of the packed map, put back.
    """

    volume: Tensor
    packed: Tensor
    haloed: Tensor
    convolved: Tensor


def compute() -> Example:
    """Mask, pack, gather halos, convolve and put back.

    Raises:
        AssertionError: packed cells and the dense convolution do not agree.
    """
    generator = torch.Generator().manual_seed(SEED)
    cells = GRID[0] * GRID[1] * GRID[2]
    masked = count_masked(cells, 0.6)
    seen = ~random_mask(1, GRID, masked, generator)
    packing = Packing(seen, cells - masked)
    volume = _picture(seen, generator)
    packed = packing.pack(volume)
    geometry = _geometry()
    mean = torch.eye(3).view(3, 3, 1, 1, 1).expand(3, 3, *KERNEL) / (KERNEL[0] * KERNEL[1] * KERNEL[2])
    convolved = packing.unpack(block_conv(packed[:, :3], mean, None, geometry, packing))
    dense = functional.conv3d(volume[:, :3], mean, None, geometry.stride, geometry.padding)
    torch.testing.assert_close(convolved, dense * repeat_to(seen, SHAPE).unsqueeze(1))
    torch.testing.assert_close(packing.unpack(packed), volume)
    return Example(volume, packed, packing.haloed(packed, geometry.low, geometry.high), convolved)


def _geometry() -> Geometry:
    geometry = conv_geometry(KERNEL, (1, 1, 1), (1, 0, 1))
    assert geometry is not None
    return geometry


def _picture(seen: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth image in a colour per visible cell, and the cells' numbers from 1: (1, 4, *SHAPE), 0 where masked."""
    coarse = torch.rand(1, 1, 7, 7, generator=generator)
    smooth = functional.interpolate(coarse, (SHAPE[0], SHAPE[2]), mode="bicubic", align_corners=True)
    smooth = ((smooth - smooth.min()) / (smooth.max() - smooth.min())).unsqueeze(3)
    number = repeat_to(seen.flatten().cumsum(0).view_as(seen) * seen, SHAPE).unsqueeze(1)
    hues = 1.0 - torch.tensor(((255, 255, 255), *HUES)) / 255.0
    inks = hues[number[:, 0]].movedim(-1, 1)
    return torch.cat([inks * (0.3 + 0.7 * smooth), number.float()], 1)


def draw(example: Example, target: Path) -> None:
    """Write the picture."""
    figure = new_figure(WIDTH, HEIGHT)
    _draw_masked(figure.add_axes(_box(0.1, 1.22, 3.2, 3.2)), example)
    _draw_packed(figure.add_axes(_box(3.7, 3.8, 6.2, 0.62)), example)
    _draw_haloed(figure.add_axes(_box(3.7, 0.12, 2.95, 2.95)), example)
    _draw_result(figure.add_axes(_box(6.95, 0.12, 2.95, 2.95)), example)
    _explain(figure.add_axes(_box(0.1, 0.12, 3.2, 0.92)), _featured(example))
    save_figure(figure, target, DPI)


def _box(left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Inches as fractions of the figure."""
    return left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT


def _draw_masked(axes: Axes, example: Example) -> None:
    number = example.volume[0, 3, :, 0]
    _show(axes, example.volume[0, :3, :, 0], number > 0)
    _name_cells(axes, number)
    left, bottom = _corner(number, _featured(example))
    _frame(axes, left, bottom, CELL)
    _frame(axes, left - 1, bottom - 1, CELL + 2, line=1.3, style="--")
    _title(axes, "1  Masked image", f"25 cells of 4{TIMES}4 voxels, 10 of them visible")


def _draw_packed(axes: Axes, example: Example) -> None:
    number = example.packed[0, 3, :, 0]
    _show(axes, example.packed[0, :3, :, 0], number > 0)
    _name_cells(axes, number)
    _frame(axes, *_corner(number, _featured(example)), CELL)
    _title(axes, "2  Packed map", "the visible cells, one after the other along the first axis: one ordinary tensor")


def _draw_haloed(axes: Axes, example: Example) -> None:
    cell = _featured(example)
    inks, number = example.haloed[cell - 1, :3, :, 0], example.haloed[cell - 1, 3, :, 0]
    _show(axes, inks, number > 0)
    for i, j in torch.cartesian_prod(torch.arange(number.shape[0]), torch.arange(number.shape[1])).tolist():
        inside = 0 < i <= CELL and 0 < j <= CELL
        _write(axes, i, j, "0" if number[i, j] == 0 else "" if inside else f"{int(number[i, j])}")
    _write(axes, 2.0, 2.0, str(cell), 1.8)
    _frame(axes, 0.5, 0.5, CELL)
    _frame(axes, CELL - 1.5, CELL - 1.5, KERNEL[0], RED, 2.0, ":")
    _title(axes, f"3  Cell {cell} with its halo", "numbers: the cell each voxel comes from")


def _draw_result(axes: Axes, example: Example) -> None:
    number = example.volume[0, 3, :, 0]
    _show(axes, example.convolved[0, :, :, 0], number > 0)
    _name_cells(axes, number)
    _title(axes, "4  Convolved and put back", f"3{TIMES}3 mean: equals dense result {TIMES} mask")


def _explain(axes: Axes, cell: int) -> None:
    """The key to the frames and the grey voxels."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, 3.2), ylim=(0.92, 0))
    axes.axis("off")
    line: dict[str, Any] = {"fill": False, "edgecolor": DARK, "linewidth": 2.2}
    rows: tuple[tuple[str, dict[str, Any]], ...] = (
        (f"cell {cell}", line),
        (f"halo of cell {cell}: one voxel wide", {**line, "linewidth": 1.3, "linestyle": "--"}),
        (f"one position of the 3{TIMES}3 kernel", {**line, "edgecolor": RED, "linewidth": 2.0, "linestyle": ":"}),
        ("masked: not stored, not computed, read as 0", {"facecolor": MASKED, "edgecolor": PALE}),
    )
    for i, (text, look) in enumerate(rows):
        axes.add_patch(Rectangle((0.02, 0.05 + 0.235 * i), 0.2, 0.14, **look))
        axes.text(0.33, 0.12 + 0.235 * i, text, va="center", fontsize=SIZE, color=DARK)


def _featured(example: Example) -> int:
    """The cell whose halo is the most varied: it comes from the most cells, and some of it is 0."""
    halos = [set(cell[3].flatten().int().tolist()) for cell in example.haloed]
    return 1 + max(range(len(halos)), key=lambda i: (len(halos[i]), 0 in halos[i]))


def _show(axes: Axes, inks: Tensor, present: Tensor) -> None:
    """Inks (3, across, up) on paper, hatched where nothing is; the first axis runs to the right."""
    from matplotlib.patches import Rectangle

    across, down = present.shape
    axes.imshow((1.0 - inks).clamp(0.0, 1.0).permute(2, 1, 0).numpy(), interpolation="nearest")
    for i, j in (~present).nonzero().tolist():
        axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=MASKED, edgecolor="none"))
    for i in range(1, across):
        axes.axvline(i - 0.5, color="white", linewidth=0.5)
    for j in range(1, down):
        axes.axhline(j - 0.5, color="white", linewidth=0.5)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(PALE)


def _name_cells(axes: Axes, number: Tensor) -> None:
    """Draw borders between cells and write each visible one's number."""
    across, down = number.shape
    for i in range(CELL, across, CELL):
        axes.axvline(i - 0.5, color=PALE, linewidth=0.9)
    for j in range(CELL, down, CELL):
        axes.axhline(j - 0.5, color=PALE, linewidth=0.9)
    for cell in range(1, int(number.max()) + 1):
        left, top = _corner(number, cell)
        _write(axes, left + CELL / 2, top + CELL / 2, str(cell), 1.15)


def _corner(number: Tensor, cell: int) -> tuple[float, float]:
    """Where a cell begins, in the axes' coordinates."""
    i, j = (number == cell).nonzero()[0].tolist()
    return i - 0.5, j - 0.5


def _write(axes: Axes, x: float, y: float, text: str, scale: float = 1.0) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=SIZE * scale, color=DARK, fontweight="bold")


def _frame(
    axes: Axes, left: float, top: float, size: float, colour: str = DARK, line: float = 2.2, style: str = "-"
) -> None:
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"edgecolor": colour, "linewidth": line, "linestyle": style}
    axes.add_patch(Rectangle((left, top), size, size, fill=False, clip_on=False, zorder=4, **look))


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.annotate(title, (0, 1), (0, 20), "axes fraction", "offset points", fontsize=SIZE + 2, fontweight="bold")
    axes.annotate(subtitle, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=SIZE, color="#444444")


def main() -> int:
    """Compute and draw; returns the exit status."""
    draw(compute(), TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
