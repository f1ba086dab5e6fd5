"""A folder for the Hugging Face Hub: weights, what they were made with, and a card. No path of a disk is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from ssl_pretrain.files import write_atomic, write_json
from ssl_pretrain.transfer.model_card import CARD, CONFIG, NO_RESULTS, PLANS, REPORT, WEIGHTS, model_card, results_text
from ssl_pretrain.transfer.report import Report
from ssl_pretrain.transfer.safetensors_file import save_safetensors
from ssl_pretrain.transfer.sources.hub import is_reference

PLACES = ("output_folder", "files")
"""Settings of a run that are nothing but places on its disk."""


def write_model_folder(
    content: Mapping[str, Any],
    folder: Path,
    *,
    report: Report | None = None,
    license: str | None = None,  # noqa: A002 - what the Hub calls it
    results: str | Path | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json``, ``plans.json``, ``README.md`` and, after adapting, ``report.json``.

    Config and plans are those of the checkpoint; one that has none gets none.

    Args:
        content: what ``checkpoint_final.pth`` holds.
        folder: made if it is not there.
        report: what became of the source's tensors, if these were adapted.
        license: identifier of the Hub; None leaves a placeholder to be replaced.
        results: file for :func:`results_text`; None for none.

    Raises:
        FileNotFoundError, ValueError: see :func:`results_text`.
        OSError: something cannot be written.
    """
    said = results_text(Path(results)) if results is not None else NO_RESULTS
    about = without_places({name: entry for name, entry in content.items() if name != "network_weights"})
    cleaned = {**about, "network_weights": content["network_weights"]}
    pretraining = about.get("pretraining") or {}
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(cleaned, folder / WEIGHTS)
    for name, entry in ((CONFIG, "config"), (PLANS, "plans")):
        if pretraining.get(entry):
            write_json(pretraining[entry], folder / name)
    if report is not None:
        write_json({**report.to_json(), "file": report.file.name}, folder / REPORT)
    card = model_card(cleaned, report=report, license=license, results=said)
    write_atomic(folder / CARD, "w", lambda handle: handle.write(card))


PLACE = re.compile(r"(?:^|[\s=:,;\"'(\[])(?:/[^/\s]|~\w*[/\\]|\.\.?[/\\]|[A-Za-z]:[\\/]|\\\\|file:/)")
"""A path of a disk within a text: absolute, of a home, relative to a folder, of Windows, or a ``file:`` address."""

PERSONAL = re.compile(r"\s*(?:subject|session)\s*[!=<>]")
"""Filters of a run that name people."""


def without_places(entry: Any) -> Any:
    """A copy without paths of a disk: of weights that a run began with the file's name is left, of the rest nothing.

    Filters by subject or session go as well: they name people.
    """
    if isinstance(entry, Mapping):
        return {
            key: _name_only(value) if key == "pretrained_weights" else without_places(value)
            for key, value in entry.items()
            if key not in PLACES and not _is_place(key) and not _is_place(value, key)
        }
    if isinstance(entry, (list, tuple)):
        return [without_places(value) for value in entry if not _is_place(value)]
    return entry


def _is_place(value: Any, key: str = "") -> bool:
    if key == "pretrained_weights":
        return False
    if isinstance(value, PurePath):
        return True
    return isinstance(value, str) and (PLACE.search(value) or PERSONAL.match(value)) is not None


def _name_only(file: str | None) -> str | None:
    return file if file is None or is_reference(file) else PureWindowsPath(file).name
