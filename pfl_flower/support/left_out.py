"""What was there and did not count: told at the end of a run, with its number and some names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfl_flower.support.foreign_text import one_line

NAMED = 3
NAME_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Things of one kind that a run did not use.

    Attributes
    ----------
    what : str
        The kind, in the plural.
    count : int
        How many they are.
    where : str
        The first few by name, or when it was.

    Examples
    --------
    >>> print(LeftOut.of("hidden files", ["a/.b", "a/.c"]))
    hidden files: 2 (a/.b, a/.c)
    """

    what: str
    count: int
    where: str

    @classmethod
    def of(cls, what: str, names: Sequence[str]) -> LeftOut:
        """Return the things of these names, which strangers may have given."""
        first = [one_line(name, NAME_CHARACTERS) for name in names[:NAMED]]
        more = ["..."] if len(names) > NAMED else []
        return cls(what=what, count=len(names), where=", ".join([*first, *more]))

    def __str__(self) -> str:
        """Return kind, number and the first few."""
        return f"{self.what}: {self.count:,} ({self.where})"
