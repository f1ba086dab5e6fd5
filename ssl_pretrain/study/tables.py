"""A study in words and numbers: tables for the console and as Markdown, and ``study.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ssl_pretrain.report.tables import format_table
from ssl_pretrain.study.cells import Rows, amount, comparison_cells, dice, ends, markdown_table, signed
from ssl_pretrain.study.noted_tables import console_tables, noted_markdown
from ssl_pretrain.study.outcomes import Outcome
from ssl_pretrain.study.results import Analysis
from ssl_pretrain.study.statistics import FOUND_NOTHING, RESAMPLES, USUALLY_FOUND
from ssl_pretrain.study.study import Study

SUMMARY = ("training data", "arm", "runs", "mean", "median", "SD", "lowest", "highest", "collapsed", "failed")
DIFFERENCES = (
    *("training data", "pretrained - scratch", "pairs", "difference", "95 % bootstrap", "95 % t", "better"),
    "without collapsed pairs",
)
LABELS = ("training data", "label", "arm", "Dice", "scratch", "difference", "95 % bootstrap")
HOLM = "p (Holm)"
EXPLORATORY = "exploratory"


def console(analysis: Analysis) -> str:
    """The main tables as plain text."""
    tables = [(SUMMARY, summary_rows(analysis)), difference_table(analysis), *console_tables(analysis.noted)]
    return "\n\n".join(format_table(headers, rows) for headers, rows in tables)


def markdown(study: Study, analysis: Analysis) -> str:
    """The page ``study.md``: what was run, the tables, the figures, how to read it."""
    done = sum(o.status == "done" for o in analysis.outcomes)
    parts = [
        f"# {study.dataset}, {study.settings.configuration}: pretrained against scratch",
        f"{done} of {len(analysis.outcomes)} runs. {_what(study, analysis)}",
        markdown_table(("arm", "weights", "method", "loaded", "plans", "trainer", "compared with"), _arm_rows(study)),
        *(f"**{warning}**" for warning in study.warnings),
        "## Dice",
        markdown_table(SUMMARY, summary_rows(analysis)),
        "## Pretrained - scratch",
        markdown_table(*difference_table(analysis)),
        explanation(study),
        "![Dice of every run against the training cases](study.png)",
        *noted_markdown(analysis.noted, study.settings.probe),
        "## Labels",
        markdown_table(LABELS, _label_rows(analysis)),
    ]
    if failed := [o for o in analysis.outcomes if o.status == "failed"]:
        parts += ["## Failed runs", *(_failure(o) for o in failed)]
    return "\n\n".join(parts) + "\n"


def explanation(study: Study) -> str:
    """What the numbers mean, in a paragraph."""
    share, primary = study.settings.collapsed_below, study.settings.primary
    corrected = (
        f"The primary comparisons, named before the runs, are {', '.join(primary)}: their p, the larger one of "
        "bootstrap and t test, is corrected for their number (Holm). All others are exploratory. Intervals are not "
        "corrected for the number of comparisons."
        if primary
        else "No comparison was named before the runs (-primary): all are exploratory. Intervals are not corrected for "
        "the number of comparisons."
    )
    several = (
        " The runs of several pretrainings of an arm are drawn with their pretraining as a level of its own; the t "
        "interval averages over pretrainings first."
        if any(arm.group for arm in study.arms)
        else ""
    )
    return (
        "Dice is nnU-Net's: of each label the mean over the validation cases, then the mean over labels. A pair is a "
        "run from pretrained weights and the one from scratch with the same fold, seed and training cases. The "
        f"bootstrap interval ({RESAMPLES} draws) resamples pairs and validation cases at once; the t interval is over "
        f"pairs alone and the more careful one where pairs are few. *better* counts the pairs in which the pretrained "
        f"run wins. A run has collapsed if its Dice is below {share:g} of the best run's with as much data or below "
        f"{FOUND_NOTHING:g}, or if it lost a label (Dice below {FOUND_NOTHING:g} where the median run has more than "
        f"{USUALLY_FOUND:g}).{several} {corrected}"
    )


def to_json(study: Study, analysis: Analysis) -> dict[str, Any]:
    """Everything, for ``study.json``."""
    return {
        **study.to_dict(),
        "runs": [_run_entry(o, o.run.name in analysis.collapsed) for o in analysis.outcomes],
        "summary": analysis.summary,
        "differences": analysis.differences,
        "labels": analysis.labels,
        **asdict(analysis.noted),
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
        [amount(r), r["arm"], r["runs"], *(dice(r[name]) for name in names), r["collapsed"], r["failed"]]
        for r in analysis.summary
    ]


def difference_rows(analysis: Analysis) -> Rows:
    """Cells of :data:`DIFFERENCES`."""
    return [
        [
            *(amount(r), f"{r['arm']} - {r['baseline']}", *comparison_cells(r)),
            f"{signed(r['difference_without_collapsed'])} ({r['pairs_without_collapsed']})",
        ]
        for r in analysis.differences
    ]


def difference_table(analysis: Analysis) -> tuple[Sequence[str], Rows]:
    """Headers and cells of the differences; where comparisons were named before the runs, with their corrected p."""
    rows = difference_rows(analysis)
    if not any(row["primary"] for row in analysis.differences):
        return DIFFERENCES, rows
    last = [_p(row) if row["primary"] else EXPLORATORY for row in analysis.differences]
    return (*DIFFERENCES, HOLM), [[*cells, p] for cells, p in zip(rows, last, strict=True)]


def _p(row: Mapping[str, Any]) -> str:
    return "-" if row["p_holm"] is None else f"{row['p_holm']:.4f}"


def _label_rows(analysis: Analysis) -> Rows:
    return [
        [
            *(r["size"], r["label"], r["arm"], dice(r["mean"]), dice(r["scratch"]), signed(r["difference"])),
            ends(r["low"], r["high"]),
        ]
        for r in analysis.labels
    ]


def _arm_rows(study: Study) -> Rows:
    return [
        [
            *(arm.shown, arm.weights or "-", arm.method or "-"),
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


def _failure(outcome: Outcome) -> str:
    text = "\n".join(outcome.content["log_end"])
    return f"{outcome.run.name}: {outcome.content['error']}\n\n```text\n{text}\n```"
