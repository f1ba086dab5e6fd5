"""Every number a run depends on, in one frozen, checked, JSON-able object."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssl_pretrain.data.filters import parse_filters
from ssl_pretrain.data.module import AugmentOn
from ssl_pretrain.data.pool import Balance
from ssl_pretrain.data.selection import Use
from ssl_pretrain.data.spatial import CropConfig
from ssl_pretrain.files import read_settings
from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.methods import OptimizerConfig, find_method

Precision = Literal["auto", "32", "bf16", "16"]
Device = Literal["cuda", "cpu", "mps"]
Export = Literal["all", "encoder"]
RecipeName = Literal["default", "published"]

MAY_CHANGE = frozenset(
    {
        *("num_workers", "picture_every", "output_folder", "augment_on"),
        *("sparse", "memory_format", "compile", "checkpointing"),
    }
)
"""Settings that a continued run may change: they do not touch what is computed."""

CHOICES = {
    **{"recipe": RecipeName, "device": Device, "precision": Precision, "export": Export},
    **{"use": Use, "balance": Balance, "augment_on": AugmentOn},
}

FILES = ("preprocessed", "splits", "dataset_json", "plans")
"""AnatoMask's explicit inputs."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pretraining run.

    Attributes:
        dataset: number or name, as for ``nnUNetv2_train``.
        configuration: configuration of the plans.
        fold: ``all``, or a number.
        plans: name of the plans.
        method: name of the method.
        recipe: whose values the settings of method and crops take that are not set: ``default``, or ``published``;
            where they differ is in ``published`` of the method's config.
        network: ``plans``, another name of :data:`~ssl_pretrain.NETWORKS`, or ``package.module:Class``.
        network_settings: fields of the network's size that differ from the published one, such as ``depth``.
        output_folder: where results go; None for nnU-Net's place in ``nnUNet_results``.
        epochs: epochs of the run.
        iters: optimiser steps per epoch.
        val_iters: validation batches per epoch.
        batch_size: samples per step and device; None for the plans'.
        patch_size: voxels per axis; None for the plans'.
        seed: of everything random.
        num_workers: reading processes; None for what nnU-Net would use, at most 8.
        device: ``cuda``, ``cpu`` or ``mps``.
        num_gpus: GPUs per node; on the CPU, processes.
        num_nodes: nodes.
        precision: ``auto`` is bf16 on GPUs that have it, else 16 with loss scaling; 32 on the CPU.
        pretrained_weights: file to start from.
        fix_nnssl_axes: that file is of a trainer of nnssl that exchanges two axes of a Primus' positions.
        export: ``encoder``: the checkpoint's decoder is as it was before training; ``all``: what was trained.
        use: ``labeled`` cases, ``unlabeled`` ones, or ``all`` that are preprocessed.
        datasets: numbers or names of the datasets to draw from, preprocessed with the same plans; none for ``dataset``
            alone.
        balance: what is drawn with equal probability: ``cases``, ``datasets`` or ``subjects``.
        filters: what cases must be like, such as ``modality=T1w,T2w`` and ``quality<=3``.
        augment_on: ``loader`` rotates and scales crops in the reading processes, ``device`` a whole batch on the GPU.
        picture_every: epochs between pictures of a fixed validation crop.
        files: AnatoMask's explicit inputs instead of a dataset number; None otherwise.
        task: settings of the method.
        crops: settings of sampling and augmentation.
    """

    dataset: str
    configuration: str = "3d_fullres"
    fold: str = "all"
    plans: str = "nnUNetPlans"
    method: str = "AnatoMask"
    recipe: RecipeName = "default"
    network: str = "plans"
    network_settings: dict[str, int] = field(default_factory=dict)
    output_folder: str | None = None
    epochs: int = 1000
    iters: int = 250
    val_iters: int = 50
    batch_size: int | None = None
    patch_size: Triple | None = None
    seed: int = 0
    num_workers: int | None = None
    device: Device = "cuda"
    num_gpus: int = 1
    num_nodes: int = 1
    precision: Precision = "auto"
    pretrained_weights: str | None = None
    fix_nnssl_axes: bool = False
    export: Export = "all"
    use: Use = "all"
    datasets: tuple[str, ...] = ()
    balance: Balance = "cases"
    filters: tuple[str, ...] = ()
    augment_on: AugmentOn = "loader"
    picture_every: int = 50
    files: dict[str, str] | None = None
    task: OptimizerConfig = field(default=None)  # type: ignore[assignment]
    crops: CropConfig = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("dataset", "fold"):
            object.__setattr__(self, name, str(getattr(self, name)))
        if self.patch_size is not None:
            object.__setattr__(self, "patch_size", as_triple(self.patch_size, "patch_size"))
        for name, kind in CHOICES.items():
            if getattr(self, name) not in typing.get_args(kind):
                raise ValueError(
                    f"{name} must be one of {', '.join(typing.get_args(kind))}, got {getattr(self, name)!r}."
                )
        expected = find_method(self.method).Config
        for name, part in (("task", expected), ("crops", CropConfig)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, part(**_published(part, expected, self.recipe)))
        if type(self.task) is not expected:
            raise ValueError(f"{self.method} is configured by {expected.__name__}, got {type(self.task).__name__}.")
        for name in ("epochs", "iters", "val_iters", "num_gpus", "num_nodes", "picture_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("batch_size", "num_workers", "seed"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "batch_size" else 0):
                raise ValueError(f"{name} is too small: {value}.")
        for name in ("datasets", "filters"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        parse_filters(self.filters)
        if self.fix_nnssl_axes and self.pretrained_weights is None:
            raise ValueError(
                "fix_nnssl_axes is about the file of -pretrained_weights, and none is given. Leave it out."
            )
        if self.fold != "all" and not (self.fold.isascii() and self.fold.isdecimal()):
            raise ValueError(f"FOLD must be 'all' or a number from 0 on, got {self.fold!r}.")
        if self.files is not None and set(self.files) != set(FILES):
            raise ValueError(f"files must have {', '.join(FILES)}, got {', '.join(self.files) or 'none'}.")

    def with_settings(self, settings: Mapping[str, Any]) -> PretrainConfig:
        """A copy with ``NAME=VALUE`` settings of the method or of the crops changed (``-set``).

        Raises:
            ValueError: unknown name, or a value of the wrong type; lists what there is.
        """
        changed: dict[str, dict[str, Any]] = {"task": {}, "crops": {}}
        for name, value in settings.items():
            part = next((p for p in changed if name in _types_of(getattr(self, p))), None)
            if part is None:
                known = sorted({*_types_of(self.task), *_types_of(self.crops)})
                raise ValueError(
                    f"Unknown setting {name!r} of {self.method}. There: {', '.join(known)} (-set NAME=VALUE)."
                )
            changed[part][name] = convert(name, value, _types_of(getattr(self, part))[name])
        return replace(self, task=replace(self.task, **changed["task"]), crops=replace(self.crops, **changed["crops"]))

    def recipe_text(self) -> str:
        """The recipe, with the values here of all settings in which the published one differs, as text."""
        values = {**vars(self.crops), **vars(self.task)}
        settings = ", ".join(f"{name}={values[name]}" for name in self.task.published)
        return f"recipe {self.recipe}" + (f": {settings}" if settings else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PretrainConfig:
        """The inverse of :meth:`to_dict`; what is missing takes its default.

        Raises:
            ValueError: unknown keys or values of the wrong type.
        """
        known = _types_of(cls)
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise ValueError(f"Unknown settings {', '.join(unknown)}. There: {', '.join(known)}.")
        method = find_method(str(content.get("method", cls.method))).Config
        parts = {"task": method, "crops": CropConfig}
        values: dict[str, Any] = {}
        for name, value in content.items():
            if name in parts and isinstance(value, Mapping):
                # A run from before there were recipes, which its file would name.
                older = method.older if name == "task" and "files" in content and "recipe" not in content else {}
                value = {**older, **_published(parts[name], method, content.get("recipe")), **value}
            values[name] = _build(parts[name], value) if name in parts else convert(name, value, known[name])
        if "dataset" not in values:
            raise ValueError("The configuration does not say which dataset.")
        return cls(**values)

    @classmethod
    def from_file(cls, file: Path) -> PretrainConfig:
        """Read the ``config.json`` of a run.

        Raises:
            ValueError, FileNotFoundError: the file is missing or wrong; names it.
        """
        content = read_settings(file)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def differences(self, other: PretrainConfig) -> dict[str, tuple[Any, Any]]:
        """Settings in which a continued run must not differ but does: name -> (here, there)."""
        ours, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        names = sorted(set(ours) | set(theirs))
        return {n: (ours.get(n), theirs.get(n)) for n in names if n not in MAY_CHANGE and ours.get(n) != theirs.get(n)}


def convert(name: str, value: Any, kind: Any) -> Any:
    """A value from the command line or from JSON as the type of its field.

    Raises:
        ValueError: it is not of that type; names the setting, the value and what is expected.
    """
    for option in _options(kind):
        if typing.get_origin(option) is dict and isinstance(value, Mapping):
            kind_of_value = typing.get_args(option)[1]
            return {str(key): convert(f"{name}.{key}", entry, kind_of_value) for key, entry in value.items()}
        try:
            return _as_type(value, option)
        except (OverflowError, TypeError, ValueError):
            continue
    raise ValueError(f"Setting {name}={value!r} is not {_type_name(kind)}.")


def _as_type(value: Any, kind: Any) -> Any:
    if kind is type(None):
        if value is None or value == "None":
            return None
        raise ValueError
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError
    if origin is tuple:
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(_as_type(part, kinds[0]) for part in ([value] if isinstance(value, str) else value))
        parts = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        parts = parts * 3 if len(parts) == 1 and len(kinds) == 3 else parts
        return tuple(_as_type(p, k) for p, k in zip(parts, kinds, strict=True))
    if origin is dict:
        kind_of_value = typing.get_args(kind)[1]
        return {str(name): _as_type(entry, kind_of_value) for name, entry in dict(value).items()}
    return _as_scalar(value, kind)


def _as_scalar(value: Any, kind: Any) -> Any:
    if kind is bool:
        text = str(value).lower()
        if text in ("true", "1", "yes", "false", "0", "no"):
            return text in ("true", "1", "yes")
        raise ValueError
    if kind is int and (isinstance(value, bool) or (isinstance(value, float) and value != int(value))):
        raise ValueError
    if kind is str and not isinstance(value, str):
        raise ValueError
    return kind(value)


def _options(kind: Any) -> Sequence[Any]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _type_name(kind: Any) -> str:
    names = []
    for option in _options(kind):
        if typing.get_origin(option) is Literal:
            names.append("one of " + ", ".join(typing.get_args(option)))
        elif typing.get_origin(option) is tuple and Ellipsis in typing.get_args(option):
            names.append("a list")
        elif typing.get_origin(option) is tuple:
            names.append(f"{len(typing.get_args(option))} numbers")
        else:
            names.append(
                {int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}.get(
                    option, "text"
                )
            )
    return " or ".join(names)


def _types_of(config: Any) -> dict[str, Any]:
    """Field name -> type of a dataclass or one of its instances."""
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    return {f.name: hints[f.name] for f in fields(config)}


def _published(part: type, method: type[OptimizerConfig], recipe: Any) -> dict[str, Any]:
    """Values that a recipe gives to the settings of a part, the method's or the crops'."""
    return {n: v for n, v in method.published.items() if n in _types_of(part)} if recipe == "published" else {}


def _build(cls: type[T], content: Any) -> T:
    """A dataclass from a mapping of its fields, checked."""
    if isinstance(content, cls):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(f"The settings of {cls.__name__} must be an object, got {content!r}.")
    known = _types_of(cls)
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"Unknown settings {', '.join(unknown)} of {cls.__name__}. There: {', '.join(known)}.")
    return cls(**{name: convert(name, value, known[name]) for name, value in content.items()})


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat
