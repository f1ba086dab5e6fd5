"""Where nnU-Net finds our trainers: the plug-in folder of this project."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "nnUNet_extTrainer"
"""The environment variable in which nnU-Net looks for folders that hold trainers."""

MARKER = "STUNetTrainer.py"
"""A file that only our folder has; the installed nnU-Net has a folder of the same name."""


def extension_folder() -> Path:
    """Return the folder that holds our trainers: the value for ``nnUNet_extTrainer``.

    Raises:
        FileNotFoundError: this installation does not have the folder.
    """
    package = Path(__file__).resolve().parents[1]
    # A wheel ships the plug-ins inside the package; in a checkout, editable or not, they are beside it.
    roots = [package / "nnunetv2_plugins", package.parent / "nnunetv2"]
    folders = [root / "training" / "nnUNetTrainer" for root in roots]
    for folder in folders:
        if (folder / MARKER).is_file():
            return folder
    raise FileNotFoundError(
        f"The trainers for nnU-Net are missing: no {MARKER} in {' nor in '.join(map(str, folders))}. "
        "Install anatomask again (pip install --force-reinstall anatomask, or pip install -e . in a checkout)."
    )


def hook_file() -> Path:
    """Return the file with the replaceable function ``load_pretrained_weights``.

    Raises:
        FileNotFoundError: the file is not there.
    """
    file = extension_folder().parents[1] / "run" / "load_pretrained_weights.py"
    if not file.is_file():
        raise FileNotFoundError(
            f"The hook that loads pretrained weights is missing: {file}. Put a file there that defines "
            "load_pretrained_weights(network, fname, verbose=False), or install anatomask again."
        )
    return file


def trainer_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a copy of an environment in which nnU-Net finds our trainers first among the external ones.

    Args:
        env: the environment to copy; default the current one. Folders that it names already stay.

    Raises:
        FileNotFoundError: see :func:`extension_folder`.
    """
    copied = dict(os.environ if env is None else env)
    ours = str(extension_folder())
    others = [folder for folder in copied.get(VARIABLE, "").split(os.pathsep) if folder.strip() and folder != ours]
    copied[VARIABLE] = os.pathsep.join([ours, *others])
    return copied
