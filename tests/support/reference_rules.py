"""Slow aggregation rules to test against: loops, and general-purpose optimisers.

As in ``reference.py``, nothing here imports the package.
"""

from __future__ import annotations

import itertools
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


def bulyan(rows: Rows, f: int) -> Rows:
    """Krum on what is left; rows of equal score share the last places. Then by coordinates."""
    left, taken = list(rows), []
    while places := len(rows) - 2 * f - len(taken):
        near = max(1, len(left) - f - 2)
        found = [
            sum(sorted(distance(one, other) ** 2 for other in left)[: near + 1]) for one in left
        ]
        tied = [i for i, score in enumerate(found) if score <= min(found) * (1 + 1e-9)]
        if len(tied) > places:
            taken += [np.mean([left[i] for i in tied], axis=0)] * places
        else:
            taken += [left[i] for i in tied]
            left = [row for i, row in enumerate(left) if i not in tied]
    kept = len(taken) - 2 * f
    answer = []
    for column in np.array(taken).T:
        middle = float(np.median(column))
        near = sorted(column.tolist(), key=lambda value: abs(value - middle))
        last = abs(near[kept - 1] - middle)
        sure = [value for value in near if abs(value - middle) < last]
        tied = [value for value in near if abs(value - middle) == last]
        answer.append((sum(sure) + (kept - len(sure)) * sum(tied) / len(tied)) / kept)
    return np.array(answer)


def mda(rows: Rows, f: int) -> Rows:
    """All subsets of k - f rows; the mean of the means of the best."""
    best: list[tuple[float, Rows]] = []
    for kept in itertools.combinations(range(len(rows)), len(rows) - f):
        diameter = max(distance(rows[i], rows[j]) for i in kept for j in kept)
        best.append((diameter, rows[list(kept)].mean(axis=0)))
    least = min(diameter for diameter, _ in best)
    return np.mean([mean for diameter, mean in best if diameter == least], axis=0)


def qrmed(rows: Rows, f: int) -> Rows:
    """Minimise what it is the minimum of, with the rows' median length as the influence."""
    lengths = sorted(distance(row, np.zeros_like(row)) for row in rows)
    reach, points = lengths[(len(rows) - 1) // 2], torch.from_numpy(rows)
    for row in rows:
        others = [other for other in rows if distance(row, other) > 0]
        pull = np.sum([(other - row) / distance(row, other) for other in others], axis=0)
        pull = pull - len(rows) * row / reach
        if distance(pull, np.zeros_like(row)) <= len(rows) - len(others):
            return row
    found = minimise(
        lambda z: (
            len(rows) * (z @ z) / (2 * reach) + torch.linalg.vector_norm(points - z, dim=1).sum()
        ),
        points.mean(dim=0) / 2,
    )
    return found.numpy()


def static_clipping(rows: Rows, f: int) -> Rows:
    """The mean of rows no longer than the median length."""
    lengths = [distance(row, np.zeros_like(row)) for row in rows]
    limit = sorted(lengths)[(len(rows) - 1) // 2]
    cut = [row * min(1.0, limit / norm) for row, norm in zip(rows, lengths, strict=True)]
    return np.mean(cut, axis=0)


def adaptive_clipping(rows: Rows, f: int) -> Rows:
    """The longest cut to the next length, then the trimmed mean."""
    lengths = [distance(row, np.zeros_like(row)) for row in rows]
    number = math.floor(2 * f * (len(rows) - f) / len(rows))
    limit = sorted(lengths)[len(rows) - number - 1]
    cut = [row * min(1.0, limit / norm) for row, norm in zip(rows, lengths, strict=True)]
    return trimmed_mean(np.array(cut), f)


def mixed(rows: Rows, f: int) -> Rows:
    """Each row becomes the mean of its ``k - f`` nearest."""
    answer = []
    for row in rows:
        order = sorted(range(len(rows)), key=lambda j: distance(row, rows[j]))
        answer.append(np.mean([rows[j] for j in order[: len(rows) - f]], axis=0))
    return np.array(answer)
