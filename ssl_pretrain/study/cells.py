"""Cells of the tables of a study, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Sequence[object]]


def comparison_cells(row: Mapping[str, Any]) -> list[object]:
    """Pairs, difference, both intervals and how often better, of what ``results.compare`` says."""
    intervals = [ends(row["low"], row["high"]), ends(row["t_low"], row["t_high"])]
    return [row["pairs"], signed(row["difference"]), *intervals, f"{row['better']} of {row['pairs']}"]


def amount(row: Mapping[str, Any]) -> str:
    """An amount of training data, of any row that has ``size`` and ``cases``."""
    return " ".join(size_lines(str(row["size"]), row["cases"]))


def size_lines(label: str, cases: float) -> list[str]:
    """Label of an amount of training data, and what it is in cases where that says more."""
    count = f"{cases:g} case{'' if cases == 1 else 's'}"
    return [label] if label == count else [label, f"({count})"]


def dice(value: float | None) -> str:
    """Dice, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference of Dice, or a dash."""
    return "-" if value is None else f"{value:+.4f}"


def number(value: float | str | None, form: str) -> str:
    """A number as ``form`` says, a word as it is, or a dash."""
    return "-" if value is None else value if isinstance(value, str) else format(value, form)


def ends(low: Any, high: Any, shown: Callable[[Any], str] = signed) -> str:
    """An interval, or a dash."""
    return "-" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def markdown_table(headers: Sequence[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
