"""Statistics and tables of the decoder study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ssl_pretrain.report.tables import format_table

ARMS = ("scratch", "spark", "slim")

Row = Mapping[str, Any]


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval (t distribution).

    Attributes:
        mean: of ``ours - theirs``.
        low: lower end; NaN for fewer than two pairs.
        high: upper end.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; NaN for the error of fewer than two values."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Difference over the seeds that both have: seed -> value on either side."""
    from scipy.stats import t

    seeds = sorted(set(ours) & set(theirs))
    mean, error = mean_and_error([ours[seed] - theirs[seed] for seed in seeds])
    half = error * float(t.ppf(0.975, len(seeds) - 1)) if len(seeds) > 1 else math.nan
    return Difference(mean, mean - half, mean + half, len(seeds))


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
