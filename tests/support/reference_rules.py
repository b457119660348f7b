"""Slow aggregation rules and attacks to test against: loops, and general-purpose optimisers.

As in ``reference.py``, nothing here imports the package.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from tests.support.reference import minimise

Rows = NDArray[np.float64]


def distance(one: Rows, other: Rows) -> float:
    """Euclidean distance, in Python floats."""
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(one, other, strict=True)))


def median(rows: Rows, f: int) -> Rows:
    """Numpy's."""
    return np.median(rows, axis=0)


def trimmed_mean(rows: Rows, f: int) -> Rows:
    """SciPy's, which takes the part to cut off each end; half a row more guards its rounding."""
    return scipy.stats.trim_mean(rows, (f + 0.5) / len(rows), axis=0)


def geometric_median(rows: Rows, f: int) -> Rows:
    """Minimise the sum of distances: at a row that the others do not pull away, or between rows."""
    for row in rows:
        others = [other for other in rows if distance(row, other) > 0]
        pull = np.sum([(other - row) / distance(row, other) for other in others], axis=0)
        if distance(pull, np.zeros_like(row)) <= len(rows) - len(others):
            return row
    points = torch.from_numpy(rows)
    found = minimise(
        lambda z: torch.linalg.vector_norm(points - z, dim=1).sum(), points.mean(dim=0)
    )
    return found.numpy()


def scores(rows: Rows, f: int) -> list[float]:
    """Krum's scores, one pair after another."""
    found = []
    for i, row in enumerate(rows):
        others = sorted(distance(row, rows[j]) ** 2 for j in range(len(rows)) if j != i)
        found.append(sum(others[: len(rows) - f - 2]))
    return found


def krum(rows: Rows, f: int) -> Rows:
    """Return the row with the lowest score."""
    found = scores(rows, f)
    return rows[found.index(min(found))]


def multi_krum(rows: Rows, f: int) -> Rows:
    """Return the mean of the ``k - f`` rows with the lowest scores."""
    found = scores(rows, f)
    order = sorted(range(len(rows)), key=lambda i: found[i])
    return np.mean([rows[i] for i in order[: len(rows) - f]], axis=0)


def centred_clipping(rows: Rows, f: int) -> Rows:
    """Three steps from the median, with the radius that holds half of the rows."""
    centre = np.median(rows, axis=0)
    radius = sorted(distance(row, centre) for row in rows)[(len(rows) - 1) // 2]
    for _ in range(3):
        moves = []
        for row in rows:
            norm = distance(row, centre)
            moves.append((row - centre) * (min(1.0, radius / norm) if norm > 0 else 1.0))
        centre = centre + np.mean(moves, axis=0)
    return centre


def mixed(rows: Rows, f: int) -> Rows:
    """Each row becomes the mean of its ``k - f`` nearest."""
    answer = []
    for row in rows:
        order = sorted(range(len(rows)), key=lambda j: distance(row, rows[j]))
        answer.append(np.mean([rows[j] for j in order[: len(rows) - f]], axis=0))
    return np.array(answer)


def min_max(rows: Rows) -> Rows:
    """Halve the interval of gamma as long as the report is within the rows' diameter of each."""
    mean, away = rows.mean(axis=0), -rows.std(axis=0, ddof=1)
    diameter = max(distance(a, b) for a in rows for b in rows)
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        fits = max(distance(mean + gamma * away, row) for row in rows) <= diameter
        low, high = (gamma, high) if fits else (low, gamma)
    return mean + low * away
