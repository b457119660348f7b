"""The console."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print for the person who started the run, at once."""
    print(text, file=sys.stdout, flush=True)
