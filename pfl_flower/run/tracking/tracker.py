"""A tracker: it is told the numbers of every round, as ``rounds.csv`` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pfl_flower.run.keys import Scalar


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told before the first round.

    Attributes
    ----------
    name : str
        The run's.
    seed : int
        Of its random draws.
    settings : mapping
        Every key of its configuration, and the value.
    folder : Path or None
        Of its results; None for a run that writes nothing.
    first : int
        The round that it is told of first: 0, or in a run that is resumed the one after the
        checkpoint's. What an earlier process told of this round and later ones is void.
    trial : bool
        Whether this is no run: before round 1 a tracker is made, told of a round of made-up
        numbers and closed, in a folder that is removed. Nothing of that should leave the machine.
    """

    name: str
    seed: int
    settings: Mapping[str, Scalar]
    folder: Path | None
    first: int = 0
    trial: bool = False


class Tracker(Protocol):
    """What the factory of a tracker makes of a ``TrackedRun``."""

    def row(self, round: int, numbers: Mapping[str, float]) -> object:
        """Take what was measured of a round: the numbers of its line in ``rounds.csv``, by column.

        Raises
        ------
        Exception
            Whatever is wrong: the run goes on, counts the round as not tracked, and fails its
            check in the end.
        """
        ...

    def close(self) -> object:
        """Write what is left; nothing is told afterwards. Raises as ``row`` does."""
        ...


class Nobody:
    """Tells nobody."""

    def __init__(self, run: TrackedRun) -> None: ...

    def row(self, round: int, numbers: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
