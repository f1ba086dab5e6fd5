"""anatomask: self-supervised pretraining for 3-D medical segmentation, on top of nnU-Net v2.

Everything a command does, a notebook can do::

    from ssl_pretrain import PretrainConfig, pretrain
    result = pretrain(PretrainConfig(dataset="4", fold="0", method="AnatoMask"))
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_pretrain.config import PretrainConfig
    from ssl_pretrain.methods import METHODS, build_method
    from ssl_pretrain.networks import NETWORKS, build_backbone
    from ssl_pretrain.training.run import Result, pretrain
    from ssl_pretrain.transfer.encoder import Features, PretrainedEncoder, load_encoder
    from ssl_pretrain.transfer.load import load_pretrained
    from ssl_pretrain.transfer.report import Report

__version__ = "0.1.0"

_HOME = {
    "PretrainConfig": "ssl_pretrain.config",
    "METHODS": "ssl_pretrain.methods",
    "build_method": "ssl_pretrain.methods",
    "NETWORKS": "ssl_pretrain.networks",
    "build_backbone": "ssl_pretrain.networks",
    "Result": "ssl_pretrain.training.run",
    "pretrain": "ssl_pretrain.training.run",
    "Features": "ssl_pretrain.transfer.encoder",
    "PretrainedEncoder": "ssl_pretrain.transfer.encoder",
    "load_encoder": "ssl_pretrain.transfer.encoder",
    "Report": "ssl_pretrain.transfer.report",
    "load_pretrained": "ssl_pretrain.transfer.load",
}

__all__ = [
    "METHODS",
    "NETWORKS",
    "Features",
    "PretrainConfig",
    "PretrainedEncoder",
    "Report",
    "Result",
    "build_backbone",
    "build_method",
    "load_encoder",
    "load_pretrained",
    "pretrain",
]

logging.getLogger("ssl_pretrain").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    # Lightning and nnU-Net take seconds to import; a script that only asks for one thing should not wait for all.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
