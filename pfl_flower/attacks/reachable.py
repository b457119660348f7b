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

from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.regularizers import L2
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population


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
    start: Tensor | None = None,
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
    start : Tensor, optional
        Local models ``(k, d)`` from which the solves at the target begin; the target when absent.
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
    others = honest_sum(population, target, start=start)
    # No slack at the edge: a target that is out of reach by rounding ends in a limit next to it.
    if math.isinf(radius) or float(torch.linalg.vector_norm(others.value)) <= radius:
        good = others.residual <= population.tolerance
        return Limit(target, -others.value, True, 0.0, others.residual, good)
    honest = equilibrium(population, tolerance=tolerance)
    # First from where F alone has its minimum, then from the other end of the way.
    for beginning in (honest.rho, target):
        found = equilibrium(
            population,
            attack_models=target[None],
            attack_regularizer=L2(lam=radius),
            start=beginning,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        # Just out of reach, a step from afar can land on the target, the kink, and stay there.
        if found.converged:
            break
    gradient = -population.report(found.rho, found.theta).sum(dim=0)
    return Limit(found.rho, gradient, False, found.residual, found.local_residual, found.converged)
