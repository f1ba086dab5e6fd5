"""``participants.tsv`` of BIDS: what is known about each subject."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ssl_pretrain.data.collection.tables import read_rows

logger = logging.getLogger(__name__)


def read_participants(file: Path) -> dict[str, dict[str, Any]]:
    """What ``participants.tsv`` says: name of the subject's folder -> column -> value; nothing without the file.

    Raises:
        ValueError: it has no column ``participant_id``, or is no table; names it.
    """
    if not file.is_file():
        return {}
    # A quotation mark is a letter in BIDS: read as one, it would swallow the rows up to the next.
    columns, rows = read_rows(file, "\t", quoting=False)
    if "participant_id" not in columns:
        raise ValueError(f"{file} has no column participant_id. Correct or remove it.")
    people: dict[str, dict[str, Any]] = {}
    again = []
    for line, row in rows:
        name = "sub-" + row.pop("participant_id", "").removeprefix("sub-")
        if name in people:
            again.append(f"{name} in line {line}")
        else:
            people[name] = {key: _value(cell) for key, cell in row.items() if cell != "n/a"}
    if again:
        logger.warning("%s: %d rows repeat a participant and are left out, e.g. %s", file, len(again), again[0])
    return people


def _value(cell: str) -> str | int | float:
    """Whole numbers and decimal numbers as such; a leading zero, as in a code, makes a text."""
    if re.fullmatch(r"-?(0|[1-9]\d*)", cell):
        return int(cell)
    return float(cell) if re.fullmatch(r"-?\d+\.\d+", cell) else cell
