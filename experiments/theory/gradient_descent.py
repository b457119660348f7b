"""Federated gradient descent with exact local solves, without messages: the theory's setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Attack, Observation, plausible_report
from pfl_flower.solvers.population import Population


@dataclass(frozen=True)
class Descent:
    """What happened in T rounds.

    Attributes
    ----------
    rho : Tensor
        Global models, ``(T + 1, d)``, the start first.
    reports : Tensor
        The attacks' reports, ``(T, m, d)``.
    honest : Tensor
        Sums of the users' reports, ``(T, d)``.
    theta : Tensor
        The users' local models in the last round, ``(k, d)``.
    worst_residual : float
        Of all local solves.
    """

    rho: Tensor
    reports: Tensor
    honest: Tensor
    theta: Tensor
    worst_residual: float

    @property
    def limit(self) -> Tensor:
        """The last global model, ``(d,)``."""
        return self.rho[-1]

    @property
    def steps(self) -> Tensor:
        """``||rho_{t+1} - rho_t||``, ``(T,)``."""
        return torch.linalg.vector_norm(self.rho[1:] - self.rho[:-1], dim=1)


def descend(
    population: Population,
    attacks: Sequence[Attack[Any]] = (),
    *,
    eta: float,
    rounds: int,
    start: Tensor,
    tolerance: float = 0.0,
    far: float = math.inf,
) -> Descent:
    """Run ``rho_{t+1} = rho_t - eta sum_n g_n^t`` with a constant step (Section 2.2).

    Ends after ``rounds`` rounds, when a step is at most ``tolerance``, when ``||rho||`` exceeds
    ``far``, or when rho is no longer finite. Every report of an attack is projected on GRAD(rho_t)
    and accepted.
    """
    rho, theta = start, start.repeat(population.size, 1)
    states = [attack.init(rho) for attack in attacks]
    accepted = [torch.zeros_like(rho) for _ in attacks]
    path, reports, honest, worst = [rho], [], [], 0.0
    for round in range(1, rounds + 1):
        solution = population.solve(rho, theta)
        theta, worst = solution.theta, max(worst, float(solution.residual.max()))
        total = population.report(rho, theta).sum(dim=0)
        honest.append(total)
        for index, attack in enumerate(attacks):
            seen = Observation(
                round=round,
                rho=rho,
                eta=eta,
                eta_sum=eta * (round - 1),
                accepted=accepted[index],
            )
            accepted[index], states[index] = plausible_report(
                attack, states[index], seen, population.regularizer
            )
        reports.append(torch.stack([*accepted]) if attacks else rho.new_zeros((0, len(rho))))
        step = eta * (total + reports[-1].sum(dim=0))
        rho = rho - step
        path.append(rho)
        lost = not bool(rho.isfinite().all()) or float(torch.linalg.vector_norm(rho)) > far
        if lost or float(torch.linalg.vector_norm(step)) <= tolerance:
            break
    return Descent(torch.stack(path), torch.stack(reports), torch.stack(honest), theta, worst)


class Round(NamedTuple):
    """No memory: what is sent depends on the round alone."""


@dataclass(frozen=True)
class GradientSequence:
    """A gradient attack that sends ``sequence(t)``, ``(d,)``, in round t, whatever it sees."""

    sequence: Callable[[int], Tensor]

    def init(self, rho: Tensor) -> Round:
        """Return the empty state."""
        return Round()

    def update(self, state: Round, observation: Observation) -> tuple[Tensor, Round]:
        """Return the round's gradient."""
        return self.sequence(observation.round), state


def envelope_smoothness(population: Population, *, constant: bool = True) -> float:
    """Return an upper bound L on the curvature of the users' summed envelopes.

    Each envelope is as smooth as R in rho (2 lam for squared l2, lam for smooth l2) and as its own
    ``L_n``: ``constant`` takes the first, Theorem 4's, where it is finite; otherwise the smaller
    one of the two.
    """
    own = float(population.smoothness().sum())
    shared = population.regularizer.envelope_smoothness(population.size)
    if constant and shared != float("inf"):
        return float(shared)
    return min(own, float(shared))
