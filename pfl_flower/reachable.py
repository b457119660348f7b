"""Where the counter-gradient attack ends when GRAD is a ball and the target is out of reach.

By Proposition 2 its limit is partially honest: ``g_inf = radius u``, u the unit vector of
``rho_inf - target``. With F the honest envelope, ``grad F(rho_inf) + g_inf = 0`` then says

    rho_inf = argmin F(rho) + radius ||rho - target||,

a convex problem whose minimiser is the target itself if and only if ``||grad F(target)|| <=
radius``, that is, if and only if the target can be reached. So the limit does not depend on step
sizes, and it is the same for every regulariser with this ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.equilibrium import equilibrium
from pfl_flower.equivalence import honest_sum
from pfl_flower.population import Population
from pfl_flower.regularizers import L2, Regularizer


@dataclass(frozen=True)
class Limit:
    """The global model nearest to the target, in CGA's sense, that one strategic user can hold.

    Attributes
    ----------
    rho : Tensor
        rho_inf, ``(d,)``.
    gradient : Tensor
        g_inf, ``(d,)``: minus the honest sum at rho_inf.
    reached : bool
        Whether ``rho_inf = target``.
    residual : float
        ``||honest sum + radius u||``; 0 where the target is reached.
    local_residual : float
        Worst residual of the honest users' local problems at rho_inf.
    converged : bool
        Both residuals are within their tolerances.
    """

    rho: Tensor
    gradient: Tensor
    reached: bool
    residual: float
    local_residual: float
    converged: bool


def reachable_limit(
    population: Population,
    target: Tensor,
    *,
    radius: float | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 100,
) -> Limit:
    """Return rho_inf and g_inf of the counter-gradient attack against honest users.

    Parameters
    ----------
    population : Population
        The honest users.
    target : Tensor
        theta_dagger, ``(d,)``.
    radius : float, optional
        Largest norm of the attackers' summed gradient: the radius of GRAD when absent, ``k``
        times it for a coalition of k.
    tolerance : float
        On the norm of the gradient.
    max_iterations : int
        Most Newton steps.

    Raises
    ------
    ValueError
        If the radius is not positive.
    """
    radius = population.regularizer.radius if radius is None else radius
    if not radius > 0:
        raise ValueError(f"radius = {radius}: expected a positive number")
    others = honest_sum(population, target)
    if math.isinf(radius) or float(torch.linalg.vector_norm(others.value)) <= radius:
        good = others.residual <= population.tolerance
        return Limit(target, -others.value, True, 0.0, others.residual, good)
    pull = _Pull(population, target, L2(lam=radius))
    honest = equilibrium(population, tolerance=tolerance)
    point = pull.at(honest.rho, honest.theta)
    for _ in range(max_iterations):
        moved = None if point.norm <= tolerance else pull.advance(point)
        if moved is None:
            break
        point = moved
    good = point.norm <= tolerance and point.local_residual <= population.tolerance
    return Limit(point.rho, -point.others, False, point.norm, point.local_residual, good)


@dataclass(frozen=True)
class _Point:
    rho: Tensor
    theta: Tensor
    others: Tensor
    value: float
    gradient: Tensor
    norm: float
    local_residual: float


class _Pull:
    """``F(rho) + radius ||rho - target||`` and Newton's method for it.

    The target is not the minimiser, so the kink there is never where the iteration ends.
    """

    def __init__(self, population: Population, target: Tensor, ball: L2) -> None:
        self.population, self.target, self.ball = population, target, ball

    def at(self, rho: Tensor, theta: Tensor) -> _Point:
        population = self.population
        solution = population.solve(rho, theta)
        coupling = population.regularizer.value(rho, solution.theta)
        value = (population.value(solution.theta) + coupling).sum()
        others = population.report(rho, solution.theta).sum(dim=0)
        gradient = others + self.ball.grad_rho(rho, self.target)
        return _Point(
            rho=rho,
            theta=solution.theta,
            others=others,
            value=float(value + self.ball.value(rho, self.target)),
            gradient=gradient,
            norm=float(torch.linalg.vector_norm(gradient)),
            local_residual=float(solution.residual.max()),
        )

    def advance(self, point: _Point) -> _Point | None:
        """Largest halving of Newton's step that lowers the value or, at the end, the gradient."""
        identity = torch.eye(len(point.rho), dtype=point.rho.dtype, device=point.rho.device)
        hessian = self.ball.hessian_product(point.rho, self.target, identity)
        for row, theta in enumerate(point.theta):
            local = self.population.hessian(row, theta)
            hessian = hessian + _envelope_hessian(
                local, self.population.regularizer, point.rho, theta
            )
        ridge = 1e-13 * hessian.diagonal().mean()
        step = torch.linalg.solve(hessian + ridge * identity, point.gradient)
        slope, scale = float(point.gradient @ step), 1.0
        rounding = 8 * torch.finfo(step.dtype).eps * abs(point.value)
        for _ in range(40):
            moved = self.at(point.rho - scale * step, point.theta)
            lower = moved.value <= point.value - 1e-4 * scale * slope
            if lower and scale * slope > rounding:
                return moved
            # A smaller gradient alone is no progress: two such steps can undo each other for ever.
            level = moved.value <= point.value + rounding
            if level and moved.norm <= (1 - 0.1 * scale) * point.norm:
                return moved
            scale /= 2
        return None


def _envelope_hessian(
    local: Tensor, regularizer: Regularizer, rho: Tensor, theta: Tensor
) -> Tensor:
    """Parallel sum of the Hessians of L_n and of R, see ``pfl_flower.equilibrium``."""
    if regularizer.kink > 0 and bool((theta == rho).all()):
        return local
    identity = torch.eye(len(rho), dtype=rho.dtype, device=rho.device)
    coupling = regularizer.hessian_product(rho, theta, identity)
    return coupling - coupling @ torch.linalg.solve(local + coupling, coupling)
