"""Who holds what, as numbers: users by classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pfl_flower.data.users import Partitioned
from pfl_flower.run.problem import Problem

SHOWN_USERS, SHOWN_CLASSES = 24, 12
"""More users than these are summed up; of more classes only their number is told."""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What the users of a run hold, strategic ones included: what was dealt to them, that is.

    Attributes
    ----------
    classes : tuple of str
        The labels, in ascending order; for regression there is one, ``all``.
    train, tests : ndarray
        Points that each user trains on, and keeps for its own test set, by class, ``(N, c)``.
    strategic : frozenset of int
        Users that the run makes strategic, whose attack may put other data in the place of theirs.
    """

    classes: tuple[str, ...]
    train: NDArray[np.int64]
    tests: NDArray[np.int64]
    strategic: frozenset[int]

    @classmethod
    def of(cls, problem: Problem) -> Holdings:
        """Return what the users of a problem hold; under draws, what they draw."""
        source, seed, users = problem.source, problem.config.seed, range(problem.config.users)
        if isinstance(source, Partitioned):
            split = [source.split(user) for user in users]
            train = [source.labels[rows.numpy()] for rows, _ in split]
            tests = [source.labels[rows.numpy()] for _, rows in split]
        else:
            train = [source.draw(user, problem.size(user), seed).labels.numpy() for user in users]
            tests = [labels[:0] for labels in train]
        known: NDArray[Any] = np.zeros(0)
        if source.loss != "least-squares":
            softmax = source.loss == "softmax"
            known = np.arange(source.outputs) if softmax else np.array([-1, 1])
        return cls(
            classes=tuple(f"{label:g}" for label in known) or ("all",),
            train=_counted(train, known),
            tests=_counted(tests, known),
            strategic=problem.config.strategic(),
        )

    @property
    def points(self) -> NDArray[np.int64]:
        """All points of each user by class, ``(N, c)``."""
        return self.train + self.tests

    def table(self) -> Table:
        """Return users by classes, to be printed: each of a few, the extremes of many."""
        table = Table(title="who holds what", title_justify="left")
        table.add_column("user", no_wrap=True)
        several = 1 < len(self.classes) <= SHOWN_CLASSES
        for name in self.classes if several else ():
            table.add_column(name, justify="right")
        for name in ("classes", "to train on", "own test set"):
            table.add_column(name, justify="right")
        users = len(self.points)
        if users <= SHOWN_USERS:
            for user, row in enumerate(self.points):
                name = f"{user} (strategic)" if user in self.strategic else str(user)
                table.add_row(name, *self._cells(row, user, several))
            return table
        sizes = self.points.sum(axis=1)
        order = np.argsort(sizes, kind="stable")
        for name, place in (("fewest", 0), ("median", users // 2), ("most", users - 1)):
            user = int(order[place])
            row = self.points[user]
            table.add_row(f"{user} ({name} of {users:,})", *self._cells(row, user, several))
        return table

    def _cells(self, row: NDArray[np.int64], user: int, several: bool) -> list[str]:
        each = [f"{count:,}" if count else "" for count in row] if several else []
        sums = (int((row > 0).sum()), int(self.train[user].sum()), int(self.tests[user].sum()))
        return [*each, *(f"{value:,}" for value in sums)]


def _counted(labels: Sequence[NDArray[Any]], known: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each user has each label, ``(N, c)``; all are one without known ones."""
    width = max(1, len(known))
    users = np.repeat(np.arange(len(labels)), [len(one) for one in labels])
    place = np.searchsorted(known, np.concatenate(labels)) if len(known) else 0
    counts = np.bincount(users * width + place, minlength=len(labels) * width)
    return counts.reshape(len(labels), width)
