"""JSON that others write, wrong in one place: what becomes of it at the doors through which it comes in.

``benchmarks/reliability.py`` repeats it and counts.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from made_data import IDENTIFIER, NAME, volume, write_case
from made_images import complete_plans, write_planned

from ssl_pretrain import PretrainConfig
from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.index import index_file
from ssl_pretrain.data.locate import locate
from ssl_pretrain.data.preparation.target import find_target
from ssl_pretrain.data.splits import load_fold
from ssl_pretrain.files import write_json
from ssl_pretrain.study.study import FAILURE, RESULT, Study, read_result
from ssl_pretrain.study.worker import read_summary
from ssl_pretrain.training.prepare import prepare
from ssl_pretrain.training.run import cases_of, check_output
from ssl_pretrain.transfer.model_card import results_text

CASES = [f"case_{i:02d}" for i in range(6)]
RENAMED, DELETED = "renamed", "deleted"

VALUES: dict[str, Any] = {
    "null": None,
    "text": "a\u00e4",
    "empty text": "",
    "number": -7,
    "fraction": 0.5,
    "huge": 10**15,
    "list": [None],
    "empty list": [],
    "object": {"a": [1]},
    "true": True,
}
"""What takes the place of a value."""

RAW: dict[str, Callable[[str], str]] = {
    "NaN": lambda _: "NaN",
    "infinity": lambda _: "-Infinity",
    "1e999": lambda _: "1e999",
    "300 digits": lambda _: "9" * 300,
}
"""What takes the place of a value and cannot be written by ``json``."""

WHOLE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda text: text[: len(text) // 2].encode(),
    "zeros": lambda _: bytes(4096),
    "list": lambda text: f"[{text}]".encode(),
    "null": lambda _: b"null",
    "number": lambda _: b"3",
    "object": lambda _: b'{"a": 1}',
    "UTF-16": lambda text: text.encode("utf-16"),
    "Latin-1": lambda text: ('{"\u00e4": ' + text + "}").encode("latin-1"),
    "deep": lambda _: b"[" * 100_000,
    "deep objects": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
}
"""What becomes of a whole file."""


class Outcome(NamedTuple):
    """What became of a mutation.

    Attributes:
        kind: of file.
        mutation: the place in it, and what was done there.
        outcome: ``accepted``, ``refused``, ``refused without its name`` or ``traceback``.
        message: of the error.
    """

    kind: str
    mutation: str
    outcome: str
    message: str


class Door(NamedTuple):
    """A kind of file and the code that reads it.

    Attributes:
        kind: of file.
        file: that is mutated.
        enter: reads it.
        keys: places that are read, as paths.
    """

    kind: str
    file: Path
    enter: Callable[[], object]
    keys: list[tuple[str | int, ...]]


def places(content: Any, depth: int, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key, and of every list the first entry, down to a depth."""
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(content, dict):
        inner = content.items()
    elif isinstance(content, list):
        inner = list(enumerate(content))[:1]
    for key, value in inner:
        yield (*at, key)
        if depth > 1:
            yield from places(value, depth - 1, (*at, key))


def mutations(text: str, keys: list[tuple[str | int, ...]]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every mutation of a file."""
    for name, change in WHOLE.items():
        yield f"whole file: {name}", change(text)
    for place in keys:
        path = ".".join(map(str, place))
        for name in (RENAMED, DELETED, *VALUES, *RAW):
            content = json.loads(text)
            parent = content
            for key in place[:-1]:
                parent = parent[key]
            key = place[-1]
            if name == RENAMED:
                if isinstance(parent, list):
                    continue
                parent[f"{key}_"] = parent.pop(key)
            elif name == DELETED:
                del parent[key]
            else:
                parent[key] = copy.deepcopy(VALUES.get(name, "\0here\0"))
            written = json.dumps(content)
            if name in RAW:
                written = written.replace(json.dumps("\0here\0"), RAW[name](""))
            yield f"{path}: {name}", written.encode()


def outcomes(folder: Path) -> list[Outcome]:
    """What becomes of every mutation of every file, in a folder that is made for it.

    Sets the environment variables of nnU-Net.
    """
    found = []
    for door in _doors(folder):
        before = door.file.read_bytes()
        door.enter()
        intact = door.file.read_bytes()
        for name, content in mutations(before.decode(), door.keys):
            door.file.write_bytes(content)
            found.append(Outcome(door.kind, name, *_entered(door)))
        door.file.write_bytes(intact)
    return found


def _entered(door: Door) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door.enter()
    except (ValueError, OSError) as error:
        named = str(door.file) in str(error) and "\n" not in str(error)
        # UnicodeDecodeError and JSONDecodeError are what a reader lets through, not what it says.
        return "refused" if named and type(error).__module__ != "json.decoder" else "refused without its name", str(
            error
        )
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "accepted", ""


def _doors(root: Path) -> Iterator[Door]:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(parents=True)
        os.environ[name] = str(root / name)
    dataset = write_planned(root / "nnUNet_preprocessed")
    made = complete_plans()
    made["configurations"]["3d_fullres"]["inherits_from"] = "3d_base"
    made["configurations"]["3d_base"] = {"batch_dice": True}
    write_json(made, dataset / "nnUNetPlans.json")
    for i, case in enumerate(CASES):
        write_case(dataset / IDENTIFIER, case, volume(i))
    config = PretrainConfig(
        **{"dataset": "7", "fold": "0", "device": "cpu", "num_workers": 0, "epochs": 1},
        output_folder=str(root / "run"),
    )
    yield from _of_a_dataset(dataset, made, config)
    yield from _of_a_run(root / "run", config)
    yield from _of_a_study(root / "study")


def _of_a_dataset(dataset: Path, made: dict[str, Any], config: PretrainConfig) -> Iterator[Door]:
    def every_road() -> None:
        locate("7", "3d_fullres", "nnUNetPlans")
        find_target("7", "nnUNetPlans", "3d_fullres")
        prepare(config)

    top = [(key,) for key in made if key not in ("experiment_planner_used", "original_median_spacing_after_transp")]
    inner = [("configurations", "3d_fullres", *p) for p in places(made["configurations"]["3d_fullres"], 3)]
    statistics = ("foreground_intensity_properties_per_channel", "0")
    keys = [*top, ("configurations", "3d_fullres"), *inner, ("transpose_forward", 0), statistics]
    yield Door("plans", dataset / "nnUNetPlans.json", every_road, keys)

    described = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    keys = [place for place in places(described, 2) if place != ("numTraining",)]
    yield Door("dataset.json", dataset / "dataset.json", every_road, keys)

    splits = dataset / "splits_final.json"
    write_json([{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}], splits)
    keys = list(places(json.loads(splits.read_text(encoding="utf-8")), 3))
    yield Door("splits", splits, lambda: load_fold("1", CASES, splits), [*keys, (1, "train"), (1, "val", 1)])

    index = index_file(dataset / IDENTIFIER)
    Cases(dataset / IDENTIFIER, 1).index()

    def indexed() -> None:
        shapes = Cases(dataset / IDENTIFIER, 1).index().shapes
        assert shapes.shape == (len(CASES), 4) and (shapes == [1, 20, 22, 24]).all()

    keys = [key for key in places(json.loads(index.read_text(encoding="utf-8")), 4) if "case_01" not in key]
    yield Door("index", index, indexed, keys)


def _of_a_run(folder: Path, config: PretrainConfig) -> Iterator[Door]:
    run = prepare(config)
    folder.mkdir()
    write_json(run.config.to_dict(), folder / "config.json")
    write_json(cases_of(run), folder / "cases.json")
    for name, keys in (
        ("config.json", list(places(run.config.to_dict(), 2))),
        ("cases.json", [("train",), ("validation",), ("train", 0)]),
    ):
        yield Door(name, folder / name, lambda: check_output(run, True), keys)


def _of_a_study(folder: Path) -> Iterator[Door]:
    folder.mkdir()
    dice = {case: {"organ": 0.5} for case in CASES[4:]}
    settings = {"dataset": NAME, "configuration": "3d_fullres", "weights": ["w.pth"], "fractions": [1.0], "seeds": 1}
    arms = [{"name": "scratch", "plans": "nnUNetPlans", "trainer": "nnUNetTrainer"}]
    arms.append({**arms[0], "name": "SparK", "weights": "w.pth", "sha256": "0", "baseline": "scratch"})
    table = {"size": "100 %", "arm": "SparK", "baseline": "scratch", "runs": 1, "mean": 0.5, "median": 0.5, "sd": None}
    row = {**table, "collapsed": 0, "failed": 0, "pairs": 1, "difference": 0.1, "low": None, "high": 0.2}
    content = {
        "settings": settings,
        "dataset": {
            "name": NAME,
            "labels": {"1": "organ"},
            "folds": {"0": {"train": CASES[:4], "validation": CASES[4:]}},
        },
        "arms": arms,
        "sizes": [{"label": "100 %", "cases": {"0": 4}}],
        "subsets": [[0, 0, 4, 0]],
        **{"begun": "now", "versions": {}, "machine": {}, "warnings": []},
    }
    write_json(content, folder / "study.json")
    yield Door("study.json", folder / "study.json", lambda: Study.read(folder), list(places(content, 4)))

    card = folder / "card" / "study.json"
    card.parent.mkdir()
    shown = {"dataset": {"name": NAME}, "summary": [row], "differences": [row], "notes": "None."}
    write_json(shown, card)
    keys = [("dataset",), ("dataset", "name"), ("summary",), ("summary", 0), ("differences",), ("notes",)]
    yield Door("study.json of a card", card, lambda: results_text(card), [*keys, ("summary", 0, "mean")])

    result = {
        **{"dice": 0.5, "labels": {"organ": 0.5}, "per_case": dice, "machine": {"device": "made"}},
        **{"seconds": {"process": 1.0}, "trained": {"steps": 2, "batch_size": 2}},
    }
    for name, stored in ((RESULT, result), (FAILURE, {"error": "of some kind"})):
        file = folder / name
        write_json(stored, file)
        yield Door(name, file, lambda file=file: read_result(file), list(places(stored, 3)))

    summary = folder / "summary.json"
    metrics = {"1": {"Dice": 0.5, "n_ref": 7}}
    entries = [{"metrics": metrics, "prediction_file": f"/tmp/{case}.nii.gz"} for case in CASES[4:]]
    write_json({"metric_per_case": entries}, summary)
    yield Door(
        "summary.json",
        summary,
        lambda: read_summary(summary, {"1": "organ"}, CASES[4:], ".nii.gz"),
        list(places({"metric_per_case": entries}, 5)),
    )
