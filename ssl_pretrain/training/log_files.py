"""Log and TensorBoard events in files, where the disk may be full: one line says so, and the run decides."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger("ssl_pretrain")


class LogFile(logging.FileHandler):
    """A log file that says once, in the other places of the log, when it cannot be written to.

    Args:
        file: to write.
        delay: make it with the first line only.
    """

    def __init__(self, file: Path, *, delay: bool = False) -> None:
        super().__init__(file, encoding="utf-8", delay=delay)
        self.failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called where a line could not be written; by logging itself with a traceback for every line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            log.warning("The log file %s cannot be written to: %s. Free some space.", self.baseFilename, error)

    def close(self) -> None:
        """Close it; what could not be written has been said."""
        with suppress(OSError):
            super().close()


class TensorBoard(TensorBoardLogger):
    """TensorBoard's events in ``tensorboard/`` of a folder; none any more, and a warning, once they cannot be written.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self.failed = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer.

        Raises:
            AttributeError: it cannot write; Lightning asks with ``hasattr``.
        """
        try:
            return super().experiment
        except OSError as error:
            self._stop(error)
            raise AttributeError("TensorBoard's events cannot be written.") from error

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write numbers of a step."""
        self._unless_failed(super().log_metrics, metrics, step)

    def save(self) -> None:
        """Write what is waiting."""
        self._unless_failed(super().save)

    def finalize(self, status: str) -> None:
        """Write what is waiting, and close."""
        self._unless_failed(super().finalize, status)

    def _unless_failed(self, write: Callable[..., None], *args: Any) -> None:
        if self.failed:
            return
        try:
            write(*args)
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self.failed = True
        log.warning("TensorBoard's events are not written any more to %s: %s. Free some space.", self.log_dir, error)


@contextmanager
def silent_writers() -> Iterator[None]:
    """Leave out the tracebacks of TensorBoard's writing threads; the logger hears of the same error and says it."""
    before = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            before(args)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before
