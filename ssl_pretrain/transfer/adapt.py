"""Weights for another dataset or other plans, as a file that nnU-Net's own loader takes as it is."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ssl_pretrain.files import check_plan_names, save_atomic
from ssl_pretrain.functional.geometry import as_triple
from ssl_pretrain.networks.anatomy import unwrap
from ssl_pretrain.networks.registry import NETWORKS
from ssl_pretrain.networks.trust import refuse_foreign_code
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint, installed_versions
from ssl_pretrain.transfer.extension import VARIABLE, trainer_environment
from ssl_pretrain.transfer.hook import FUNCTION
from ssl_pretrain.transfer.images import images_of_plans
from ssl_pretrain.transfer.load import Report, load_pretrained
from ssl_pretrain.transfer.matching import slots_of
from ssl_pretrain.transfer.model_card import CARD, CONFIG, PLANS, REPORT, WEIGHTS
from ssl_pretrain.transfer.plans import resolve_configuration
from ssl_pretrain.transfer.recognition import Built, recognise
from ssl_pretrain.transfer.safetensors_file import ENTRIES, SUFFIX, load_safetensors, save_safetensors
from ssl_pretrain.transfer.sources.base import tensors_of
from ssl_pretrain.transfer.sources.hub import is_reference
from ssl_pretrain.transfer.sources.pickles import open_pickle
from ssl_pretrain.transfer.weights_file import WeightsFile, read_weights

STOCK_TRAINER = "nnUNetTrainer"
FORMATS = (".pth", SUFFIX)

PASSED_ON = ("method", "epoch", "seed", "versions")
"""Of a source's entry ``pretraining``, what is as true of the adapted weights."""

REPLACED = ("network", "plans", "configuration", "patch_size", "input_channels", "adaptation")
"""What is not, because it says which network the tensors are of; it is kept as what the source was."""


@dataclass(frozen=True)
class FineTuningTarget:
    """What nnU-Net is going to fine-tune.

    Attributes:
        plans: the plans file.
        dataset: the dataset's ``dataset.json``.
        configuration: name of a configuration of the plans.
        trainer: name of the trainer's class.
        trust_plans: whether the plans may name code of packages that we do not know, see
            :func:`~ssl_pretrain.networks.trust.refuse_foreign_code`.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: str
    trainer: str = STOCK_TRAINER
    trust_plans: bool = False


@dataclass(frozen=True)
class Adapted:
    """A file's weights in the network of a target.

    Attributes:
        content: what ``checkpoint_final.pth`` holds, see ``documentation/explanation/checkpoint-format.md``.
        report: what became of every tensor.
    """

    content: dict[str, Any]
    report: Report


def adapt_weights(
    source: str | Path,
    target: FineTuningTarget,
    *,
    channels: Sequence[int] | None = None,
    strict: bool = False,
    fix_nnssl_axes: bool = False,
    seed: int = 0,
) -> Adapted:
    """Load a file into the network that nnU-Net will fine-tune, and describe the result as our checkpoints are.

    Every tensor of that network is in the result, so nnU-Net's own ``-pretrained_weights`` takes it: what the file does
    not give is as nnU-Net initialises it with this seed.

    Args:
        source: whatever :func:`~ssl_pretrain.load_pretrained` opens.
        target: what nnU-Net is going to fine-tune; its dataset must be preprocessed.
        channels: see :func:`~ssl_pretrain.load_pretrained`, as ``strict`` and ``fix_nnssl_axes``.
        strict: refuse anything but an exact fit.
        fix_nnssl_axes: the file is of a trainer of nnssl that swaps two axes of its positions.
        seed: of the tensors that stay fresh.

    Raises:
        FileNotFoundError: no such file, or folders of nnU-Net that are not there.
        ValueError: an unknown trainer, one that cannot build the network, or a file that does not fit.
    """
    weights = read_weights(source, fix_nnssl_axes=fix_nnssl_axes)
    built = build_target(target, seed)
    images = images_of_plans(target.plans, target.configuration)
    report = load_pretrained(built.network, weights, channels=channels, strict=strict, images=images)
    taken = {entry.name for entry in (*report.loaded, *report.adapted)}
    pretrained = {id(slot.tensor) for slot in slots_of(built.network) if slot.names[0] in taken}
    said = {
        "file": str(source) if is_reference(source) else Path(source).name,
        "origin": weights.origin,
        "dataset": target.plans.get("dataset_name"),
        "trainer": target.trainer,
        "channels": list(channels) if channels is not None else None,
        "strict": strict,
        "fix_nnssl_axes": fix_nnssl_axes,
        "seed": seed,
        "fraction": report.fraction,
        "versions": installed_versions(),
    }
    return Adapted(_content(built, pretrained, target, _about(weights), said), report)


def _about(weights: WeightsFile) -> dict[str, Any]:
    """What a file says besides its tensors, as far as checkpoints say it."""
    return {name: weights.metadata[name] for name in ENTRIES if name in weights.metadata}


def _content(
    built: Built, pretrained: set[int], target: FineTuningTarget, origin: Mapping[str, Any], said: dict[str, Any]
) -> dict[str, Any]:
    """The checkpoint of the target's network: about the tensors what is true now, about the training what was."""
    name, backbone = recognise(built)
    source = dict(origin.get("pretraining") or {})
    config = dict(source.get("config") or {})
    if config.get("network_settings"):
        # They are in the plans, or the network would not have been recognised.
        said["network_settings"] = config.pop("network_settings")
    provenance = Provenance(
        method=str(source.get("method", "")),
        network=name or "",
        config=config,
        plans=target.plans,
        configuration=target.configuration,
        patch=built.patch,
        citations=tuple(source.get("citations") or _citations(origin)),
        epoch=0,
        seed=0,
    )
    content = build_checkpoint(backbone, pretrained, provenance)
    said["source"] = {entry: source[entry] for entry in REPLACED if entry in source}
    if not source and "nnssl_adaptation_plan" in origin:
        said["source"]["nnssl_adaptation_plan"] = origin["nnssl_adaptation_plan"]
    pretraining = {**content["pretraining"], **{entry: source.get(entry) for entry in PASSED_ON}, "adaptation": said}
    if name is None:
        # Whoever wants to build this network is told its class in nnssl_adaptation_plan.
        del pretraining["network"]
    return {
        "network_weights": content["network_weights"],
        "nnssl_adaptation_plan": content["nnssl_adaptation_plan"],
        "pretraining": pretraining,
        **{entry: origin[entry] for entry in ("citations", "trainer_name") if entry in origin},
    }


def _citations(origin: Mapping[str, Any]) -> Iterator[str]:
    for entry in origin.get("citations") or ():
        yield from entry.get("apa_citations", ())


def read_content(source: str | Path, *, fix_nnssl_axes: bool = False) -> dict[str, Any]:
    """All tensors of a file under ``network_weights``, fresh ones of ours included, and what the file says of them.

    Args:
        source: whatever :func:`~ssl_pretrain.load_pretrained` opens.
        fix_nnssl_axes: see there.

    Raises:
        FileNotFoundError, ValueError: see :func:`~ssl_pretrain.transfer.weights_file.read_weights`.
    """
    weights = read_weights(source, fix_nnssl_axes=fix_nnssl_axes)
    tensors, file = weights.tensors, weights.file
    if weights.ours:
        # Of our own files, readers hand on only what is pretrained.
        tensors = tensors_of(load_safetensors(file) if file.suffix == SUFFIX else open_pickle(file))
    return {"network_weights": tensors, **_about(weights)}


def check_output(output: Path, source: str | Path, *, folder: bool = False) -> None:
    """Refuse a place to write to before anything is computed.

    Args:
        output: the file, or the folder.
        source: the file of weights that is read.
        folder: whether a folder with a model card is to be written.

    Raises:
        ValueError: an ending that is no format, the source itself, or a place that is taken; says what to do.
    """
    if folder:
        places = [output / name for name in (CARD, WEIGHTS, CONFIG, PLANS, REPORT)]
        taken = output if output.is_file() else next((place for place in places if place.exists()), None)
        if taken is not None:
            raise ValueError(f"{taken} is there already and may be edited: remove or rename it, or choose another -o.")
        return
    if output.suffix not in FORMATS:
        raise ValueError(f"{output} must end in {' or '.join(FORMATS)}: that is how the format is chosen.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder. Name a file, or write a folder for the Hub with --model_card.")
    if not is_reference(source) and output.resolve() == Path(source).resolve():
        raise ValueError(f"{output} is the file that is read. Choose another name for what is written.")


def save_content(content: Mapping[str, Any], file: Path) -> None:
    """Write what ``checkpoint_final.pth`` holds, in the format that the file's ending names.

    Raises:
        OSError: the file cannot be written; what was there is intact.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == SUFFIX:
        save_safetensors(content, file)
    else:
        save_atomic(dict(content), file)


def build_target(target: FineTuningTarget, seed: int = 0) -> Built:
    """Let nnU-Net build and initialise the network of a target, as at the start of a training; nothing is written.

    Raises:
        FileNotFoundError: folders of nnU-Net that are not there.
        ValueError: an unknown trainer, one that cannot build the network, or plans that name code that is not trusted
            or a place elsewhere.
    """
    check_target(target)
    # A trainer makes a folder for its results, logs into it, and greets.
    with TemporaryDirectory() as scratch, _only_looking(scratch), redirect_stdout(io.StringIO()):
        trainer_class = _find_trainer(target.trainer)
        plans = {**copy.deepcopy(dict(target.plans)), "continue_training": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                trainer = trainer_class(plans, target.configuration, 0, dict(target.dataset), torch.device("cpu"))
                trainer.initialize()
            except (TypeError, ImportError, AttributeError, KeyError, AssertionError, RuntimeError) as error:
                own = dict.fromkeys(row.trainer for row in NETWORKS.values() if row.kind == "transformer")
                raise ValueError(
                    f"{target.trainer} cannot build the network of {target.configuration} in "
                    f"{target.plans.get('plans_name')} ({type(error).__name__}: {error}). Networks that need to know "
                    f"the patch size want their own trainer: {', '.join(f'-tr {name}' for name in own)}."
                ) from error
    configuration = trainer.configuration_manager
    patch = as_triple(list(configuration.patch_size), "patch_size in the plans")
    return Built(
        network=unwrap(trainer.network),
        architecture=configuration.configuration["architecture"],
        input_channels=int(trainer.num_input_channels),
        num_classes=int(trainer.label_manager.num_segmentation_heads),
        patch=patch,
        trust_plans=target.trust_plans,
    )


def check_target(target: FineTuningTarget) -> None:
    """Refuse plans that would make nnU-Net run other code than that of well-known packages, or write elsewhere.

    Raises:
        ValueError: see :func:`~ssl_pretrain.networks.trust.refuse_foreign_code` and
            :func:`~ssl_pretrain.files.check_plan_names`.
    """
    plans = Path(f"plans {target.plans.get('plans_name')}")
    check_plan_names(target.plans, plans)
    resolved = resolve_configuration(dict(target.plans), target.configuration, plans)
    # Plans older than nnU-Net 2.5 name no classes: nnU-Net knows the two that there were.
    refuse_foreign_code(resolved.get("architecture") or {}, trust_plans=target.trust_plans)


def _find_trainer(name: str) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"-tr {name}: there is no trainer of that name in nnU-Net nor in the folders of {VARIABLE} "
            f"({os.environ.get(VARIABLE)}). Correct the name, or add the folder of your trainer to {VARIABLE}."
        ) from error


@contextmanager
def _only_looking(results: str) -> Iterator[None]:
    """Let a trainer be made without a trace: its results go elsewhere, and the loader that ours install goes again."""
    from nnunetv2.run import run_training

    loader = getattr(run_training, FUNCTION)
    # nnU-Net reads its variables whenever it needs a path.
    changes = {VARIABLE: trainer_environment()[VARIABLE], "nnUNet_results": results, "nnUNet_wandb_enabled": "0"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        setattr(run_training, FUNCTION, loader)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
