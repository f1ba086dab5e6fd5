"""Numbers in nnU-Net's environment variables, checked before nnU-Net reads them."""

from __future__ import annotations

import os
import re

NUMBERS = {"nnUNet_n_proc_DA": 0, "nnUNet_def_n_proc": 1}
"""Variables that are numbers of processes, and the fewest that work."""


def check_environment() -> None:
    """Refuse numbers of processes that are none: nnU-Net reads them when it is imported, and names no variable.

    Raises:
        ValueError: names the variable, its value and what is allowed.
    """
    for variable, fewest in NUMBERS.items():
        value = os.environ.get(variable)
        if value is not None and (not re.fullmatch(r"\s*[0-9]{1,6}\s*", value) or int(value) < fewest):
            raise ValueError(
                f"The environment variable {variable} is {value!r}; it must be a number of processes from {fewest} on. "
                f"Correct it, or leave the number to nnU-Net: unset {variable}"
            )
