"""Honest users of least squares or logistic regression who answer by models of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.theory.scenario import Scenario
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.seeding import generator


def draw_scenario(
    loss: str,
    regularizer: Regularizer,
    *,
    seed: int,
    users: int = 5,
    points: int = 40,
    dim: int = 5,
    nu: float = 0.1,
    idle: bool = False,
) -> Scenario:
    """Return users of least squares or logistic regression, without bias.

    Their queries are standard normal, and span R^d where there are at least d of them. Each user
    answers by a model of its own, a common standard normal one plus noise of deviation 0.5.
    """
    draw = generator(seed, "game", loss, users, points, dim)
    common = _normal(dim, draw=draw)
    data = []
    for _ in range(users):
        preferred = common + 0.5 * _normal(dim, draw=draw)
        queries = _normal(points, dim, draw=draw)
        data.append(UserData(queries, answers(loss, queries, preferred, draw=draw)))
    return Scenario(
        loss=loss, users=tuple(data), regularizer=regularizer, nu=nu, seed=seed, idle=idle
    )


def answers(
    loss: str, queries: Tensor, preferred: Tensor, *, draw: torch.Generator, noise: float = 0.1
) -> Tensor:
    """Return the answers ``(n,)`` of an honest user who prefers a model ``(d,)``.

    ``noise`` is the standard deviation of a regression's answers; the labels of logistic
    regression are drawn from the preferred model's probabilities.
    """
    scores = queries @ preferred
    if loss == "least-squares":
        return scores + noise * _normal(len(queries), draw=draw)
    uniform = torch.rand(len(queries), generator=draw, dtype=torch.float64)
    return torch.where(uniform < torch.sigmoid(scores), 1.0, -1.0).to(torch.float64)


def _normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)
