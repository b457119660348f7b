"""Two CGA users who do not know of each other, under squared l2: rho flees, how fast is known."""

from __future__ import annotations

import math

import numpy as np

from experiments.theory.convergence_rates import honest_hessian
from experiments.theory.scenario import Scenario

APART = 3, 30, 300
"""Step sizes ``1/(factor L)`` of two attackers who do not coordinate."""
FIRST, LAST = 10, 16
"""Rounds between which their growth is measured."""


def growth_apart(scenario: Scenario) -> dict[str, float]:
    """Return how fast two who do not coordinate drive rho away under squared l2.

    Each cancels what it saw of the other: ``e_{t+1} = -2 e_t + e_{t-1} - eta (G_t - G_{t-1})``, so
    that along an eigenvector ``x^2 + (2 + eta h) x - (1 + eta h) = 0``. Least squares are linear:
    the growth lies between the roots of the least and of the largest eigenvalue.
    """
    curvatures = np.linalg.eigvalsh(honest_hessian(scenario))
    found, outside = {}, 0.0
    for factor in APART:
        eta, two = 1 / (factor * scenario.smoothness()), [scenario.counter_gradient()] * 2
        steps = scenario.descend(two, eta=eta, rounds=LAST + 1).steps
        growth = float(steps[LAST] / steps[FIRST]) ** (1 / (LAST - FIRST))
        low, high = (fled(eta * float(h)) for h in (curvatures[0], curvatures[-1]))
        outside = max(outside, low / growth, growth / high)
        found[f"growth at 1/({factor}L)"] = growth
    return {"growth": outside, **found}


def fled(step: float) -> float:
    """Return the growth per round of two CGA users apart, ``step = eta h``: at least 1 + sqrt 2.

    >>> round(fled(0.0), 4), round(fled(1 / 3), 4)
    (2.4142, 2.8081)
    """
    return (2 + step + math.sqrt(8 + 8 * step + step * step)) / 2
