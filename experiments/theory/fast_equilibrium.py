"""The equilibrium of many small local problems under squared l2, by one Newton's method on all.

Many times faster than ``pfl_flower.solvers.equilibrium``, which serves any problem, user by user,
and is what studies check these results against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from experiments.theory.scenario import Scenario
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.line_search import line_search

STILL = 1e-9
"""Length of the last step, relative to the models; the error left is about its square."""


def settle(scenario: Scenario, users: Sequence[UserData], start: Tensor) -> Tensor:
    """Return rho* and all theta_n*, which minimise LOSS (Equation 1).

    With ``M_n = Hess L_n(theta_n) + 2 lam I``, the Newton step of rho solves a system with matrix
    ``2 lam k I - 4 lam^2 sum_n M_n^{-1}``, and those of the theta_n follow from it.

    Parameters
    ----------
    scenario : Scenario
        States model, loss, nu and lam.
    users : sequence of UserData
        All k users, honest or not.
    start : Tensor
        rho and the theta_n, ``(k + 1, d)``.

    Raises
    ------
    RuntimeError
        If steps do not become short.
    """
    local, models = stacked(scenario, users, nu=scenario.nu), start
    lam, identity = scenario.regularizer.lam, torch.eye(scenario.dim, dtype=start.dtype)
    strength = 2 * lam

    def value(models: Tensor) -> Tensor:
        return (local.value(models[1:]) + lam * ((models[0] - models[1:]) ** 2).sum(dim=1)).sum()

    def gradient(models: Tensor) -> Tensor:
        pulls = strength * (models[0] - models[1:])
        return torch.cat([pulls.sum(dim=0)[None], local.gradient(models[1:]) - pulls])

    for _ in range(200):
        slopes = gradient(models)
        inverse = torch.linalg.inv(local.hessian(models[1:]) + strength * identity)
        own = (inverse @ slopes[1:, :, None])[..., 0]
        shared = strength * len(users) * identity - strength**2 * inverse.sum(dim=0)
        first = torch.linalg.solve(shared, slopes[0] + strength * own.sum(dim=0))
        step = torch.cat([first[None], own + strength * (inverse @ first)])
        if torch.linalg.vector_norm(step) <= STILL * (1 + torch.linalg.vector_norm(models)):
            return models - step
        scale = _good_scale(value, gradient, models, step)
        if scale == 0:
            break
        models = models - scale * step
    raise RuntimeError("no equilibrium after 200 Newton steps, or no step that leads down")


def _good_scale(
    value: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor], Tensor],
    models: Tensor,
    step: Tensor,
) -> float:
    slopes = gradient(models)
    return float(
        line_search(
            lambda s: value(models - s * step),
            value(models),
            (slopes * step).sum(),
            norm_at=lambda s: torch.linalg.vector_norm(gradient(models - s * step)),
            norm=torch.linalg.vector_norm(slopes),
        )
    )


def stacked(scenario: Scenario, users: Sequence[UserData], *, nu: float) -> LocalLoss:
    """Return the users' losses, those with fewer points padded by points of weight 0."""
    weights = [
        torch.ones(len(user.features), dtype=torch.float64)
        if user.weights is None
        else user.weights
        for user in users
    ]
    return LocalLoss.build(
        scenario.model,
        scenario.point_loss,
        pad_sequence([user.features for user in users], batch_first=True),
        pad_sequence([user.labels.double() for user in users], batch_first=True),
        weights=pad_sequence(weights, batch_first=True),
        nu=nu,
    )
