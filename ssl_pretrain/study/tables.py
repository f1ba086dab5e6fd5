"""A study in words and numbers: tables for the console and as Markdown, and ``study.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_pretrain.report.tables import format_table
from ssl_pretrain.study.results import Analysis, Outcome
from ssl_pretrain.study.statistics import FOUND_NOTHING, RESAMPLES, USUALLY_FOUND
from ssl_pretrain.study.study import Study

SUMMARY = ("training data", "arm", "runs", "mean", "median", "SD", "lowest", "highest", "collapsed", "failed")
DIFFERENCES = (
    *("training data", "pretrained - scratch", "pairs", "difference", "95 % bootstrap", "95 % t", "better"),
    "without collapsed pairs",
)
LABELS = ("training data", "label", "arm", "Dice", "scratch", "difference", "95 % bootstrap")

Rows = Sequence[Sequence[object]]


def console(analysis: Analysis) -> str:
    """The two main tables as plain text."""
    parts = [format_table(SUMMARY, summary_rows(analysis)), format_table(DIFFERENCES, difference_rows(analysis))]
    return "\n\n".join(parts)


def markdown(study: Study, analysis: Analysis) -> str:
    """The page ``study.md``: what was run, the tables, the figure, how to read it."""
    done = sum(o.status == "done" for o in analysis.outcomes)
    parts = [
        f"# {study.dataset}, {study.settings.configuration}: pretrained against scratch",
        f"{done} of {len(analysis.outcomes)} runs. {_what(study, analysis)}",
        markdown_table(("arm", "weights", "method", "loaded", "plans", "trainer", "compared with"), _arm_rows(study)),
        *(f"**{warning}**" for warning in study.warnings),
        "## Dice",
        markdown_table(SUMMARY, summary_rows(analysis)),
        "## Pretrained - scratch",
        markdown_table(DIFFERENCES, difference_rows(analysis)),
        explanation(study),
        "![Dice of every run against the training cases](study.png)",
        "## Labels",
        markdown_table(LABELS, _label_rows(analysis)),
    ]
    if failed := [o for o in analysis.outcomes if o.status == "failed"]:
        parts += ["## Failed runs", *(_failure(o) for o in failed)]
    return "\n\n".join(parts) + "\n"


def explanation(study: Study) -> str:
    """What the numbers mean, in a paragraph."""
    share = study.settings.collapsed_below
    return (
        "Dice is nnU-Net's: of each label the mean over the validation cases, then the mean over labels. A pair is a "
        "run from pretrained weights and the one from scratch with the same fold, seed and training cases. The "
        f"bootstrap interval ({RESAMPLES} draws) resamples pairs and validation cases at once; the t interval is over "
        "pairs alone and the more careful one where pairs are few. *better* counts the pairs in which the pretrained "
        f"run wins. A run has collapsed if its Dice is below {share:g} of the best run's with as much data or below "
        f"{FOUND_NOTHING:g}, or if it lost a label (Dice below {FOUND_NOTHING:g} where the median run has more than "
        f"{USUALLY_FOUND:g}). Intervals are not corrected for the number of comparisons."
    )


def to_json(study: Study, analysis: Analysis) -> dict[str, Any]:
    """Everything, for ``study.json``."""
    return {
        **study.to_dict(),
        "runs": [_run_entry(o, o.run.name in analysis.collapsed) for o in analysis.outcomes],
        "summary": analysis.summary,
        "differences": analysis.differences,
        "labels": analysis.labels,
        "notes": explanation(study),
    }


def _run_entry(outcome: Outcome, collapsed: bool) -> dict[str, Any]:
    run = outcome.run
    entry = {"name": run.name, "arm": run.arm, "fold": run.fold, "seed": run.seed, "cases": run.cases}
    return {**entry, "status": outcome.status, "collapsed": collapsed, **outcome.content}


def summary_rows(analysis: Analysis) -> Rows:
    """Cells of :data:`SUMMARY`."""
    names = ("mean", "median", "sd", "lowest", "highest")
    return [
        [_size(r), r["arm"], r["runs"], *(_dice(r[name]) for name in names), r["collapsed"], r["failed"]]
        for r in analysis.summary
    ]


def difference_rows(analysis: Analysis) -> Rows:
    """Cells of :data:`DIFFERENCES`."""
    return [
        [
            *(_size(r), f"{r['arm']} - {r['baseline']}", *comparison_cells(r)),
            f"{_signed(r['difference_without_collapsed'])} ({r['pairs_without_collapsed']})",
        ]
        for r in analysis.differences
    ]


def comparison_cells(row: Mapping[str, Any]) -> list[object]:
    """Pairs, difference, both intervals and how often better, of what ``results.compare`` says."""
    intervals = [_interval(row["low"], row["high"]), _interval(row["t_low"], row["t_high"])]
    return [row["pairs"], _signed(row["difference"]), *intervals, f"{row['better']} of {row['pairs']}"]


def _label_rows(analysis: Analysis) -> Rows:
    return [
        [
            *(r["size"], r["label"], r["arm"], _dice(r["mean"]), _dice(r["scratch"]), _signed(r["difference"])),
            _interval(r["low"], r["high"]),
        ]
        for r in analysis.labels
    ]


def _arm_rows(study: Study) -> Rows:
    return [
        [
            *(arm.name, arm.weights or "-", arm.method or "-"),
            *("-" if arm.loaded is None else f"{100 * arm.loaded:.0f} %", arm.plans, arm.trainer, arm.baseline or "-"),
        ]
        for arm in study.arms
    ]


def _what(study: Study, analysis: Analysis) -> str:
    """Length, data, machine and hours in a sentence or two."""
    done = [o.content for o in analysis.outcomes if o.status == "done"]
    validation = ", ".join(f"{len(cases['validation'])} of fold {fold}" for fold, cases in study.folds.items())
    text = f"Validation cases: {validation}."
    if not done:
        return text
    first = done[0]
    hours = sum(content["seconds"]["process"] for content in done) / 3600
    steps = " or ".join(sorted({f"{c['trained']['steps']} steps of batch {c['trained']['batch_size']}" for c in done}))
    return f"{text} Each run: {steps}; {hours:.1f} hours in all on {first['machine']['device']}."


def _size(row: Mapping[str, Any]) -> str:
    return " ".join(size_lines(str(row["size"]), row["cases"]))


def size_lines(label: str, cases: float) -> list[str]:
    """Label of an amount of training data, and what it is in cases where that says more."""
    count = f"{cases:g} case{'' if cases == 1 else 's'}"
    return [label] if label == count else [label, f"({count})"]


def _failure(outcome: Outcome) -> str:
    text = "\n".join(outcome.content["log_end"])
    return f"{outcome.run.name}: {outcome.content['error']}\n\n```text\n{text}\n```"


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def markdown_table(headers: Sequence[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
