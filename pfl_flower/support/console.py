"""The console: what is said, and what Flower's logger says."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich.text import Text

from pfl_flower.support.foreign_text import legible, one_line

Say = Callable[[str], None]
"""Tells a line to whom it may concern."""


def say(text: str) -> None:
    """Print for the person who started the run, at once."""
    print(text, file=sys.stdout, flush=True)


def silent(text: str) -> None:
    """Tell nobody."""


def plain(text: object, style: str = "") -> Text:
    """Return a text for rich to print in one line: it is no markup, no emoji's name, no command."""
    return Text(one_line(text), style)


def place(path: Path) -> Text:
    """Return a file's path for rich to print under what is said of it, whole, to be copied."""
    return Text(f"  {legible(str(path))}")


class _Legible(logging.Formatter):
    """Every character shows, and lines after a message's first stand apart from messages."""

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record)).replace("\n", "\n    ")


class _Whole(logging.StreamHandler[TextIO]):
    """A line that cannot be written stops who says it: logging would go on, with a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextlib.contextmanager
def logged_to(file: TextIO) -> Iterator[None]:
    """Write to a file, and nowhere else, what Flower logs and what is printed in the body."""
    logger = logging.getLogger("flwr")
    handlers, propagate = logger.handlers[:], logger.propagate
    handler = _Whole(file)
    handler.setFormatter(_Legible())
    logger.handlers, logger.propagate = [handler], False
    try:
        with contextlib.redirect_stdout(file):
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
