"""Pretraining methods: one file each, found by the name of the paper."""

from ssl_pretrain.methods.anatomask import AnatoMask, AnatoMaskConfig
from ssl_pretrain.methods.base import Batch, Method, MethodSetup, Output, RunLength
from ssl_pretrain.methods.dae import DAE, DAEConfig
from ssl_pretrain.methods.mae import MAE, MAEConfig
from ssl_pretrain.methods.models_genesis import ModelsGenesis, ModelsGenesisConfig
from ssl_pretrain.methods.recipe import OptimizerConfig
from ssl_pretrain.methods.s3d import S3D, S3DConfig
from ssl_pretrain.methods.simclr import SimCLR, SimCLRConfig
from ssl_pretrain.methods.simmim import SimMIM, SimMIMConfig
from ssl_pretrain.methods.spark import SparK, SparKConfig
from ssl_pretrain.methods.swinunetr_pretraining import SwinUNETRPretraining, SwinUNETRPretrainingConfig
from ssl_pretrain.methods.two_view_mae import TwoViewMAE, TwoViewMAEConfig
from ssl_pretrain.methods.voco import VoCo, VoCoConfig
from ssl_pretrain.methods.volume_fusion import VolumeFusion, VolumeFusionConfig

METHODS: dict[str, type[Method]] = {
    "AnatoMask": AnatoMask,
    "SparK": SparK,
    "MAE": MAE,
    "S3D": S3D,
    "SimMIM": SimMIM,
    "ModelsGenesis": ModelsGenesis,
    "VolumeFusion": VolumeFusion,
    "SimCLR": SimCLR,
    "TwoViewMAE": TwoViewMAE,
    "VoCo": VoCo,
    "SwinUNETRPretraining": SwinUNETRPretraining,
    "DAE": DAE,
}


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        ValueError: unknown name; lists the known ones.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Choose from {', '.join(METHODS)} (-m).")
    return METHODS[name]


def build_method(name: str, config: OptimizerConfig, setup: MethodSetup) -> Method:
    """Build a method around a backbone.

    Args:
        name: a key of :data:`METHODS`.
        config: that method's config (its ``Config``).
        setup: backbone, patch, length and seed of the run.

    Raises:
        ValueError: unknown name, a config of another method, a network without what the method needs, or a mask that
            does not fit patch and network.
    """
    method = find_method(name)
    if not isinstance(config, method.Config):
        raise ValueError(f"{name} is configured by {method.Config.__name__}, got {type(config).__name__}.")
    if not method.goes_with(offers := setup.backbone.offers):
        others = ", ".join(other for other, known in METHODS.items() if known.goes_with(offers))
        raise ValueError(f"{method.refusal(setup.backbone)} With this network use -m {others or 'no method'}.")
    return method(config, setup)


__all__ = [
    "DAE",
    "MAE",
    "METHODS",
    "S3D",
    "AnatoMask",
    "AnatoMaskConfig",
    "Batch",
    "DAEConfig",
    "MAEConfig",
    "Method",
    "MethodSetup",
    "ModelsGenesis",
    "ModelsGenesisConfig",
    "OptimizerConfig",
    "Output",
    "RunLength",
    "S3DConfig",
    "SimCLR",
    "SimCLRConfig",
    "SimMIM",
    "SimMIMConfig",
    "SparK",
    "SparKConfig",
    "SwinUNETRPretraining",
    "SwinUNETRPretrainingConfig",
    "TwoViewMAE",
    "TwoViewMAEConfig",
    "VoCo",
    "VoCoConfig",
    "VolumeFusion",
    "VolumeFusionConfig",
    "build_method",
    "find_method",
]
