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


def one_line(error: BaseException) -> str:
    r"""Return the error's kind and the first line of what it says.

    >>> one_line(ValueError("too small\nat line 3"))
    'ValueError: too small'
    """
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
