"""The cheapest non-negative combination of given vectors: a linear programme, polished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls

Array = NDArray[np.float64]

CLOSE = 1e-9
"""Relative residual at which a combination counts as exact: least squares of the columns in use
leave less unless these are nearly dependent, HiGHS alone stops at 1e-7."""
WEAK = 1e-8
"""Norm below which a column is left out: its label is certain, its weight would be absurd."""
BALLAST = 1e-9
"""Relative residual that a unit of weight must save in a least squares solution: no more than
``CLOSE``, so that it decides between combinations that are equally exact and spoils none."""
LARGE = 200
"""Number of equations from which the interior point method is faster than the simplex method."""
MAX_ITERATIONS = 100_000
"""Most iterations of the linear programme, which then counts as unsolved."""
IN_USE = 1e-12
"""Share of the largest weight below which a weight is what a solver's arithmetic left of a 0."""


@dataclass(frozen=True)
class Combination:
    """Weights of the columns and what they leave over.

    Attributes
    ----------
    weights : ndarray
        ``(n,)``, non-negative.
    prices : ndarray
        ``(m,)``: the dual solution y, ``<y, g> <= 1`` for every column g, when exact; else the
        direction ``b - G w`` in which columns are missing.
    residual : float
        ``||G w - b||``, recomputed.
    exact : bool
        Whether the residual is within ``CLOSE ||b||``.
    """

    weights: Array
    prices: Array
    residual: float
    exact: bool


def least_combination(columns: Array, demand: Array) -> Combination:
    """Minimise ``sum(w)`` subject to ``G w = b`` and ``w >= 0``; else minimise ``||G w - b||``.

    Parameters
    ----------
    columns : ndarray
        G, ``(m, n)``.
    demand : ndarray
        b, ``(m,)``.

    Returns
    -------
    Combination
        A vertex of the linear programme, its equations solved again in double precision (the
        solver itself stops at 1e-7), or a non-negative least squares solution if there is none.
    """
    size, norms = float(np.linalg.norm(demand)), np.linalg.norm(columns, axis=0)
    weights, strong = np.zeros_like(norms), norms >= WEAK
    if size == 0 or not bool(strong.any()):
        return Combination(weights, demand, size, size == 0)
    # In these units a tolerance means the same for long columns and for short ones.
    unit, goal = columns[:, strong] / norms[strong], demand / size
    solved = _vertex(1 / norms[strong], unit, goal)
    # Without a vertex that checks out the least residual is the answer, and no price is known.
    shares, prices = (
        (_least_squares(size / norms[strong], unit, goal), None) if solved is None else solved
    )
    missing = goal - unit @ shares
    weights[strong] = shares * size / norms[strong]
    gap = float(np.linalg.norm(missing))
    return Combination(weights, missing if prices is None else prices, gap * size, gap <= CLOSE)


def _vertex(cost: Array, unit: Array, goal: Array) -> tuple[Array, Array] | None:
    """Return the programme's weights and prices, or None if it has no solution that checks out."""
    method = "highs-ds" if len(goal) < LARGE else "highs-ipm"
    answer = linprog(
        cost,
        A_eq=unit,
        b_eq=goal,
        bounds=(0, None),
        method=method,
        options={"maxiter": MAX_ITERATIONS},
    )
    if answer.x is None:
        return None
    weights = _polish(unit, goal, np.maximum(answer.x, 0))
    if float(np.linalg.norm(unit @ weights - goal)) > CLOSE:
        return None
    return weights, np.asarray(answer.eqlin.marginals)


def _polish(unit: Array, goal: Array, weights: Array) -> Array:
    """Solve the equations again for the columns in use, if that keeps the weights non-negative."""
    used = np.flatnonzero(weights > IN_USE * weights.max(initial=0))
    if len(used) == 0:
        return weights
    polished = np.zeros_like(weights)
    polished[used] = np.linalg.lstsq(unit[:, used], goal, rcond=None)[0]
    return polished if bool((polished >= 0).all()) else weights


def _least_squares(cost: Array, unit: Array, goal: Array) -> Array:
    """Minimise ``||G w - b||^2 + (BALLAST <cost, w>)^2``, ``w >= 0``; 0 if the method gives up."""
    heavy = np.vstack([unit, BALLAST * cost])
    try:
        # Each iteration moves one column in or out: after ten times as many it goes in circles.
        weights: Array = nnls(heavy, np.append(goal, 0.0), maxiter=10 * unit.shape[1])[0]
    except RuntimeError:
        return np.zeros(unit.shape[1])
    polished = _polish(unit, goal, weights)
    better = np.linalg.norm(unit @ polished - goal) <= CLOSE
    return polished if better else weights
