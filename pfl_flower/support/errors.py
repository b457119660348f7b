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


class DeviceError(ConfigError):
    """The device that the run asks for cannot be had where it is to compute."""

    @classmethod
    def no_card(cls) -> DeviceError:
        """Return that there is no CUDA device."""
        return cls("device = cuda: expected a CUDA device, and torch sees none")


class KeyFault(ValueError):
    """A value that is wrong, told apart so that it can be shown as it was written.

    Attributes
    ----------
    key, value, right
        The key, what it comes to, and what would be right.
    """

    def __init__(self, key: str, value: object, right: str) -> None:
        super().__init__(f"{key} = {spelled(value)}: expected {right}")
        self.key, self.value, self.right = key, value, right

    def told(self, written: object) -> str:
        """Return the message with the value as it was written."""
        return f"{self.key} = {spelled(written)}: expected {self.right}"


def spelled(value: object) -> str:
    """Return a value as a message shows it: nothing as two quotes.

    >>> spelled(3), spelled("")
    ('3', '""')
    """
    return str(value) or '""'


class DataError(_OneLine, ValueError):
    """The data cannot be had, or cannot serve the run: one line that says why."""


class WorldError(_OneLine, RuntimeError):
    """Disk, permissions or memory stopped what was done: one line that says how to go on."""


class RunFailedError(_OneLine, RuntimeError):
    """A run did not finish."""


class NodesMissingError(_OneLine, RuntimeError):
    """Fewer nodes than the run needs came within the time limit."""


REFUSALS = (ConfigError, DataError, NodesMissingError, WorldError, RunFailedError)
"""What ends a run in one line: a traceback would say nothing more to who has started it."""
