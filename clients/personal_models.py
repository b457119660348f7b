"""What honest users work out in a round, by ``personalization``: their models and their reports.

The table and its sources are in ``pfl_flower.run.personalization``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.local_steps import local_steps, loss_gradient
from pfl_flower.run.problem import Problem
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.proximal import Solution
from pfl_flower.transport.node_metrics import NodeMetrics

Memory = dict[str, Tensor]


class Asked(NamedTuple):
    """Users who are asked in a round, and what they go by.

    Attributes
    ----------
    problem : Problem
        What is learned.
    population : Population
        The users with their data.
    users : tuple of int
        Their ids.
    round : int
        t.
    rho : Tensor
        rho_t, ``(d,)``.
    memory : dict
        Their models ``(k, d)`` of the round before, and what goes with them.
    """

    problem: Problem
    population: Population
    users: tuple[int, ...]
    round: int
    rho: Tensor
    memory: Memory


def answered(asked: Asked) -> tuple[Tensor, Memory, NodeMetrics]:
    """Return reports ``(k, d)``, what is remembered, and what is to be said of the solves."""
    if asked.problem.config.personalization == "joint":
        if asked.problem.config.simultaneous:
            reports = asked.population.report(asked.rho, asked.memory["theta"])
            return reports, *_tied(asked, reports)
        after, said = _tied(asked)
        return asked.population.report(asked.rho, after["theta"]), after, said
    if asked.problem.config.personalization == "local":
        after, said = _alone(asked)
        return torch.zeros_like(after["theta"]), after, said
    reports = _slopes(asked)
    if asked.problem.config.personalization == "ditto":
        return reports, *_tied(asked)
    return reports, {**asked.memory, "theta": _everywhere(asked).clone()}, NodeMetrics()


def _tied(asked: Asked, reports: Tensor | None = None) -> tuple[Memory, NodeMetrics]:
    """Take models to, or towards, ``argmin L_n + R(rho_t, .)``.

    ``reports`` are those of the models as they are, if they have been worked out.
    """
    if asked.problem.config.local_solver == "exact":
        return _solved(asked.population.solve(asked.rho, asked.memory["theta"]))
    return _stepped(asked, asked.rho, reports)


def _alone(asked: Asked) -> tuple[Memory, NodeMetrics]:
    """Take models to, or towards, ``argmin L_n``."""
    if asked.problem.config.local_solver == "exact":
        centre = torch.zeros_like(asked.rho)
        return _solved(asked.population.alone().solve(centre, asked.memory["theta"]))
    return _stepped(asked, None)


def _slopes(asked: Asked) -> Tensor:
    """Return ``grad L_n(rho_t)``, ``(k, d)``, or its estimate from a round's own batches."""
    config = asked.problem.config
    there = _everywhere(asked)
    return loss_gradient(
        config, asked.population, asked.users, there, ("report batch", asked.round)
    )


def _everywhere(asked: Asked) -> Tensor:
    return asked.rho.expand(len(asked.users), -1)


def _solved(solution: Solution) -> tuple[Memory, NodeMetrics]:
    said = [solution.residual.max().double(), (~solution.converged).sum().double()]
    # Both at once: a card is waited for at each look.
    worst, unconverged = torch.stack(said).tolist()
    metrics = NodeMetrics(worst_residual=worst, unconverged=int(unconverged))
    return {"theta": solution.theta}, metrics


def _stepped(
    asked: Asked, rho: Tensor | None, reports: Tensor | None = None
) -> tuple[Memory, NodeMetrics]:
    # At a kink a report is what a user holds of rho, not R's gradient.
    pull = None if asked.problem.regularizer.kink else reports
    after, residual = local_steps(
        asked.problem, asked.population, asked.users, asked.round, asked.memory, rho, pull
    )
    return after, NodeMetrics(worst_residual=float(residual))
