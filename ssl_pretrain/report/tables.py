"""Tables in plain text, for the console and log files."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, numbers to the right, everything else to the left.

    Args:
        headers: one per column.
        rows: cells are shown as ``str`` shows them, floats with four significant digits, ``None`` as a dash.

    Returns:
        Lines joined by newlines, without one at the end.

    Raises:
        ValueError: a row has another number of cells than there are headers.

    Example:
        >>> print(format_table(["start", "Dice"], [["pretrained", 0.5], ["scratch", None]]))
        start         Dice
        ----------  ------
        pretrained  0.5000
        scratch          -
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"Row {list(row)!r} has {len(row)} cells but the table has {len(headers)} columns.")
    table = [list(headers), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(headers))]
    to_right = [_all_numbers([row[column] for row in rows]) for column in range(len(headers))]
    lines = [_line(cells, widths, to_right) for cells in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:#.4g}" if isinstance(cell, float) else str(cell)


def _all_numbers(cells: Sequence[object]) -> bool:
    return bool(cells) and all(cell is None or isinstance(cell, (int, float)) for cell in cells)


def _line(cells: Sequence[str], widths: Sequence[int], to_right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, to_right, strict=True)
    )
    return "  ".join(padded).rstrip()
