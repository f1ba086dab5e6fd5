"""Preprocessing many unlabelled images: what is done already, what is missing, what failed."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_pretrain.data.cases import OURS, MaskKind
from ssl_pretrain.data.mask_doubts import warn_of_doubts
from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.parallel import Failure, run_cases
from ssl_pretrain.data.preparation.preprocess import Made, Preprocessor, masks_of
from ssl_pretrain.data.preparation.report import Failures
from ssl_pretrain.data.preparation.sources import some
from ssl_pretrain.data.preparation.stored import (
    KINDS,
    discard,
    fault_of,
    image_file,
    names_in,
    read_properties,
    renew_info,
)
from ssl_pretrain.data.preparation.target import Target

logger = logging.getLogger(__name__)

READERS = 8
"""Threads that read what is kept with finished cases."""

A_DAY = 24 * 3600
"""Seconds."""

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Takes what arrives case by case, how many there are and what is done to them, and hands it on: a progress bar."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the work is done.

    Attributes:
        processes: cases at a time; 0 for none but this process.
        part: number of this part of the work, from 0.
        parts: how many parts there are.
        verify: read finished cases whole, and make those again that are damaged.
        overwrite: make finished cases again.
        watch: sees the cases as they are finished.
    """

    processes: int = 8
    part: int = 0
    parts: int = 1
    verify: bool = False
    overwrite: bool = False
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"-num_parts must be 1 or more, got {self.parts}.")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"-part_id goes from 0 to -num_parts minus 1, {self.parts - 1} here; got {self.part}.")
        if self.processes < 0:
            raise ValueError(f"-np must be 0 or more, got {self.processes}.")


@dataclass(kw_only=True)
class Summary:
    """What came of it.

    Attributes:
        cases: cases of this part.
        before: of these, how many had been done before.
        made: how many were done now.
        failures: what failed.
        folder: where the cases are.
        seconds: it took.
    """

    cases: int
    before: int = 0
    made: int = 0
    failures: Failures
    folder: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class _Verifier:
    """Reads a finished case whole."""

    folder: Path
    channels: int

    def __call__(self, case: ImageCase) -> str | None:
        return fault_of(self.folder, case.identifier, self.channels, tuple(masks_of(case)))


def preprocess_unlabeled(cases: Sequence[ImageCase], target: Target, options: Options) -> Summary:
    """Preprocess what is not done yet; a case that fails is reported and does not stop the others.

    Safe to stop at any time and to start again, and to run as several parts at a time.

    Args:
        cases: all images, those of other parts too.
        target: the dataset and configuration.
        options: how.

    Raises:
        ValueError: finished cases were made with other plans.
        OSError: the report cannot be written, or no process can be started.
    """
    start = time.monotonic()
    mine = cases[options.part :: options.parts]
    summary = Summary(
        cases=len(mine), failures=Failures(target.folder, options.part, options.parts), folder=target.folder
    )
    target.folder.mkdir(parents=True, exist_ok=True)
    missing = list(mine)
    if not options.overwrite:
        finished = _finished(mine, target)
        if options.verify:
            finished = _intact(finished, target, options)
        done = {case.identifier for case in finished}
        missing = [case for case in mine if case.identifier not in done]
        summary.before = len(finished)
    logger.info(_what_is_to_do(target, len(cases), summary, len(missing), options))
    with _staging_folder(target.folder, options) as staging:
        _make(missing, target, options, staging, summary)
    summary.failures.finish()
    summary.seconds = time.monotonic() - start
    return summary


def _what_is_to_do(target: Target, total: int, summary: Summary, missing: int, options: Options) -> str:
    part = f", of which {summary.cases} are part {options.part} of {options.parts}" if options.parts > 1 else ""
    return (
        f"{target.files.name}, {target.plan.name} {target.plan.configuration}: {total} images{part}. {summary.before} "
        f"are done, {missing} to do (-np {options.processes})"
    )


def _make(cases: Sequence[ImageCase], target: Target, options: Options, staging: Path, summary: Summary) -> None:
    plan = target.plan
    preprocessor = Preprocessor(
        plans=plan.plans,
        configuration=plan.configuration,
        dataset=plan.dataset,
        channels=plan.input_channels,
        folder=target.folder,
        staging=staging,
    )
    doubts: dict[MaskKind, list[str | None]] = {kind: [] for kind in KINDS}
    with _results(preprocessor, cases, options, "preprocessing") as results:
        for case, result in results:
            if isinstance(result, Failure):
                logger.error("FAILED %s: %s", case.identifier, result.reason)
                summary.failures.add(case, result)
                continue
            _tell(case, result)
            summary.made += 1
            for kind, doubt in result.doubts.items():
                doubts[kind].append(doubt and f"{masks_of(case)[kind]}: {doubt}")
    for kind, found in doubts.items():
        warn_of_doubts(kind, found)


def _tell(case: ImageCase, made: Made) -> None:
    logger.info("%s: %s voxels, %.1f s", case.identifier, " x ".join(map(str, made.shape)), made.seconds)
    for warning in made.warnings:
        logger.warning("    warning: %s", warning)


@contextmanager
def _results(
    function: Callable[[ImageCase], Any], cases: Sequence[ImageCase], options: Options, what: str
) -> Iterator[Iterable[tuple[ImageCase, Any]]]:
    """Results as they come; whatever ends the block ends the processes."""
    with closing(run_cases(function, cases, options.processes)) as results:  # type: ignore[type-var]
        yield options.watch(results, len(cases), what) if options.watch and cases else results


def _finished(cases: Sequence[ImageCase], target: Target) -> list[ImageCase]:
    """Cases that need not be made again.

    Raises:
        ValueError: some were made with other plans.
    """
    candidates, expected = _with_files(cases, target.folder), target.made_with
    finished, other_plans, elsewhere, turned, renewed = [], [], [], [], 0
    # On a network drive, opening a file is waiting; many wait together.
    with ThreadPoolExecutor(READERS) as pool:
        origins = pool.map(lambda case: _origin(target.folder, case.identifier), candidates)
        for case, origin in zip(candidates, origins, strict=True):
            if origin is None:
                logger.warning("%s: its .pkl is missing or damaged, so it is made again", case.identifier)
                continue
            made_with, sources, info, inverted = origin
            if any((kind in case.inverted) != (kind in inverted) for kind in masks_of(case)):
                turned.append(case.identifier)
                continue
            if info != case.info.to_dict():
                renewed += 1
                renew_info(target.folder, case.identifier, case.info)
            if made_with != expected:
                other_plans.append(case.identifier)
            if sources != [str(file.absolute()) for file in case.images]:
                elsewhere.append((sources[0], str(case.images[0])))
            finished.append(case)
    if turned:
        logger.warning(
            "%d finished cases have a mask that was taken the other way round than the collection says, and are made "
            "again: %s",
            len(turned),
            some(turned),
        )
    if renewed:
        logger.info("what is known about %d finished cases has changed (subject, modality, …) and was renewed", renewed)
    if other_plans:
        raise ValueError(
            f"{target.folder} has cases that were preprocessed with other plans than {target.plan.name} "
            f"{target.plan.configuration} are now (spacing, normalisation or resampling): {some(other_plans)}. Make "
            "them again with --overwrite, or delete the folder."
        )
    if elsewhere:
        logger.warning(
            "Finished cases (%d) were made from files in another place, such as %s, now %s. They are taken to be the "
            "same images; if they are not, rename the new ones",
            len(elsewhere),
            *elsewhere[0],
        )
    return finished


def _with_files(cases: Sequence[ImageCase], folder: Path) -> list[ImageCase]:
    """Cases whose image is there, and the masks that are asked for now."""
    there = names_in(folder)
    masks = {kind: names_in(folder / kind) if kind in there else set() for kind in KINDS}
    return [
        case
        for case in cases
        if (name := image_file(folder, case.identifier).name) in there
        and all(name in masks[kind] for kind in masks_of(case))
    ]


def _origin(folder: Path, identifier: str) -> tuple[str, list[str], dict[str, Any], set[MaskKind]] | None:
    """What a case was made with and from, what is known about it, which masks were inverted; None if unreadable."""
    properties = read_properties(folder, identifier)
    if properties is None:
        return None
    ours = properties[OURS]
    # Cases without a word about their masks are of before masks could be inverted.
    inverted = {kind for kind, about in ours.get("masks", {}).items() if about["inverted"]}
    return ours["made_with"], ours["sources"], ours.get("info", {}), inverted


def _intact(cases: Sequence[ImageCase], target: Target, options: Options) -> list[ImageCase]:
    """Those of the finished cases that can be read whole; the others do not exist any more."""
    intact = []
    verifier = _Verifier(target.folder, target.plan.input_channels)
    with _results(verifier, cases, options, "verifying") as results:
        for case, fault in results:
            if fault is None:
                intact.append(case)
                continue
            reason = fault.reason if isinstance(fault, Failure) else fault
            logger.warning("%s is damaged and made again: %s", case.identifier, reason)
            discard(target.folder, case.identifier)
    return intact


def _is_left_over(staging: Path) -> bool:
    """Whether nobody writes into a folder any more: its process is gone, or of another machine and silent for a day."""
    _, machine, process = [*staging.name.rsplit("__", 2), "", ""][:3]
    if machine == platform.node() and process.isdecimal():
        return not Path(f"/proc/{process}").exists() if Path("/proc/self").exists() else _silent(staging)
    return _silent(staging)


def _silent(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > A_DAY
    except FileNotFoundError:
        return False


@contextmanager
def _staging_folder(folder: Path, options: Options) -> Iterator[Path]:
    """A hidden folder for what is not complete, which no other process uses. What killed runs left is removed."""
    for left in folder.glob(".incomplete_*"):
        if _is_left_over(left):
            shutil.rmtree(left, ignore_errors=True)
    staging = folder / f".incomplete_{options.part}_of_{options.parts}__{platform.node()}__{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
