"""Classical federated learning, on its own: gradients and Hessians of L_n from the data alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from experiments.theory.scenario import Scenario, settled

Array = NDArray[np.float64]
NEWTON = 50


@dataclass(frozen=True)
class Classical:
    """``min sum_n L_n(rho)`` by gradient descent from 0 and in the end.

    Attributes
    ----------
    scenario : Scenario
        The users; what couples them plays no part.
    path : ndarray
        rho_t, ``(T + 1, d)``.
    optimum : ndarray
        rho*, ``(d,)``.
    eta : float
        The step size, ``1 / sum_n L_n's smoothness``.
    """

    scenario: Scenario
    path: Array
    optimum: Array
    eta: float

    @classmethod
    def of(cls, scenario: Scenario, rounds: int) -> Self:
        """Descend for so many rounds, and solve."""
        eta = 1 / float(scenario.honest.smoothness().sum())
        path = [np.zeros(scenario.dim)]
        for _ in range(rounds):
            path.append(path[-1] - eta * slopes(scenario, path[-1]).sum(axis=0))
        rho = path[-1]
        for _ in range(NEWTON):
            total = slopes(scenario, rho).sum(axis=0)
            rho = rho - np.linalg.solve(curvatures(scenario, rho).sum(axis=0), total)
        return cls(scenario, np.array(path), rho, eta)

    @cached_property
    def needed(self) -> tuple[float, float]:
        """The lam from which on l2 is classical federated learning: at rest, and on the way."""
        norms = [np.linalg.norm(slopes(self.scenario, rho), axis=1).max() for rho in self.path[:-1]]
        at_rest = np.linalg.norm(slopes(self.scenario, self.optimum), axis=1).max()
        return float(at_rest), float(max(norms))

    @cached_property
    def unit(self) -> float:
        """The largest curvature of an L_n, or the largest gradient on the way if that is more."""
        return max(float(self.scenario.honest.smoothness().max()), *self.needed)

    def predicted(self, c: int) -> tuple[float, float]:
        """Return lam times the first-order distance, at rest and on the way, relative as ``apart``.

        ``H^{-1} sum_n H_n g_n / c`` at the optimum, and the longest ``delta_t`` of the recursion.
        """
        hessian, drift = self._expansion(self.optimum, c)
        at_rest = float(np.linalg.norm(np.linalg.solve(hessian, drift)))
        delta, most = np.zeros_like(self.optimum), 0.0
        for rho in self.path[:-1]:
            hessian, drift = self._expansion(rho, c)
            delta = delta - self.eta * (hessian @ delta) + self.eta * drift
            most = max(most, float(np.linalg.norm(delta)))
        return at_rest / self._length, most / self._length

    def apart(self, scenario: Scenario) -> tuple[float, float]:
        """Return how far a coupled scenario is from it: at rest, and the most on the way.

        Relative to the length of the classical optimum.
        """
        at_rest = np.linalg.norm(settled(scenario.honest).rho.numpy() - self.optimum)
        descent = scenario.descend([], eta=self.eta, rounds=len(self.path) - 1)
        on_the_way = np.linalg.norm(descent.rho.numpy() - self.path, axis=1).max()
        return float(at_rest) / self._length, float(on_the_way) / self._length

    @property
    def _length(self) -> float:
        return float(np.linalg.norm(self.optimum))

    def _expansion(self, rho: Array, c: int) -> tuple[Array, Array]:
        """Return ``H (d, d)`` and ``sum_n H_n g_n / c (d,)``."""
        hessians, gradients = curvatures(self.scenario, rho), slopes(self.scenario, rho)
        return hessians.sum(axis=0), np.einsum("nij,nj->i", hessians, gradients) / c


def slopes(scenario: Scenario, rho: Array) -> Array:
    """Return ``grad L_n(rho)`` of every user, ``(N, d)``.

    Of least squares, half the squared error of a point, and of logistic regression.
    """
    found = []
    for user in scenario.users:
        queries, labels = user.features.numpy(), user.labels.numpy()
        scores = queries @ rho
        if scenario.loss == "logistic":
            errors = -labels / (1 + np.exp(labels * scores))
        else:
            errors = scores - labels
        found.append(2 * scenario.nu * rho + queries.T @ errors)
    return np.array(found)


def curvatures(scenario: Scenario, rho: Array) -> Array:
    """Return the Hessian of ``L_n`` at rho for every user, ``(N, d, d)``."""
    found = []
    for user in scenario.users:
        queries = user.features.numpy()
        weights = np.ones(len(queries))
        if scenario.loss == "logistic":
            weights = 0.25 / np.cosh(queries @ rho / 2) ** 2
        own = queries.T @ (weights[:, None] * queries)
        found.append(own + 2 * scenario.nu * np.eye(len(rho)))
    return np.array(found)
