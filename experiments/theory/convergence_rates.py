"""What theory predicts of CGA against squared l2 (Theorem 4): its bound, and its true rate.

With G_t the honest sum, CGA's update is Equation 168, ``rho_{t+1} = target - eta (G_t - G_{t-1})``:
a linear recursion near the target, where ``G_t - G_{t-1} = H (rho_t - rho_{t-1})``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from experiments.theory.scenario import Scenario

Array = NDArray[np.float64]

ALPHA = math.sqrt(7) / 3
"""The rate of Theorem 4's proof."""
LIMIT = 0.5
"""What ``eta h`` must stay below for CGA to converge."""


def honest_hessian(scenario: Scenario) -> Array:
    """Return the honest envelope's Hessian at the target, ``(d, d)``, from the data alone.

    The sum over the users of the parallel sums of ``H_n = Hess L_n(theta_n)`` and ``2 lam I``,
    ``2 lam H_n (H_n + 2 lam I)^{-1}``, for squared l2.
    """
    start = scenario.target.repeat(len(scenario.users), 1)
    local = scenario.honest.solve(scenario.target, start).theta
    lam, total = scenario.regularizer.lam, np.zeros((scenario.dim, scenario.dim))
    for user, theta in zip(scenario.users, local.numpy(), strict=True):
        queries = user.features.numpy()
        weights = np.ones(len(queries))
        if scenario.loss == "logistic":
            weights = 0.25 / np.cosh(queries @ theta / 2) ** 2
        own, axes = np.linalg.eigh(queries.T @ (weights[:, None] * queries))
        own = own + 2 * scenario.nu
        total += axes @ np.diag(2 * lam * own / (own + 2 * lam)) @ axes.T
    return total


def curvature(hessian: Array) -> float:
    """Return h, the largest eigenvalue of the honest envelope's Hessian."""
    return float(np.linalg.eigvalsh(hessian)[-1])


def rate(step: float) -> float:
    """Return the growth per round of CGA along an eigenvector, ``step = eta h``.

    By Equation 168 the error obeys ``e_{t+1} = -eta h (e_t - e_{t-1})``: the larger of the roots
    of ``x^2 + eta h x - eta h = 0`` in absolute value.

    >>> round(rate(0.5), 12), round(rate(1 / 3), 4)
    (1.0, 0.7676)
    """
    return (step + math.sqrt(step * step + 4 * step)) / 2


def forecast(errors: Array, steps: Array, rounds: int) -> Array:
    """Return ``||e_{t+1} - e_t||`` for rounds of ``e_{t+1} = -eta H (e_t - e_{t-1})``.

    ``errors`` are e_{t-1} and e_t, ``(2, d)``, ``steps`` is ``eta H``; the first entry returned is
    of the round after them.
    """
    before, now = errors
    norms = []
    for _ in range(rounds):
        before, now = now, -steps @ (now - before)
        norms.append(float(np.linalg.norm(now - before)))
    return np.array(norms)


def proven(u: Array) -> Array:
    """Return Theorem 4's bound on ``u_t = ||rho_{t+1} - rho_t||``, t = 1 .. T, with its own C.

    Equation 168, ``rho_{t+1} = target - eta (G_t - G_{t-1})``, holds from t = 1 with ``G_0 = 0``,
    as CGA cancels nothing in its first round. Hence from t = 3 ``u_t <= eta L (u_{t-1} + u_{t-2})``
    and from t = 2 ``v_{t+2} <= 7/9 v_t``, with ``v_t = u_t + u_{t-1}``, so that

        u_t <= v_t <= (7/9)^((t-3)/2) max(v_2, v_3) = C alpha^t,  C = max(v_2, v_3)/alpha^3.

    The paper's v_0 and v_1 are these v_2 and v_3: with less than two past steps there is no v.
    """
    first = max(u[1] + u[0], u[2] + u[1])
    bound: Array = first * ALPHA ** (np.arange(1, len(u) + 1) - 3.0)
    return bound
