"""Networks as methods see them, and how to build one by name."""

from ssl_pretrain.networks.base import Backbone, FeatureMap, StagedEncoder
from ssl_pretrain.networks.registry import NETWORKS, build_backbone

__all__ = ["NETWORKS", "Backbone", "FeatureMap", "StagedEncoder", "build_backbone"]
