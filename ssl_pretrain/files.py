"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


def save_atomic(content: Any, path: Path, keep: Path | None = None) -> None:
    """``torch.save`` beside the target, then rename: whatever happens, ``path`` is the old file or the new one.

    Args:
        content: what to save.
        path: the file.
        keep: where the old file goes; None to replace it.

    Raises:
        OSError: the file cannot be written (no space left, no permission); names it, and what is left as it was.
    """
    write_atomic(path, "wb", lambda handle: torch.save(content, handle), keep)


def write_json(content: Any, path: Path) -> None:
    """JSON beside the target, then rename.

    Raises:
        OSError: as :func:`save_atomic`.
    """
    write_atomic(path, "w", lambda handle: handle.write(json.dumps(content, indent=2) + "\n"))


def write_atomic(path: Path, mode: str, write: Callable[[IO[Any]], object], keep: Path | None = None) -> None:
    """Let ``write`` fill a file beside ``path``, flush it to disk, rename it; the old file goes to ``keep``.

    Raises:
        OSError: as :func:`save_atomic`.
    """
    # With the number of the process: several may write the same file at once.
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer reports a full disk as RuntimeError.
        beside.unlink(missing_ok=True)
        kept = f"The previous {path.name} is intact." if path.exists() else "No earlier file was there."
        raise OSError(f"Could not write {path}: {error}. {kept} Free some space or choose another folder.") from error
