"""The console: what is said, and what Flower's logger says."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

Say = Callable[[str], None]
"""Tells a line to whom it may concern."""


def say(text: str) -> None:
    """Print for the person who started the run, at once."""
    print(text, file=sys.stdout, flush=True)


def silent(text: str) -> None:
    """Tell nobody."""


@contextlib.contextmanager
def logged_to(file: TextIO) -> Iterator[None]:
    """Write to a file, and nowhere else, what Flower logs and what is printed in the body."""
    logger = logging.getLogger("flwr")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(file)], False
    try:
        with contextlib.redirect_stdout(file):
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
