"""From folders of preprocessed cases to the cases of a run: which are used, trained on, validated on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.cases import Cases, MaskKind
from ssl_pretrain.data.filters import Filter, keep
from ssl_pretrain.data.locate import DatasetFiles, Plan, dataset_number
from ssl_pretrain.data.mask_doubts import doubts_in, warn_of_doubts
from ssl_pretrain.data.pool import Balance, Case, CasePool, Source
from ssl_pretrain.data.preprocessing import differences, digest, preprocessing_of
from ssl_pretrain.data.splits import held_out, load_fold

log = logging.getLogger("ssl_pretrain")

Use = Literal["all", "labeled", "unlabeled"]


@dataclass(frozen=True)
class Selection:
    """The cases of a run.

    Attributes:
        train: to train on.
        validation: to validate on.
        note: where they come from and how they were split, for the log.
    """

    train: CasePool
    validation: CasePool
    note: str


def select(
    datasets: Sequence[tuple[DatasetFiles, Plan]],
    *,
    fold: str,
    use: Use = "all",
    filters: Sequence[Filter] = (),
    balance: Balance = "cases",
    masks: Sequence[MaskKind] = (),
) -> Selection:
    """The cases of a run.

    With fold ``all``, 5 % of the subjects are held out. With a number, the labelled cases are split as nnU-Net splits
    them, and all unlabelled cases are trained on, but for those of subjects that are validated on.

    Args:
        datasets: preprocessed with the same plans; the first one's count where they differ.
        fold: ``all`` or a number.
        use: labelled cases, unlabelled ones, or all that are there.
        filters: what the cases must be like.
        balance: of drawing.
        masks: which the run asks for; at least one case must have each.

    Raises:
        ValueError: datasets of different plans, cases of other plans, no case left, no mask.
        FileNotFoundError: a dataset has no such cases.
        CaseError: a case that cannot be used.
    """
    check_agreement(datasets)
    sources: list[Source] = []
    members: list[Case] = []
    for files, plan in datasets:
        for cases in _folders(files, plan, use):
            members += _members(len(sources), files.name, cases, plan)
            sources.append(Source(files.name, cases, plan.spacing, plan.channel_names))
    left = keep(filters, members, lambda case: case.info) if filters else members
    train, validation, note = _split(datasets, fold, sources, members, left)
    _check_masks(sources, train, masks)
    members = left
    labelled = sum(sources[case.source].cases.labelled for case in members)
    counts = f"{labelled} labelled and {len(members) - labelled} unlabelled cases"
    return Selection(CasePool(sources, train, balance), CasePool(sources, validation, balance), f"{counts}; {note}")


def check_agreement(datasets: Sequence[tuple[DatasetFiles, Plan]]) -> None:
    """Refuse datasets whose images were not preprocessed alike.

    Raises:
        ValueError: names the datasets and the entries in which their plans differ.
    """
    (first, plan), *others = datasets
    ours = preprocessing_of(plan.plans, plan.configuration)
    for files, other in others:
        found = differences(ours, preprocessing_of(other.plans, other.configuration))
        if other.input_channels != plan.input_channels:
            found["channels"] = (plan.input_channels, other.input_channels)
        if found:
            rows = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in found.items())
            raise ValueError(
                f"{first.name} and {files.name} are preprocessed differently with {plan.name}: {rows}. "
                f"{_how_to_agree(first, files, plan)}"
            )


def _how_to_agree(first: DatasetFiles, second: DatasetFiles, plan: Plan) -> str:
    # nnU-Net moves plans to datasets with labelled images only.
    source, target = (first, second) if second.has_labelled else (second, first)
    if not target.has_labelled:
        return (
            "Neither has labelled images: preprocess the images of both into one of them "
            f"(nnUNetv2_preprocess_unlabeled -d {dataset_number(first.name)})."
        )
    return (
        f"Give both the same plans with nnUNetv2_move_plans_between_datasets -s {dataset_number(source.name)} -t "
        f"{dataset_number(target.name)} -sp {plan.name} -tp NEW_NAME, and preprocess with them."
    )


def _folders(files: DatasetFiles, plan: Plan, use: Use) -> list[Cases]:
    """The folders of a dataset that are to be used and that there are."""
    found = []
    if use == "labeled" and not files.has_labelled:
        raise FileNotFoundError(
            f"{files.name} has no labelled cases: {files.data} is missing or empty. Run nnUNetv2_preprocess -d "
            f"{dataset_number(files.name)} -plans_name {plan.name} -c {plan.configuration}, or leave out -use labeled."
        )
    if use != "unlabeled" and files.has_labelled:
        found.append(Cases(files.data, plan.input_channels, spare=files.spare))
    if use != "labeled" and (use == "unlabeled" or files.has_unlabelled):
        if not files.has_unlabelled:
            raise FileNotFoundError(
                f"{files.name} has no unlabelled cases: {files.unlabelled} is missing or empty. Make them with: "
                f"nnUNetv2_preprocess_unlabeled -i FOLDER -d {dataset_number(files.name)} -p {plan.name} -c "
                f"{plan.configuration}"
            )
        found.append(Cases(files.unlabelled, plan.input_channels, labelled=False, spare=files.spare))
    return found


def _members(source: int, dataset: str, cases: Cases, plan: Plan) -> list[Case]:
    index = cases.index()
    if not cases.labelled:
        expected = digest(preprocessing_of(plan.plans, plan.configuration))
        others = [
            n for n, a in zip(index.identifiers, index.about, strict=True) if a.get("made_with", expected) != expected
        ]
        if others:
            raise ValueError(
                f"{len(others)} cases of {cases.folder} were preprocessed with other plans than {plan.name} are now, "
                f"e.g. {others[0]}. Run nnUNetv2_preprocess_unlabeled with --overwrite."
            )
    infos = [CaseInfo.from_dict({"dataset": dataset, **about.get("info", {})}) for about in index.about]
    return [
        Case(source, name, info.subject or f"{dataset}__{name}", info)
        for name, info in zip(index.identifiers, infos, strict=True)
    ]


def _check_masks(sources: Sequence[Source], train: Sequence[Case], masks: Sequence[MaskKind]) -> None:
    for kind in masks:
        there = [source.cases.masked(kind) for source in sources]
        count = sum(case.identifier in there[case.source] for case in train)
        log.info("%d of %d cases to train on have an %s mask", count, len(train), kind)
        if not count:
            setting = "ignore_anonymized" if kind == "anonymization" else "sample_in"
            raise ValueError(
                f"{setting} needs {kind} masks, but no case to train on has one. They come with a collection: see "
                "documentation/how-to/collections.md."
            )
        for number, (source, masked) in enumerate(zip(sources, there, strict=True)):
            names = [case.identifier for case in train if case.source == number and case.identifier in masked]
            warn_of_doubts(kind, doubts_in(source.cases, kind, names))


def _split(
    datasets: Sequence[tuple[DatasetFiles, Plan]],
    fold: str,
    sources: Sequence[Source],
    everything: Sequence[Case],
    members: Sequence[Case],
) -> tuple[list[Case], list[Case], str]:
    """Training cases, validation cases and a note; ``members`` are what the filters left of ``everything``."""
    if fold == "all":
        return _hold_out(members, "all cases")
    validated: set[tuple[int, str]] = set()
    notes = []
    for number, source in enumerate(sources):
        if source.cases.labelled:
            of = next(files for files, _ in datasets if files.name == source.dataset)
            split = load_fold(fold, source.cases.identifiers, of.splits, of.spare)
            unused = set(source.cases.identifiers) - {*split.train, *split.validation}
            validated |= {(number, name) for name in split.validation}
            members = [case for case in members if case.source != number or case.identifier not in unused]
            notes.append(split.note)
    validation = [case for case in members if (case.source, case.identifier) in validated]
    # Of all cases: a filter that drops the labelled image of a subject must not let its other images in.
    subjects = {case.subject for case in everything if (case.source, case.identifier) in validated}
    train = [case for case in members if case.subject not in subjects]
    dropped = len(members) - len(train) - len(validation)
    if dropped:
        log.info("%d cases are left out: fold %s validates on their subjects", dropped, fold)
    if not train:
        raise ValueError(f"Fold {fold} has no training case left. Choose another FOLD, or other filters.")
    if not validation:
        return _hold_out(train, f"fold {fold} has no validation case here")
    return train, validation, "; ".join(notes)


def _hold_out(members: Sequence[Case], origin: str) -> tuple[list[Case], list[Case], str]:
    held = held_out([case.subject for case in members])
    if not held:
        return list(members), list(members), f"{origin}: a single subject, validated on itself"
    validation = [case for case in members if case.subject in held]
    train = [case for case in members if case.subject not in held]
    return train, validation, f"{origin}: {len(validation)} of {len(members)} cases held out for validation"
