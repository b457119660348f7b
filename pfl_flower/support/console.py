"""The console."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]
"""Tells a line to whom it may concern."""


def say(text: str) -> None:
    """Print for the person who started the run, at once."""
    print(text, file=sys.stdout, flush=True)


def silent(text: str) -> None:
    """Tell nobody."""
