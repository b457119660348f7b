"""Honest users' models on test sets of their own: theta_n, rho, and what each would learn alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from clients.local_steps import begun, local_steps
from pfl_flower.aggregation.rows import positions
from pfl_flower.objective.own_points import OwnPoints
from pfl_flower.run.problem import Problem
from pfl_flower.run.served import Served


def judged(
    problem: Problem, users: tuple[int, ...], theta: Tensor, rho: Tensor, alone: Tensor
) -> dict[int, Served]:
    """Return what models come to on the test sets of those users who keep one.

    ``theta (k, d)`` are the users' models, ``alone (k,)`` what ``judged_alone`` returns.
    """
    found = {}
    for some in _chunks(problem, users):
        tested, tests = problem.own_tests(some)
        rows = positions(tested, users)
        own = _judged(problem, tests, theta[rows.to(theta.device)])
        common = _judged(problem, tests, rho.expand(len(tested), -1))
        for place, user in enumerate(tested):
            lonely = float(alone[rows[place]])
            found[user] = Served(
                train=problem.size(user),
                tests=tests.sizes[place],
                theta=float(own[place]),
                rho=float(common[place]),
                alone=None if math.isnan(lonely) else lonely,
            )
    return found


def judged_alone(problem: Problem, users: tuple[int, ...]) -> Tensor:
    """Return what models learned alone come to, ``(k,)``; NaN where there is no model or test."""
    values = torch.full((len(users),), math.nan, dtype=torch.float64)
    for some in _chunks(problem, users):
        tested, tests = problem.own_tests(some)
        theta = learned_alone(problem, tested) if tested else None
        if theta is not None:
            known = torch.isfinite(theta).all(dim=1).cpu()
            found = _judged(problem, tests, theta.to(problem.device, problem.dtype))
            values[positions(tested, users)] = torch.where(known, found, math.nan)
    return values


def learned_alone(problem: Problem, users: tuple[int, ...]) -> Tensor | None:
    """Return ``argmin L_n``, ``(k, d)``, as users would find it without the others (lam -> 0).

    Where the run solves exactly so is this, with NaN in the row of a user whose solve misses the
    tolerance; with nu = 0 there need be no minimiser, and None is returned. Else it is the run's
    optimiser, from the same start, for as many steps as the run takes, along ``grad L_n`` alone.
    """
    config, start = problem.config, problem.local_start(users)
    if config.local_solver != "exact":
        population, memory = problem.draw(users), begun(config, start)
        for round in range(1, config.rounds + 1):
            memory, _ = local_steps(problem, population, users, round, memory, None)
        return memory["theta"]
    if config.nu == 0:
        return None
    centre = torch.zeros_like(problem.initial)
    solution = problem.alone(users).solve(centre, centre.repeat(len(users), 1))
    return torch.where(solution.converged[:, None], solution.theta, math.nan)


def _chunks(problem: Problem, users: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the users, as many at a time as a node holds the data of."""
    size = problem.config.chunk_users or len(users)
    for first in range(0, len(users), size):
        yield users[first : first + size]


def _judged(problem: Problem, tests: OwnPoints, theta: Tensor) -> Tensor:
    regression = problem.source.loss == "least-squares"
    judge = tests.squared_error if regression else tests.accuracy
    return judge(problem.model, theta)
