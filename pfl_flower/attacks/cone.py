"""The cheapest non-negative combination of given vectors: a linear programme, polished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls

Array = NDArray[np.float64]

CLOSE = 1e-9
"""Relative residual at which a combination counts as exact."""
WEAK = 1e-8
"""Norm below which a column is left out: the labels it stands for are certain, their weights absurd."""


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
        The simplex method's vertex, its equations solved again in double precision (the method
        itself stops at 1e-7), or the non-negative least squares solution if there is none.
    """
    size = float(np.linalg.norm(demand))
    if size == 0:
        nothing = np.zeros(columns.shape[1])
        return Combination(nothing, np.zeros_like(demand), 0.0, True)
    norms = np.maximum(np.linalg.norm(columns, axis=0), np.finfo(np.float64).tiny)
    unit, goal = columns / norms, demand / size
    unit[:, norms < WEAK] = 0
    # In these units a tolerance means the same for long columns and for short ones.
    answer = linprog(1 / norms, A_eq=unit, b_eq=goal, bounds=(0, None), method="highs-ds")
    if answer.x is not None:
        weights = _polish(unit, goal, np.maximum(answer.x, 0))
        gap = float(np.linalg.norm(unit @ weights - goal))
        if gap <= CLOSE:
            prices = np.asarray(answer.eqlin.marginals)
            return Combination(weights * size / norms, prices, gap * size, True)
    weights, gap = nnls(unit, goal, maxiter=10 * columns.shape[1])
    prices = goal - unit @ weights
    return Combination(weights * size / norms, prices, float(gap) * size, bool(gap <= CLOSE))


def _polish(unit: Array, goal: Array, weights: Array) -> Array:
    """Solve the equations again for the columns in use, if that keeps the weights non-negative."""
    used = np.flatnonzero(weights > 1e-12 * weights.max(initial=0))
    if len(used) == 0:
        return weights
    polished = np.zeros_like(weights)
    polished[used] = np.linalg.lstsq(unit[:, used], goal, rcond=None)[0]
    if bool((polished >= 0).all()):
        return polished
    polished[used] = nnls(unit[:, used], goal, maxiter=10 * len(used))[0]
    return polished
