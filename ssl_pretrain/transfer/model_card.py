"""A card for the Hugging Face Hub: what weights were made with, in words.

Nothing in it is made up: what the checkpoint does not say, the card does not say either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssl_pretrain.files import read_json
from ssl_pretrain.networks.registry import NETWORKS, rows_of, trainer_of
from ssl_pretrain.transfer.report import KINDS, Report

WEIGHTS, CONFIG, PLANS, CARD, REPORT = "model.safetensors", "config.json", "plans.json", "README.md", "report.json"

TAGS = ("medical", "3d", "nnU-Net", "self-supervised-learning", "image-segmentation")
PIPELINE = "image-feature-extraction"
"""What the Hub files it under: before fine-tuning there is nothing to segment with."""

NO_LICENSE = "unknown"
"""The Hub's identifier for weights whose licence nobody has chosen."""

NO_RESULTS = "None given."

STUDY_TABLES = {
    "summary": ("size", "arm", "runs", "mean", "median", "sd", "collapsed", "failed"),
    "differences": ("size", "arm", "baseline", "pairs", "difference", "low", "high"),
}
"""Lists in ``study.json`` -> what of their entries the card shows; low and high are of a 95 % bootstrap interval."""

Facts = Iterable[tuple[str, Any]]


def results_text(file: Path) -> str:
    """What the card says under results.

    Args:
        file: ``study.json`` of ``nnUNetv2_pretrain_study``, whose tables are taken, or a text in Markdown (``.md``,
            ``.txt``), which is taken as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither of the two.
    """
    if not file.is_file():
        raise FileNotFoundError(f"-results {file} does not exist. Name study.json or a text in Markdown.")
    if file.suffix in (".md", ".txt"):
        return file.read_text(encoding="utf-8").strip() or NO_RESULTS
    try:
        study = read_json(file)
        tables = [_table(columns, study[name]) for name, columns in STUDY_TABLES.items()]
        return "\n\n".join((f"{study['dataset']['name']}, Dice of nnU-Net's validation.", *tables, study["notes"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"-results {file} is neither study.json of a study that has results ({type(error).__name__}: {error}) nor "
            "a text in Markdown (.md, .txt)."
        ) from error


def _table(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = (columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def model_card(
    content: Mapping[str, Any],
    *,
    report: Report | None = None,
    license: str | None = None,  # noqa: A002
    results: str = NO_RESULTS,
) -> str:
    """The text of ``README.md``: front matter for the Hub, then sections for people.

    Args:
        content: what ``checkpoint_final.pth`` holds.
        report: what became of the source's tensors, if these were adapted.
        license: identifier of the Hub.
        results: Markdown.
    """
    pretraining: Mapping[str, Any] = content.get("pretraining") or {}
    method = pretraining.get("method")
    name = _network(content)
    title = f"{name}, pretrained with {method}" if method else f"Weights of {name}"
    sections = {
        "Data": _facts(_data(content)),
        "Method": _facts(_method(pretraining)),
        "Network": _facts(_shape(content)),
        "What was loaded and adapted": _adaptation(pretraining, report),
        "Results": results,
        "How to use": _usage(content),
        "Citations": "\n".join(f"- {citation}" for citation in _citations(content)) or "None given.",
    }
    if license is None:
        title += "\n\n> No licence was chosen yet: replace `unknown` at the top of this file before sharing it."
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return f"{_front_matter(license, method)}\n# {title}\n\n{body}\n"


def _front_matter(license: str | None, method: str | None) -> str:  # noqa: A002
    # A text in JSON is one in YAML.
    tags = [*TAGS, *([method] if method else [])]
    lines = {
        "license": license or NO_LICENSE,
        "library_name": "anatomask",
        "pipeline_tag": PIPELINE,
        "tags": json.dumps(tags, ensure_ascii=False),
    }
    return "\n".join(("---", *(f"{key}: {value}" for key, value in lines.items()), "---", ""))


def _facts(facts: Facts) -> str:
    """A list of what is known; None is not."""
    lines = [f"- {name}: {_text(value)}" for name, value in facts if value not in (None, "", [], {})]
    return "\n".join(lines) or "The file says nothing about it."


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _data(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the weights were pretrained on, also where they were adapted to another dataset since."""
    source: Mapping[str, Any] = content.get("pretraining") or content
    config: Mapping[str, Any] = source.get("config") or {}
    while "adaptation" in source:
        source = source["adaptation"]["source"]
    plans: Mapping[str, Any] = (
        source.get("plans") or (source.get("nnssl_adaptation_plan") or {}).get("pretrain_plan") or {}
    )
    configurations: Mapping[str, Any] = plans.get("configurations") or {}
    name = source.get("configuration") or next(iter(configurations), None)
    planned: Mapping[str, Any] = configurations.get(str(name)) or {}
    yield "dataset", plans.get("dataset_name") or config.get("dataset")
    yield "further datasets", ", ".join(config.get("datasets") or ())
    yield "cases", {"all": "all that were preprocessed"}.get(str(config.get("use")), config.get("use"))
    yield "fold", config.get("fold")
    yield "filters", ", ".join(config.get("filters") or ())
    yield "configuration", " of ".join(filter(None, (name, plans.get("plans_name"))))
    yield "spacing in mm", planned.get("spacing")
    yield "normalisation", ", ".join(planned.get("normalization_schemes") or ())
    yield "input channels", source.get("input_channels")


def _method(pretraining: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    config: Mapping[str, Any] = pretraining.get("config") or {}
    yield "method", pretraining.get("method")
    yield "epochs", pretraining.get("epoch")
    yield "steps per epoch", config.get("iters")
    yield "batch size", config.get("batch_size")
    yield "seed", pretraining.get("seed")
    yield "began with", config.get("pretrained_weights")
    yield "versions", pretraining.get("versions")
    yield "all settings", f"`{CONFIG}`" if config else None


def _shape(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    pretraining: Mapping[str, Any] = content.get("pretraining") or {}
    tensors = content["network_weights"].values()
    sizes = {(tensor.data_ptr(), tuple(tensor.shape)): tensor.numel() for tensor in tensors}
    yield "class", _network(content)
    yield "parameters", f"{sum(sizes.values()):,}".replace(",", " ")
    yield "input channels", pretraining.get("input_channels")
    yield "patch size in voxels", pretraining.get("patch_size")
    yield (
        "described in",
        f"`{PLANS}`, configuration {pretraining.get('configuration')}" if pretraining.get("plans") else None,
    )


def _network(content: Mapping[str, Any]) -> str:
    described = (content.get("nnssl_adaptation_plan") or {}).get("architecture_plans") or {}
    return str(described.get("arch_class_name") or (content.get("pretraining") or {}).get("network") or "a network")


def _adaptation(pretraining: Mapping[str, Any], report: Report | None) -> str:
    """What there is to know about single tensors; names of all of them are in ``report.json``."""
    if "pretrained_keys" not in pretraining:
        return "The tensors are as they were in the file from which these were converted."
    kept, fresh = len(pretraining["pretrained_keys"]), len(pretraining.get("fresh_keys", ()))
    lines = [
        f"{kept} of the tensors in `{WEIGHTS}` are pretrained. The other {fresh} are freshly initialised, so that the "
        "file has all of the network; the header says which."
    ]
    said: Mapping[str, Any] = pretraining.get("adaptation") or {}
    if said:
        lines.append(
            f"They were adapted from `{said['file']}` to {said['dataset']} ({said['trainer']}): "
            f"{100 * said['fraction']:.1f} % of the network's numbers come from there."
        )
    if report is not None:
        totals = report.to_json()["totals"]
        rows = [f"| {kind} | {totals[kind]['tensors']} | {100 * totals[kind]['share']:.1f} |" for kind in KINDS]
        lines.append("\n".join(("| | tensors | % of the network |", "| --- | ---: | ---: |", *rows)))
        reasons = Counter(entry.reason for entry in report.adapted)
        lines.append("\n".join(f"- {count} tensors: {reason}" for reason, count in reasons.items()))
    return "\n\n".join(filter(None, lines))


def _usage(content: Mapping[str, Any]) -> str:
    config = (content.get("pretraining") or {}).get("config") or {}
    name, path = str(config.get("network")), _network(content)
    # Of a file of others the class is known, which may be called as we call the network.
    name = name if name in NETWORKS else path
    trainer = trainer_of(name, path) if rows_of(name, path) else ""
    flags = f" -tr {trainer}" if trainer else ""
    folders = (
        'export nnUNet_extTrainer="$(python -c "from ssl_pretrain.transfer.extension import extension_folder; '
        'print(extension_folder())")"\n'
    )
    return f"""With [nnU-Net](https://github.com/MIC-DKFZ/nnUNet) and `pip install anatomask`, for your own data:

```bash
{folders if trainer else ""}nnUNetv2_adapt_weights -w hf://ORG/REPO -d DATASET -c CONFIGURATION \\
    -p PLANS{flags} -o adapted.pth
nnUNetv2_train DATASET CONFIGURATION 0 -p PLANS{flags} -pretrained_weights adapted.pth
```

In Python, for any network and for features:

```python
from ssl_pretrain import load_encoder, load_pretrained

print(load_pretrained(network, "hf://ORG/REPO"))
maps, vector = load_encoder("hf://ORG/REPO")(image)
```"""


def _citations(content: Mapping[str, Any]) -> list[str]:
    own = (content.get("pretraining") or {}).get("citations") or ()
    listed = (text for entry in content.get("citations") or () for text in entry.get("apa_citations") or ())
    return list(dict.fromkeys((*own, *listed)))
