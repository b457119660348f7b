"""Failures of the world: what disk, permissions and memory do to a run, as one line.

They are nobody's mistake in a configuration, and no error of the code: what was running stops, its
files are whole, and the line says what went wrong and how to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pfl_flower.support.errors import WorldError
from pfl_flower.support.foreign_text import one_line

NO_MEMORY = "memory ran out"
TORCHS_OWN = ("OutOfMemoryError", "can't allocate memory", "CUDA out of memory")
"""How torch says it: of a card by the class, of this machine's memory in a plain RuntimeError."""


def reason(error: OSError) -> str:
    """Return why an operation on a file failed: the system's words, and the file.

    >>> reason(OSError(28, "No space left on device", "/x/rounds.csv"))
    'No space left on device: /x/rounds.csv'
    """
    said = error.strerror or str(error) or type(error).__name__
    return said if error.filename is None else f"{said}: {error.filename}"


def failure(error: BaseException) -> str | None:
    """Return what failed of disk, permissions or memory, None for an error of another kind.

    >>> failure(MemoryError()), failure(PermissionError(13, "Permission denied", "/x"))
    ('memory ran out', 'Permission denied: /x')
    >>> failure(ValueError("no"))
    """
    if isinstance(error, OSError):
        return reason(error)
    if out_of_memory(error):
        return f"{NO_MEMORY} ({one_line(error)})" if str(error) else NO_MEMORY
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, this machine's or a card's."""
    if isinstance(error, RuntimeError) and not isinstance(error, WorldError):
        said = f"{type(error).__name__}: {error}"
        return any(words in said for words in TORCHS_OWN)
    return isinstance(error, MemoryError)


@contextmanager
def failures_told(going_on: str) -> Iterator[None]:
    """Turn a failure of the world in the body into one line, with how to go on if that is known.

    Raises
    ------
    WorldError
        Instead of an OSError, a MemoryError, or torch's own of either memory.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        said = failure(error)
        if said is None:
            raise
        raise WorldError(f"{said}; {going_on}" if going_on else said) from error
