"""LOSS (Equation 1) as a function of rho alone: the users' envelopes and what attackers add.

    F(rho) = sum_n e_n(rho) + sum_m R(rho, m) + <g, rho> + w ||rho - a||^2
    e_n(rho) = min_theta L_n(theta) + R(rho, theta)

With H_L and H_R the Hessians of L_n and R at theta_n, an envelope's Hessian is the parallel sum
``H_R - H_R (H_L + H_R)^{-1} H_R``, and ``H_L`` where l2 sits at its kink.

At ``rho = m`` an attack model's l2 has a kink as well: its subdifferential there is the ball
``B(0, phi'(0+))``, and the slope of F is the least of ``G + B``, G being that of all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.solvers.population import Population

RIDGE = 1e-13
"""Relative to the mean curvature: some hundred units of rounding. It moves no step that has digits,
and keeps the system regular along shifts that a softmax without nu does not see."""


@dataclass(frozen=True)
class SharedPoint:
    """F at a rho.

    Attributes
    ----------
    rho, theta : Tensor
        Global model ``(d,)`` and the users' exact responses ``(k, d)``.
    value : Tensor
        F, a scalar.
    gradient : Tensor
        Its gradient, ``(d,)``; the shortest subgradient at an attack model's kink.
    smooth : Tensor
        The gradient ``(d,)`` of all but the attack models that are at rho.
    kink : float
        Radius of what those add: their number times ``phi'(0+)``; 0 where there is none.
    local_residual : float
        Worst residual of the local problems.
    """

    rho: Tensor
    theta: Tensor
    value: Tensor
    gradient: Tensor
    smooth: Tensor
    kink: float
    local_residual: float

    @property
    def residual(self) -> float:
        """``||gradient||``: the distance of 0 to the subdifferential."""
        return float(torch.linalg.vector_norm(self.gradient))


class SharedLoss:
    """F, see above.

    Parameters
    ----------
    population : Population
        The users who solve their local problems.
    models : Tensor, optional
        Attack models ``(m, d)``.
    coupling : Regularizer, optional
        What couples rho to them; the users' own when absent.
    linear : Tensor, optional
        g, ``(d,)``.
    anchor : Tensor, optional
        a, ``(d,)``.
    weight : float
        w.
    """

    def __init__(
        self,
        population: Population,
        models: Tensor | None = None,
        coupling: Regularizer | None = None,
        linear: Tensor | None = None,
        anchor: Tensor | None = None,
        weight: float = 0.0,
    ) -> None:
        self.population, self.models = population, models
        self.coupling, self.linear = coupling or population.regularizer, linear
        self.anchor, self.weight = anchor, weight

    def anchored(self, anchor: Tensor, weight: float) -> SharedLoss:
        """Return the same with ``w ||rho - a||^2``: of many minimisers the nearest to a is left."""
        return SharedLoss(self.population, self.models, self.coupling, self.linear, anchor, weight)

    @property
    def kinks(self) -> Tensor:
        """The attack models ``(j, d)`` at which F has a kink, each once."""
        if self.models is None or self.coupling.kink == 0:
            return torch.zeros((0, self.population.model.dim), dtype=self.population.dtype)
        kinks: Tensor = torch.unique(self.models, dim=0)
        return kinks

    def at(self, rho: Tensor, theta: Tensor) -> SharedPoint:
        """Return F at ``rho (d,)``, the local solves begun at ``theta (k, d)``."""
        population, regularizer = self.population, self.population.regularizer
        solution = population.solve(rho, theta)
        value = (population.value(solution.theta) + regularizer.value(rho, solution.theta)).sum()
        smooth, kink = population.report(rho, solution.theta).sum(dim=0), 0.0
        if self.models is not None:
            value = value + self.coupling.value(rho, self.models).sum()
            # At its own kink grad_rho is 0.
            smooth = smooth + self.coupling.grad_rho(rho, self.models).sum(dim=0)
            kink = self.coupling.kink * int((self.models == rho).all(dim=-1).sum())
        if self.linear is not None:
            value, smooth = value + self.linear @ rho, smooth + self.linear
        if self.anchor is not None:
            away = rho - self.anchor
            value, smooth = value + self.weight * away @ away, smooth + 2 * self.weight * away
        gradient = smooth if kink == 0 else shrunk(smooth, kink)
        worst = float(solution.residual.max())
        return SharedPoint(rho, solution.theta, value, gradient, smooth, kink, worst)

    def hessian(self, point: SharedPoint) -> Tensor:
        """Return the Hessian of F, ``(d, d)``, without attack models that are at rho."""
        identity = torch.eye(len(point.rho), dtype=point.rho.dtype, device=point.rho.device)
        hessian = torch.zeros_like(identity)
        for row, theta in enumerate(point.theta):
            local = self.population.hessian(row, theta)
            hessian += envelope_hessian(
                local, self.population.regularizer, point.rho, theta, identity
            )
        for model in () if self.models is None else self.models:
            hessian += self.coupling.hessian_product(point.rho, model, identity)
        if self.anchor is not None:
            hessian += 2 * self.weight * identity
        return hessian


def shrunk(gradient: Tensor, radius: float) -> Tensor:
    """Return the shortest vector ``(d,)`` of ``gradient + B(0, radius)``.

    >>> shrunk(torch.tensor([3.0, 4.0]), 4.0), shrunk(torch.tensor([3.0, 4.0]), 5.0)
    (tensor([0.6000, 0.8000]), tensor([0., 0.]))
    """
    norm = torch.linalg.vector_norm(gradient)
    return gradient * (1 - radius / norm.clamp(min=radius))


def envelope_hessian(
    local: Tensor, regularizer: Regularizer, rho: Tensor, theta: Tensor, identity: Tensor
) -> Tensor:
    """Return the Hessian ``(d, d)`` of a user's envelope from that of its loss."""
    if regularizer.kink > 0 and bool((theta == rho).all()):
        return local
    coupling = regularizer.hessian_product(rho, theta, identity)
    # H_R - H_R (H_L + H_R)^{-1} H_R and not the inverse of a sum of inverses: for l2 H_R has none.
    return coupling - coupling @ torch.linalg.solve_ex(local + coupling, coupling).result
