"""What a run refuses, in one line each."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run: one line with the key, the value and what is right."""


class DataError(ValueError):
    """The data cannot be had, or cannot serve the run: one line that says why."""


class RunFailedError(RuntimeError):
    """A run did not finish."""


class NodesMissingError(RuntimeError):
    """Fewer nodes than the run needs came within the time limit."""
