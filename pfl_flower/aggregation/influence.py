"""The most that k users can do to the server's direction in one round, where a bound is known.

Displacement is measured against what the direction would be if these users sent something else, the
rows of all others being the same. rho_{t+1} moves by eta times it under SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """The most by which k users' choice of rows moves the direction, and why.

    Attributes
    ----------
    most : float
        In the units of rows; infinite where no bound is known.
    why : str
        What it comes from.
    """

    most: float
    why: str


NONE = Bound(math.inf, "no bound is known that does not hang on the honest rows")


def one_round(
    aggregation: str, *, users: int, strategic: int, radius: float, limit: float | None = None
) -> Bound:
    """Return the bound on what ``strategic`` of ``users`` rows do to the direction in a round.

    Two choices of k rows are compared, so each term is twice what a row can add.

    Parameters
    ----------
    aggregation : str
        A name of the table.
    users, strategic : int
        Rows in the round, and how many are chosen at will.
    radius : float
        Of GRAD: lam for l2 and smooth l2, infinite for squared l2.
    limit : float, optional
        ``influence`` of qrmed, ``clipping-radius`` of static-clipping before the sum, or the length
        ``||g_0||`` of the server's own report, for fltrust.

    Examples
    --------
    >>> one_round("sum", users=12, strategic=2, radius=0.5).most
    2.0
    >>> one_round("qrmed", users=12, strategic=2, radius=float("inf"), limit=0.1).most
    0.4
    >>> one_round("krum", users=12, strategic=2, radius=0.5).most
    12.0
    """
    found = [NONE]
    if aggregation == "sum":
        found.append(Bound(2 * strategic * radius, "2 k lam: GRAD's radius, each way"))
    if aggregation == "static-clipping" and limit is not None:
        found.append(Bound(2 * strategic * min(limit, radius), "2 k radius, each way"))
    if aggregation == "qrmed" and limit is not None:
        found.append(Bound(2 * strategic * limit, "2 k influence: strong convexity"))
        found.append(Bound(2 * users * limit, "n unit vectors of length influence"))
    if aggregation == "fltrust" and limit is not None:
        found.append(Bound(2 * users * limit, "no longer than n ||g_0||, each way"))
    found.append(Bound(2 * users * radius * stretch(aggregation), "n means of rows within GRAD"))
    return min(found, key=lambda bound: bound.most)


COORDINATES = ("median", "trimmed-mean", "bulyan", "adaptive-clipping", "bucketing")
"""Rules by coordinates, or that may hand on to one: what they make need not be a mean of rows."""


def stretch(aggregation: str) -> float:
    """Return how much longer a rule's estimate can be than the longest row.

    1 for means of rows. Of a coordinate-wise median m, of whose entries half of the rows' are as
    large, ``sum_n ||g_n||^2 >= n/2 ||m||^2``: sqrt 2. Of others by coordinates nothing is claimed.
    """
    if aggregation == "median":
        return math.sqrt(2)
    plain = ("sum", "geometric-median", "krum", "multi-krum", "mda", "dnc", "qrmed", "fltrust")
    return 1.0 if aggregation in plain else math.inf
