"""Mask-aware layers: one mask per network, handed to every layer at its own resolution."""

from ssl_pretrain.sparse.convert import convert
from ssl_pretrain.sparse.mask import SparseMask

__all__ = ["SparseMask", "convert"]
