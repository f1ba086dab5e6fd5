"""What failed, in a file that is always whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.parallel import Failure
from ssl_pretrain.files import write_json

_EVERY_ONE_UP_TO = 100
_SHARE = 0.05


@dataclass
class Failures:
    """The failed cases of a run, kept in ``failed.json``: a list of ``identifier``, ``files``, ``reason``.

    Attributes:
        folder: where the file is.
        part: number of this part of the work, from 0.
        parts: how many there are. With several, each has its own ``failed_<part>_of_<parts>.json``.
        entries: what failed so far.
    """

    folder: Path
    part: int = 0
    parts: int = 1
    entries: list[dict[str, Any]] = field(default_factory=list)
    _written: int = 0

    @property
    def file(self) -> Path:
        """The file of this part."""
        return self.folder / ("failed.json" if self.parts == 1 else f"failed_{self.part}_of_{self.parts}.json")

    def add(self, case: ImageCase, failure: Failure) -> None:
        """Note a failed case in the file.

        Raises:
            OSError: the file cannot be written.
        """
        masks = [mask for mask in (case.anonymization_mask, case.anatomy_mask) if mask is not None]
        files = [str(file) for file in (*case.images, *masks)]
        self.entries.append({"identifier": case.identifier, "files": files, "reason": failure.reason})
        # The whole file is written anew, so not for every one of thousands.
        pace = _SHARE * self._written if self._written >= _EVERY_ONE_UP_TO else 0
        if len(self.entries) > self._written + pace:
            self._write()

    def finish(self) -> None:
        """Write what is left to write; without failures, remove what an earlier run left.

        Raises:
            OSError: the file cannot be written.
        """
        if self.entries:
            self._write()
        else:
            self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.entries, self.file)
        self._written = len(self.entries)
