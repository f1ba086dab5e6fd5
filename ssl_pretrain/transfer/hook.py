"""The hook into ``nnUNetv2_train -pretrained_weights``: nnU-Net calls one function, and this puts ours there."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ssl_pretrain.transfer.extension import hook_file
from ssl_pretrain.transfer.images import Images

FUNCTION = "load_pretrained_weights"

Loader = Callable[..., Any]
"""A function ``(network, fname, verbose=False)`` that loads the file into the network in place.

With a fourth argument ``images`` it is told what the network works on, if our trainers call it.
"""


class Dispatcher:
    """Stands in for nnU-Net's ``load_pretrained_weights`` and runs the loader that applies.

    Args:
        loader: the function to run; None runs the one that the hook file defines when it is called.
    """

    def __init__(self, loader: Loader | None = None) -> None:
        self.loader = loader

    def __call__(
        self, network: nn.Module, fname: str | Path, verbose: bool = False, images: Images | None = None
    ) -> Any:
        """Load ``fname`` into ``network``; raises what the loader raises.

        Args:
            network: of nnU-Net.
            fname: the file.
            verbose: whether to show every tensor.
            images: what the network works on; handed on to a loader that has an argument of this name.
        """
        loader = self.loader or read_hook(hook_file())
        known = {"images": images} if "images" in inspect.signature(loader).parameters else {}
        return loader(network, fname, verbose, **known)


def read_hook(file: Path) -> Loader:
    """Execute a hook file as it is now and return its function ``load_pretrained_weights``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not define the function.
    """
    # Read from the source every time, never through the import system: what the user last saved is what runs.
    function = runpy.run_path(str(file)).get(FUNCTION)
    if not callable(function):
        raise ValueError(
            f"{file} does not define {FUNCTION}. nnU-Net calls {FUNCTION}(network, fname, verbose=False): add it, "
            "or bring the original file back."
        )
    loader: Loader = function
    return loader


def install_hook(loader: Loader | None = None) -> None:
    """Make ``nnUNetv2_train -pretrained_weights`` of this process use our function, or another.

    The last call decides. Nothing is changed on disk, and nnU-Net's own function is left as it is.

    Args:
        loader: a trainer's own function ``(network, fname, verbose=False)``; None for the one in :func:`hook_file`.
    """
    from nnunetv2.run import run_training

    setattr(run_training, FUNCTION, Dispatcher(loader))
