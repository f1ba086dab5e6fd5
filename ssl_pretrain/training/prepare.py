"""From a configuration to everything a run needs, with every check that can be made before the first step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.data.cases import MaskKind
from ssl_pretrain.data.environment import check_environment
from ssl_pretrain.data.filters import parse_filters
from ssl_pretrain.data.locate import DatasetFiles, Plan, environment_folder, locate, locate_explicit
from ssl_pretrain.data.memory import check_shared_memory
from ssl_pretrain.data.module import CropData
from ssl_pretrain.data.selection import Selection, check_agreement, select
from ssl_pretrain.files import check_name
from ssl_pretrain.functional.geometry import Triple, check_patch
from ssl_pretrain.functional.views import Views
from ssl_pretrain.methods import Method, MethodSetup, RunLength, build_method
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.sparse.spconv_conv import require_spconv
from ssl_pretrain.transfer.images import images_of_plans
from ssl_pretrain.transfer.load import load_pretrained

MOST_WORKERS = 8


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        config: with batch size, patch size and workers filled in.
        files: what is read.
        plan: what the plans say.
        cases: to train and validate on.
        method: the LightningModule.
        data: the LightningDataModule.
        folder: where results go.
        untrained: decoder as it was before training, by key, where it is to be exported so.
    """

    config: PretrainConfig
    files: DatasetFiles
    plan: Plan
    cases: Selection
    method: Method
    data: CropData
    folder: Path
    untrained: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def patch(self) -> Triple:
        """Voxels per axis."""
        return self.method.patch


def prepare(config: PretrainConfig, *, resume: bool = False, trust_plans: bool = False, dry: bool = False) -> Run:
    """Find the data, build network and method, check that everything fits.

    Nothing is written but ``splits_final.json`` where nnU-Net would write it too, and the index of the cases. Where the
    dataset's folder cannot be written to, they go into the output folder. The global random state is seeded.

    Args:
        config: every setting of the run.
        resume: whether it is continued: ``pretrained_weights`` are not read again then, its checkpoint has them.
        trust_plans: see :func:`~ssl_pretrain.pretrain`.
        dry: whether nothing goes into the output folder.

    Raises:
        ValueError, FileNotFoundError: bad input; the message names the value, the rule and the remedy.
    """
    check_environment()
    check_device(config)
    files, plan = find(config)
    folder = output_folder(config, files, plan)
    datasets = find_all(config, (files, plan))
    if not dry:
        files = with_spare(files, folder)
        datasets = [(with_spare(other, folder), theirs) for other, theirs in datasets]
    patch = config.patch_size or plan.patch
    config = replace(
        config,
        # The name, so that a run can be continued by number or by name.
        dataset=config.dataset if config.files else files.name,
        datasets=tuple(other.name for other, _ in datasets) if config.datasets else (),
        patch_size=patch,
        batch_size=config.batch_size or plan.batch_size,
        num_workers=default_workers() if config.num_workers is None else config.num_workers,
    )
    check_agreement([(files, plan), *datasets])
    cases = select(
        datasets,
        fold=config.fold,
        use=config.use,
        filters=parse_filters(config.filters),
        balance=config.balance,
        masks=_masks(config),
    )
    method = _method(config, plan, files.plans, cases.train.median_shape(), resume, trust_plans)
    _check_amounts(config, method, cases)
    data = _data(config, cases, method.sample_views)
    check_shared_memory(data.shared_bytes(plan.input_channels) * config.num_gpus)
    return Run(
        config,
        files,
        plan,
        cases,
        method,
        data,
        folder,
        _untrained(config, method),
    )


def with_spare(files: DatasetFiles, folder: Path) -> DatasetFiles:
    """The files of a dataset, with a place in the output folder for what cannot be written beside them."""
    return replace(files, spare=folder / "nnUNet_preprocessed" / check_name(files.name, "dataset"))


def find(config: PretrainConfig) -> tuple[DatasetFiles, Plan]:
    """The files of the dataset and what its plans say."""
    if config.files is None:
        return locate(config.dataset, config.configuration, config.plans, cascades=False)
    paths = {name: Path(value) for name, value in config.files.items()}
    return locate_explicit(**paths, configuration=config.configuration, cascades=False)


def find_all(config: PretrainConfig, main: tuple[DatasetFiles, Plan]) -> list[tuple[DatasetFiles, Plan]]:
    """The datasets to draw cases from: those of ``-datasets``, or the one that gives the plans."""
    if not config.datasets:
        return [main]
    found = {name: locate(name, config.configuration, config.plans, cascades=False) for name in config.datasets}
    return list({files.name: (files, plan) for files, plan in found.values()}.values())


def _masks(config: PretrainConfig) -> list[MaskKind]:
    """The masks that the settings ask for."""
    wanted: dict[MaskKind, bool] = {
        "anonymization": config.crops.ignore_anonymized,
        "anatomy": config.crops.sample_in == "anatomy",
    }
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


def output_folder(config: PretrainConfig, files: DatasetFiles, plan: Plan) -> Path:
    """Where results go: ``-o``, or nnU-Net's place for the dataset.

    Raises:
        ValueError: neither ``-o`` nor ``nnUNet_results`` is given.
    """
    if config.output_folder is not None:
        return Path(config.output_folder)
    # A colon is not allowed in file names on Windows.
    network = config.network.replace(":", ".")
    name = f"{config.method}__{network}__{plan.name}__{plan.configuration}"
    check_name(name, "output folder of this method, network, plans and configuration,")
    return environment_folder("nnUNet_results") / check_name(files.name, "dataset") / name / f"fold_{config.fold}"


def check_device(config: PretrainConfig) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: names what is there instead.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        other = "mps or cpu" if torch.backends.mps.is_available() else "cpu"
        raise ValueError(f"-device cuda: PyTorch {torch.__version__} finds no CUDA device here. Use -device {other}.")
    if config.device == "cuda" and config.num_gpus > torch.cuda.device_count():
        raise ValueError(f"-num_gpus {config.num_gpus}: there are {torch.cuda.device_count()} on this machine.")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("-device mps: this machine has no Metal device. Use -device cpu.")
    if config.device == "cpu" and config.precision == "16":
        raise ValueError("-precision 16 needs a GPU. Use -precision 32 or bf16 with -device cpu.")
    if getattr(config.task, "sparse", None) == "spconv":
        require_spconv(torch.device(config.device))
    if config.device == "mps" and config.num_gpus * config.num_nodes > 1:
        raise ValueError("-num_gpus and -num_nodes need -device cuda or cpu, got mps.")


def default_workers() -> int:
    """As many reading processes as nnU-Net would use (``nnUNet_n_proc_DA``), at most 8."""
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    # Of a job that may use a part of the machine, the part counts.
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(get_allowed_n_proc_DA(), MOST_WORKERS, here))


def _method(
    config: PretrainConfig, plan: Plan, plans_file: Path, case_shape: Triple, resume: bool, trust_plans: bool
) -> Method:
    torch.manual_seed(config.seed)
    patch = config.patch_size or plan.patch
    try:
        backbone = build_backbone(
            config.network,
            architecture=plan.architecture,
            input_channels=plan.input_channels,
            num_classes=plan.num_classes,
            patch=patch,
            settings=config.network_settings,
            trust_plans=trust_plans,
        )
        check_patch(patch, backbone.feature_maps[-1].stride)
    except ValueError as error:
        if config.network != "plans":
            raise
        raise ValueError(f"{error} The network is that of {plans_file}.") from error
    if patch == backbone.feature_maps[-1].stride and backbone.normalises_over_space:
        raise ValueError(
            f"Patch size {patch} leaves a single voxel of the network's coarsest map (total stride {patch}), which has "
            "no statistics to normalise by. Double it along some axis (-patch_size D H W)."
        )
    # A checkpoint has them. The decoder that is exported untrained is not in it.
    if config.pretrained_weights is not None and (not resume or config.export == "encoder"):
        images = images_of_plans(plan.plans, plan.configuration)
        axes = config.fix_nnssl_axes
        load_pretrained(backbone.network, config.pretrained_weights, fix_nnssl_axes=axes, images=images)
    length = RunLength(config.epochs, config.iters, config.batch_size or plan.batch_size)
    setup = MethodSetup(backbone=backbone, patch=patch, length=length, seed=config.seed, case_shape=case_shape)
    return build_method(config.method, config.task, setup)


def _untrained(config: PretrainConfig, method: Method) -> dict[str, Tensor]:
    """What ``-export encoder`` gives in place of a trained decoder: that which the run began with."""
    if config.export == "all":
        return {}
    weights = method.backbone.network.state_dict()
    return {key: weights[key].detach().clone() for key in method.backbone.decoder_keys}


def _check_amounts(config: PretrainConfig, method: Method, cases: Selection) -> None:
    """Refuse too few cases, or too few samples per step, for the pretext task.

    Raises:
        ValueError: names the numbers.
    """
    name, samples = type(method).__name__, method.length.batch_size * config.num_gpus * config.num_nodes
    if len(cases.train) < method.fewest_cases:
        raise ValueError(
            f"{name} needs crops of at least {method.fewest_cases} different cases to train on, there "
            f"{'is' if len(cases.train) == 1 else 'are'} {len(cases.train)}. Add cases, or choose another method (-m)."
        )
    if samples < method.fewest_samples:
        raise ValueError(
            f"{name} compares samples and needs at least {method.fewest_samples} per step; there "
            f"{'is' if samples == 1 else 'are'} {samples}. Use a larger -batch_size: the more, the better."
        )


def _data(config: PretrainConfig, cases: Selection, views: Views) -> CropData:
    assert config.patch_size and config.batch_size and config.num_workers is not None
    return CropData(
        cases.train,
        cases.validation,
        config.patch_size,
        config.crops,
        batch_size=config.batch_size,
        iterations=config.iters,
        val_iterations=config.val_iters,
        seed=config.seed,
        num_workers=config.num_workers,
        accumulate=config.task.accumulate,
        augment_on=config.augment_on,
        pinned=config.device == "cuda",
        views=views,
    )
