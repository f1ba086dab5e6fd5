"""What the commands share: the log on the console, and exit statuses."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm.auto import tqdm

from ssl_pretrain.data.environment import check_environment

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class Late:
    """Text that is made when it is shown: ``%(names)s`` in the help of a flag, where making it imports much.

    Args:
        text: makes it.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text

    def __str__(self) -> str:
        """Return the text."""
        return self.text()


class NamesAction(argparse.Action):
    """Stores the value of a flag whose help says ``%(names)s``.

    Args:
        names: makes the text, when the help is shown.
    """

    def __init__(self, *args: Any, names: Callable[[], str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names = Late(names)

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse passes it
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Store a value."""
        setattr(namespace, self.dest, values)


class AboveTheBar(logging.Handler):
    """Shows log lines above a progress bar that may be running.

    Args:
        stream: where; None for stdout as it is when a line comes.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(record.getMessage(), file=self.stream or sys.stdout)


def set_up_console(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """The library logs, the command shows it: on stdout, or on another stream."""
    logger = logging.getLogger("ssl_pretrain")
    for handler in list(logger.handlers):
        if isinstance(handler, AboveTheBar):
            logger.removeHandler(handler)
    logger.addHandler(AboveTheBar(stream))
    logger.setLevel(level)


def guarded(
    command: Callable[[], int],
    stopped: str = "Stopped.",
    expected: Callable[[], tuple[type[Exception], ...]] = tuple,
) -> int:
    """Run a command; what goes wrong in expected ways is one line on stderr, or a traceback where the user wants one.

    Args:
        command: returns the exit status.
        stopped: what to say after Ctrl-C, where that brings no words of its own.
        expected: errors besides ``ValueError`` and ``OSError`` whose message is meant for the user; asked when
            something went wrong, as to import them takes time.
    """
    try:
        check_environment()
        return command()
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or stopped}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        # What else is expected is asked for only where that decides.
        own = (ValueError, OSError) if isinstance(error, (ValueError, OSError)) else expected()
        if os.environ.get("SSL_PRETRAIN_TRACEBACK") or not isinstance(error, own):
            raise
        print(f"\nError: {message_of(error)}", file=sys.stderr)
        return 1


def message_of(error: Exception) -> str:
    """An error's own words; one from a reading process comes wrapped in its traceback."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def progress_bar(results: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """A bar on stderr."""
    bar: Iterable[Any] = tqdm(results, total=total, desc=what, unit="image", dynamic_ncols=True)
    return bar
