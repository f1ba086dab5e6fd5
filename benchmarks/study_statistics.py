"""Statistics and tables of the decoder study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssl_pretrain.report.tables import format_table
from ssl_pretrain.study.statistics import mean_and_error, paired_difference

ARMS = ("scratch", "spark", "slim")

Row = Mapping[str, Any]


def summarise(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The four tables as rows: curves, differences, organs at the end, pretraining."""
    rows = result["finetuning"]
    tables: dict[str, list[dict[str, Any]]] = {"curves": [], "differences": [], "organs": [], "pretraining": []}
    for dataset in _unique(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        steps = sorted({row["step"] for row in here})
        for step in steps:
            values = {arm: {row["seed"]: row["dice"] for row in _at(here, arm, step)} for arm in ARMS}
            tables["curves"] += [_curve(dataset, step, arm, values[arm]) for arm in ARMS if values[arm]]
            tables["differences"] += _differences({"dataset": dataset, "step": step}, values)
        organs = here[0]["organs"] if steps else {}
        for organ in organs:
            values = {arm: _organ(_at(here, arm, steps[-1]), organ) for arm in ARMS}
            means = {arm: mean_and_error(list(values[arm].values()))[0] for arm in ARMS}
            keys = {"dataset": dataset, "organ": organ, **means}
            tables["organs"] += [{**keys, **row} for row in _differences({}, values) if row["pair"] == "slim - spark"]
    for dataset, arms in result["pretraining"].items():
        tables["pretraining"] += [{"dataset": dataset, "arm": arm, **_timing(run)} for arm, run in arms.items()]
    return tables


def show(tables: Mapping[str, Sequence[Row]]) -> str:
    """Tables as text, one below the other."""
    return "\n\n".join(f"{name}\n{_text(rows)}" for name, rows in tables.items() if rows)


def _text(rows: Sequence[Row]) -> str:
    return format_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _at(rows: Sequence[Row], arm: str, step: int) -> list[Row]:
    return [row for row in rows if row["arm"] == arm and row["step"] == step]


def _organ(rows: Sequence[Row], organ: str) -> dict[int, float]:
    return {row["seed"]: row["organs"][organ] for row in rows if row["organs"][organ] is not None}


def _curve(dataset: str, step: int, arm: str, values: Mapping[int, float]) -> dict[str, Any]:
    mean, error = mean_and_error(list(values.values()))
    return {"dataset": dataset, "step": step, "arm": arm, "dice": mean, "standard_error": error, "seeds": len(values)}


def _differences(keys: Row, values: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    pairs = (("slim", "spark"), ("spark", "scratch"), ("slim", "scratch"))
    found = {pair: paired_difference(values[pair[0]], values[pair[1]]) for pair in pairs}
    return [
        {**keys, "pair": " - ".join(pair), "difference": d.mean, "low_95": d.low, "high_95": d.high, "seeds": d.pairs}
        for pair, d in found.items()
        if d.pairs
    ]


def _timing(run: Row) -> dict[str, Any]:
    names = ("steps", "step_seconds", "seconds", "train_loss", "val_loss")
    return {name: run[name][-1] if isinstance(run[name], list) else run[name] for name in names}
