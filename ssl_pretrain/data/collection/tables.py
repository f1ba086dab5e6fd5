"""Tables of text, as others write them: encodings, lines that do not fit."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

Row = dict[str, str]
"""The cells of a row by column, without the empty ones."""


def read_rows(file: Path, delimiter: str, *, quoting: bool) -> tuple[list[str], list[tuple[int, Row]]]:
    """Names of the columns, and each row with the number of its line; rows longer than that are left out, and counted.

    Args:
        file: in UTF-8, with or without a byte order mark. Anything else is read as Latin-1, with a warning.
        delimiter: between cells.
        quoting: whether cells in quotation marks may hold delimiters and line breaks. Without, they are letters.

    Raises:
        ValueError: encoded in UTF-16, or no table; names the file.
        OSError: it cannot be read.
    """
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{file} is encoded in UTF-16. Save it again as UTF-8.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        logger.warning("%s is not UTF-8 and is read as Latin-1; save it as UTF-8 if letters come out wrong", file)
        text = raw.decode("latin-1")
    handle = io.StringIO(text, newline="")
    reader = csv.reader(handle, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
    rows: list[tuple[int, Row]] = []
    too_long: list[int] = []
    try:
        columns = next(reader, [])
        for cells in reader:
            if any(cell.strip() for cell in cells[len(columns) :]):
                too_long.append(reader.line_num)
            elif cells:
                named = zip(columns, cells, strict=False)
                rows.append((reader.line_num, {name: cell.strip() for name, cell in named if name and cell.strip()}))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num} cannot be read: {error}. Correct the line.") from error
    if too_long:
        logger.warning(
            "%s: %d rows have more cells than the table has columns, so that values would stand under wrong names; "
            "they are left out, e.g. line %d",
            file,
            len(too_long),
            too_long[0],
        )
    return columns, rows
