"""What the commands share: the log on the console, and exit statuses."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class AboveTheBar(logging.Handler):
    """Shows log lines on stdout, above a progress bar that may be running."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(record.getMessage(), file=sys.stdout)


def set_up_console(level: int = logging.INFO) -> None:
    """The library logs, the command shows it."""
    logger = logging.getLogger("ssl_pretrain")
    if not any(isinstance(handler, AboveTheBar) for handler in logger.handlers):
        logger.addHandler(AboveTheBar())
    logger.setLevel(level)


def progress_bar(results: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """A bar on stderr."""
    bar: Iterable[Any] = tqdm(results, total=total, desc=what, unit="image", dynamic_ncols=True)
    return bar
