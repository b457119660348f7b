"""What a run refuses, in one line each."""

from __future__ import annotations

from pfl_flower.support.foreign_text import one_line

LONGEST = 2000
"""Characters of a message: some list all that would be right."""


class _OneLine(Exception):
    """An error whose message is one line, whatever is quoted in it."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message), LONGEST))


class ConfigError(_OneLine, ValueError):
    """A configuration that cannot be run: one line with the key, the value and what is right."""


class DataError(_OneLine, ValueError):
    """The data cannot be had, or cannot serve the run: one line that says why."""


class WorldError(_OneLine, RuntimeError):
    """Disk, permissions or memory stopped what was done: one line that says how to go on."""


class RunFailedError(_OneLine, RuntimeError):
    """A run did not finish."""


class NodesMissingError(_OneLine, RuntimeError):
    """Fewer nodes than the run needs came within the time limit."""
