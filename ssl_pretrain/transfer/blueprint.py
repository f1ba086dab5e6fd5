"""Which network a file of weights is of, and how its images were prepared: what the file alone tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple, as_triple
from ssl_pretrain.networks.base import Backbone
from ssl_pretrain.networks.dotted import is_layer
from ssl_pretrain.networks.registry import NETWORKS, build_backbone
from ssl_pretrain.networks.resenc import OPENMIND
from ssl_pretrain.transfer.plans import resolve_configuration
from ssl_pretrain.transfer.sources.pickles import first_line

CLASSES = {path.rpartition(".")[2]: path for row in NETWORKS.values() for path in row.paths}
"""Networks that an ``nnssl_adaptation_plan`` names by their class alone, with their arguments beside it."""

NAMES = {f"NoSkip{OPENMIND}": OPENMIND}
"""Names of nnssl for networks whose encoder is one of ours."""

LARGEST_SIZE = 100_000
"""Channels, layers, heads, voxels along an axis: whatever a network is described by."""

MODULES_PER_TENSOR, FEWEST_MODULES = 10, 10_000
NUMBERS_PER_NUMBER, FEWEST_NUMBERS = 4, 2**26
"""How much a network may have, for each tensor and each number in its file and anyhow: a file may lack the decoder."""

KNOWN = re.compile(r"dynamic_network_architectures\.(architectures|building_blocks)\.\w+\.[A-Z]\w*")
"""Dotted paths of classes in a package that holds nothing but networks."""


@dataclass(frozen=True)
class Blueprint:
    """What a network was built from, and what its images were.

    Attributes:
        network: what ``-network`` calls it.
        architecture: ``architecture`` entry of the plans' configuration.
        input_channels: channels of the image.
        patch: voxels of the patch of pretraining.
        settings: fields of the network's size that differ from the published one.
        spacing: mm per voxel along (D, H, W); None where the file does not say.
        normalization: nnU-Net's schemes, one per channel.
        about: the entry of the file that says all this.
        trust_plans: whether the architecture may name code of any package.
    """

    network: str
    architecture: Mapping[str, Any]
    input_channels: int
    patch: Triple
    settings: Mapping[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    normalization: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    trust_plans: bool = False

    def check_size(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a network that is far larger than what the file has of it, before memory is taken for it.

        Args:
            file: for messages.
            tensors: of the file.

        Raises:
            ValueError: too large, or it cannot be built.
        """
        if ":" in self.network:
            return  # trusted code
        _check_numbers([self.architecture, self.settings, self.patch, self.input_channels], file)
        growth = _Growth(file, tensors)
        registrations = (
            nn.modules.module.register_module_module_registration_hook,
            nn.modules.module.register_module_parameter_registration_hook,
            nn.modules.module.register_module_buffer_registration_hook,
        )
        handles = [register(growth) for register in registrations]
        try:
            with torch.device("meta"):
                self.build()
        except (RuntimeError, OverflowError) as error:
            raise ValueError(f"{file} describes a network that cannot be built: {first_line(error)}.") from error
        finally:
            for handle in handles:
                handle.remove()

    def build(self) -> Backbone:
        """The network, with freshly initialised weights and two classes; random numbers elsewhere stay as they were.

        Raises:
            ValueError: see :func:`ssl_pretrain.networks.build_backbone`.
        """
        with torch.random.fork_rng(devices=[]):
            return build_backbone(
                self.network,
                architecture=self.architecture,
                input_channels=self.input_channels,
                num_classes=2,
                patch=self.patch,
                settings=self.settings,
                trust_plans=self.trust_plans,
            )


class _Growth:
    """What a network has become while it is built: PyTorch calls this for every module, parameter and buffer.

    Args:
        file: for messages.
        tensors: of the file.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file, self.modules, self.numbers = file, 0, 0
        self.held = sum(tensor.numel() for tensor in tensors.values())
        self.most_modules = MODULES_PER_TENSOR * len(tensors) + FEWEST_MODULES
        self.most_numbers = NUMBERS_PER_NUMBER * self.held + FEWEST_NUMBERS

    def __call__(self, _module: nn.Module, _name: str, added: Any) -> None:
        if isinstance(added, Tensor):
            self.numbers += added.numel()
        else:
            self.modules += 1
        if self.modules > self.most_modules or self.numbers > self.most_numbers:
            size = f"{self.modules} modules and {self.numbers / 1e6:.0f} million numbers"
            raise ValueError(
                f"{self.file} says that it is of a network of {size} at least, and has {self.held / 1e6:.1f} "
                "million: it is damaged or malicious. Download it again from a place that you trust, or build the "
                "network yourself and load it: load_pretrained(network, file)."
            )


def blueprint_of(metadata: Mapping[str, Any], file: Path, *, trust_code: bool = False) -> Blueprint:
    """Read which network a file is of.

    Args:
        metadata: what the file holds besides its tensors: ``pretraining`` as ours do, or ``nnssl_adaptation_plan``.
        file: for messages.
        trust_code: whether the file may name code to import: a network of the user's own, or one that we do not know.

    Raises:
        ValueError: the file does not say which network it is of, says it incompletely, or names code.
    """
    pretraining, plan = metadata.get("pretraining"), metadata.get("nnssl_adaptation_plan")
    try:
        if isinstance(pretraining, Mapping) and "network" in pretraining:
            made = _from_pretraining(pretraining, plan if isinstance(plan, Mapping) else {}, file)
        elif isinstance(plan, Mapping):
            made = _from_plan(plan, file)
        else:
            raise ValueError(
                f"{file} does not say which network its weights are of: it has neither our entry 'pretraining' nor an "
                "'nnssl_adaptation_plan'. Build the network yourself and load it: load_pretrained(network, file)."
            )
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(
            f"{file} says which network it is of, but incompletely ({type(error).__name__}: {error}). Build the "
            "network yourself and load it: load_pretrained(network, file)."
        ) from error
    if trust_code:
        return replace(made, trust_plans=True)
    _refuse_code(made, file)
    return made


def _from_pretraining(pretraining: Mapping[str, Any], plan: Mapping[str, Any], file: Path) -> Blueprint:
    network = pretraining["network"]
    resolved = resolve_configuration(pretraining["plans"], pretraining["configuration"], file)
    architecture = resolved.get("architecture", {})
    if not architecture and ":" not in network:
        # Plans older than nnU-Net 2.5 have no such entry; what was built from them is in nnssl's.
        architecture = _architecture(plan["architecture_plans"], file)
    return Blueprint(
        network=network,
        architecture=architecture,
        input_channels=int(pretraining["input_channels"]),
        patch=as_triple(list(pretraining["patch_size"]), f"patch_size in {file}"),
        settings=dict(pretraining["config"].get("network_settings", {})),
        about=pretraining,
        **_preparation(resolved),
    )


def _from_plan(plan: Mapping[str, Any], file: Path) -> Blueprint:
    described, prepared = plan["architecture_plans"], plan["pretrain_plan"]
    configuration = next(iter(prepared["configurations"].values()))
    name = NAMES.get(described["arch_class_name"], described["arch_class_name"])
    by_name = name in NETWORKS and not described.get("arch_kwargs")
    patch = configuration.get("patch_size") or plan["recommended_downstream_patchsize"]
    return Blueprint(
        network=name if by_name else "plans",
        architecture={} if by_name else _architecture(described, file),
        input_channels=int(plan["pretrain_num_input_channels"]),
        patch=as_triple(list(patch), f"patch_size in {file}"),
        about=plan,
        **_preparation(configuration),
    )


def _architecture(described: Mapping[str, Any], file: Path) -> dict[str, Any]:
    name = described["arch_class_name"]
    if name not in CLASSES:
        raise ValueError(
            f"{file} is of the network {name!r}, which we cannot build. Known: "
            f"{', '.join(dict.fromkeys((*CLASSES, *NAMES, *NETWORKS)))}. Build it yourself and load it: "
            "load_pretrained(network, file)."
        )
    return {
        "network_class_name": CLASSES[name],
        "arch_kwargs": dict(described.get("arch_kwargs") or {}),
        "_kw_requires_import": list(described.get("arch_kwargs_requiring_import") or ()),
    }


def _preparation(configuration: Mapping[str, Any]) -> dict[str, Any]:
    # nnssl writes null where images keep their own spacing.
    spacing = configuration.get("spacing") or [None]
    return {
        "spacing": None if None in spacing else tuple(float(step) for step in spacing),
        "normalization": tuple(configuration.get("normalization_schemes") or ()),
    }


def _refuse_code(made: Blueprint, file: Path) -> None:
    """A dotted path in a file is imported and called when the network is built: only known ones may be."""
    if ":" in made.network:
        raise ValueError(
            f"{file} is of {made.network}, a network of somebody's own: building it runs the code of that module. If "
            "you trust the file and the module, say so: trust_code=True; Python must find the module (PYTHONPATH)."
        )
    if made.network != "plans":
        return
    network, kwargs = str(made.architecture["network_class_name"]), made.architecture.get("arch_kwargs", {})
    parts = [str(kwargs[key]) for key in made.architecture.get("_kw_requires_import", ()) if kwargs.get(key)]
    known = [path for path in (network, *parts) if path in CLASSES.values() or KNOWN.fullmatch(path)]
    torchs = [path for path in (network, *parts) if path.startswith("torch.nn.") and is_layer(path)]
    unknown = [path for path in (network, *parts) if path not in (*known, *torchs)]
    if unknown:
        raise ValueError(
            f"{file} names code that we do not know: {', '.join(unknown)}. Building its network would run that. If you "
            "trust the file, say so: trust_code=True."
        )
    absent = [path for path in known if not is_layer(path)]
    if absent:
        raise ValueError(
            f"{file} names {', '.join(absent)}, which the installed packages do not have: its network cannot be built "
            "as it was. Install the version of dynamic-network-architectures that it was pretrained with."
        )


def _check_numbers(value: Any, file: Path) -> None:
    """Refuse sizes that no network has; lists of that length would be made before the first layer is."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(item, file)
    elif isinstance(value, (int, float)) and abs(value) > LARGEST_SIZE:
        raise ValueError(f"{file} says {value:.6g} of its network, and no size of one is above {LARGEST_SIZE}.")
