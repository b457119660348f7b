"""Tells a tracker of the rounds, and counts those that it did not take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pfl_flower.run.checks import Check
from pfl_flower.run.config import RunConfig
from pfl_flower.run.left_out import noticed
from pfl_flower.run.rounds import Row
from pfl_flower.run.tracking.table import TRACKERS
from pfl_flower.run.tracking.tracker import TrackedRun, Tracker
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.plugins import told

NONE = next(iter(TRACKERS))
"""The first of them tells nobody."""
TRACKED = "the tracker took every round"
UNTRACKED = "untracked"
"""The notice of a round that the tracker did not take, in ``rounds.csv``."""
APART = frozenset({"seed", "round"})
"""Columns that a tracker is told otherwise: of the run, and as the number of the row."""
VALUE_CHARACTERS = 200


@dataclass(frozen=True)
class Tracked:
    """What a tracker raised.

    Attributes
    ----------
    row : str
        The last that it raised at a round, with file and line; empty for nothing.
    end : str
        What it raised when it was closed.
    """

    row: str = ""
    end: str = ""

    def checks(self, config: RunConfig, text: str) -> list[Check]:
        """Return that a tracker took every round, from the text of ``rounds.csv``, and its end.

        A tracker that is asked for and tells nothing is a key that took no effect: the rounds are
        right, and the run does not pass.
        """
        if config.tracker == NONE:
            return []
        missed, said = noticed(text, UNTRACKED), []
        if missed:
            last = f", the last with {self.row}" if self.row else ""
            said.append(f"{missed} missed{last}")
        if self.end:
            said.append(f"its end failed with {self.end}")
        return [
            Check(TRACKED, one_line("; ".join(said), VALUE_CHARACTERS) or "all", "all", not said)
        ]


class Tracking:
    """A run's tracker while the run goes on.

    Parameters
    ----------
    tracker : Tracker
        Who is told.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker: Tracker | None = tracker
        self.tracked = Tracked()

    @classmethod
    def of(cls, config: RunConfig, folder: Path | None, *, first: int = 0) -> Tracking:
        """Make the tracker of a run whose results are in ``folder``, to be told from ``first`` on.

        Raises
        ------
        ConfigError
            If it cannot be made: with the file and the line of its own error.
        """
        return cls(opened(config, folder, first=first))

    def row(self, round: int, row: Row) -> str:
        """Tell of a round, and return what was raised, nothing if nothing was."""
        if self._tracker is None:
            return ""
        numbers = {
            key: float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and key not in APART
        }
        try:
            self._tracker.row(round, numbers)
        except (Exception, SystemExit) as error:
            self.tracked = Tracked(row=told(error), end=self.tracked.end)
            return self.tracked.row
        return ""

    def close(self) -> str:
        """Close the tracker, once, and return what was raised, nothing if nothing was."""
        tracker, self._tracker = self._tracker, None
        try:
            if tracker is not None:
                tracker.close()
        except (Exception, SystemExit) as error:
            self.tracked = Tracked(row=self.tracked.row, end=told(error))
            return self.tracked.end
        return ""


def opened(
    config: RunConfig, folder: Path | None, *, first: int = 0, trial: bool = False
) -> Tracker:
    """Make a run's tracker.

    Raises
    ------
    ConfigError
        See ``Tracking.of``.
    """
    run = TrackedRun(
        name=config.name,
        seed=config.seed,
        settings=config.flat(),
        folder=folder,
        first=first,
        trial=trial,
    )
    return cast(Tracker, TRACKERS.make(config.tracker, config.tracker_options, run))
