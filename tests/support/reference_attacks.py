"""Slow attacks to test against, by bisection and by loops, each of which proves what it returns.

As in ``reference.py``, nothing here imports the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.optimize

from tests.support.reference_rules import Rows, distance, scores


def farthest(mean: Rows, away: Rows, excess: Callable[[Rows], float]) -> Rows:
    """Return ``mean + gamma away`` with the largest gamma at which the excess is not above 0.

    By Brent's method; a thousandth less is within, and a thousandth more and much more are not.
    """

    def at(gamma: float) -> float:
        return excess(mean + gamma * away)

    high = 1.0
    while at(high) <= 0:
        high *= 2
    gamma = scipy.optimize.brentq(at, 0.0, high, xtol=1e-14, rtol=1e-14)
    assert at(0.999 * gamma) <= 0 < at(1.001 * gamma)
    assert all(at(factor * gamma) > 0 for factor in (1.1, 2.0, 10.0, 1e3))
    return mean + gamma * away


def min_max(rows: Rows) -> Rows:
    """As far from every row as the farthest two rows are from each other, and no farther."""
    diameter = max(distance(a, b) for a in rows for b in rows)
    return farthest(
        rows.mean(axis=0),
        -rows.std(axis=0, ddof=1),
        lambda sent: max(distance(sent, row) for row in rows) - diameter,
    )


def min_sum(rows: Rows) -> Rows:
    """As far from all rows together, in squares, as the farthest row is, and no farther."""

    def squares(point: Rows) -> float:
        return sum(distance(point, row) ** 2 for row in rows)

    most = max(squares(row) for row in rows)
    return farthest(rows.mean(axis=0), -rows.std(axis=0, ddof=1), lambda sent: squares(sent) - most)


def fang_krum(rows: Rows, k: int) -> Rows:
    """Minus the mean's signs times a length, halved from Theorem 1's bound until Krum picks it.

    (Fang et al. 2020, with c = k and all of the honest rows known.)
    """
    n, d = len(rows) + k, rows.shape[1]
    sums = []
    for i, row in enumerate(rows):
        away = sorted(distance(row, rows[j]) for j in range(len(rows)) if j != i)
        sums.append(sum(away[: n - k - 2]))
    longest = max(math.sqrt(sum(float(x) ** 2 for x in row)) for row in rows)
    size = min(sums) / ((n - 2 * k - 1) * math.sqrt(d)) + longest / math.sqrt(d)
    signs = np.array([-math.copysign(1.0, column.sum()) for column in rows.T])

    def picked(length: float) -> bool:
        together = np.vstack([rows, *[length * signs] * k])
        found = scores(together, k)
        return min(found[len(rows) :]) <= min(found[: len(rows)])

    while not picked(size):
        size /= 2
    return size * signs


class Mimic:
    """Oja's rule by loops, from a first direction that is given."""

    def __init__(self, direction: Rows) -> None:
        self.direction, self.mean, self.rounds = direction, np.zeros_like(direction), 0

    def choose(self, rows: Rows) -> int:
        """Return which row is repeated in the next round."""
        t = self.rounds
        self.mean = (t * self.mean + rows.mean(axis=0)) / (t + 1)
        pulled = np.zeros_like(self.mean)
        for row in rows:
            pulled = pulled + (row - self.mean) * float((row - self.mean) @ self.direction)
        turned = t * self.direction + pulled / np.linalg.norm(pulled)
        self.direction, self.rounds = turned / np.linalg.norm(turned), t + 1
        return max(range(len(rows)), key=lambda i: float(rows[i] @ self.direction))
