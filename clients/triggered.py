"""What a trigger does to honest users' models."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.objective.own_points import OwnPoints
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.problem import Problem
from pfl_flower.run.triggered import Triggered


def led(
    problem: Problem, users: tuple[int, ...], theta: Tensor, rho: Tensor
) -> dict[int, Triggered]:
    """Return what the trigger of the run's attack does to users' models ``theta (k, d)`` and rho.

    Users are judged on test points of their own where they keep any, else on the common ones; who
    has none but of the label's class is left out, and so is everybody where there is no trigger.
    """
    if problem.backdoor is None:
        return {}
    if problem.source.tested:
        return _on_own(problem, users, theta, rho)
    points = problem.triggered_tests
    if points is None:
        return {}
    shares = points.accuracy_of_each(problem.model, torch.cat([theta, rho[None]])).tolist()
    return {
        user: Triggered(len(points.labels), share, shares[-1])
        for user, share in zip(users, shares, strict=False)
    }


def _on_own(
    problem: Problem, users: tuple[int, ...], theta: Tensor, rho: Tensor
) -> dict[int, Triggered]:
    found, size = {}, problem.config.chunk_users or len(users)
    for first in range(0, len(users), size):
        sets = _own(problem, users[first : first + size])
        if not sets:
            continue
        points = OwnPoints(list(sets.values()), problem.dtype, problem.device)
        rows = torch.tensor([users.index(user) for user in sets])
        own = points.accuracy(problem.model, theta[rows.to(theta.device)]).tolist()
        common = points.accuracy(problem.model, rho.expand(len(sets), -1)).tolist()
        for place, user in enumerate(sets):
            found[user] = Triggered(points.sizes[place], own[place], common[place])
    return found


def _own(problem: Problem, users: tuple[int, ...]) -> dict[int, UserData]:
    """Return users' own test points with the trigger, of those who have any of other classes."""
    sets = {}
    for user in users:
        tests, backdoor = problem.source.own_tests(user), problem.backdoor
        if tests is not None and backdoor is not None:
            features, labels = backdoor.triggered(tests.features, tests.labels)
            if len(labels):
                sets[user] = UserData(features, labels)
    return sets
