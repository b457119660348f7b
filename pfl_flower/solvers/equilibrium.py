"""The exact minimiser (rho*, theta*) of LOSS (Equation 1): what federated runs are tested against.

rho* minimises the sum of the users' envelopes ``e_n(rho) = min_theta L_n(theta) + R(rho, theta)``,
plus what strategic users impose: ``R(rho, theta_spade)`` for a model attack (Equation 38) and ``<g,
rho>`` for a gradient attack that has converged to g (Lemma 3). With H_L and H_R the Hessians of L_n
and R at theta_n, an envelope's Hessian is the parallel sum ``H_R - H_R (H_L + H_R)^{-1} H_R``, and
``H_L`` where l2 sits at its kink: Newton's method with a line search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.solvers.line_search import line_search, shortened
from pfl_flower.solvers.population import Population

TOLERANCE = 1e-9
"""Of the gradient's norm: ten times what each local solve, exact to 1e-10, may leave in the sum."""
MOST_STEPS = 200
"""Newton steps; 13 is the most that random problems of every loss and regulariser took."""
RIDGE = 1e-13
"""Relative to the mean curvature: some hundred units of rounding. It moves no step that has digits,
and keeps the system regular along shifts that a softmax without nu does not see."""


@dataclass(frozen=True)
class Equilibrium:
    """The minimiser and how well it satisfies the first-order conditions.

    Attributes
    ----------
    rho : Tensor
        Global model, ``(d,)``.
    theta : Tensor
        Local models, ``(k, d)``.
    residual : float
        ``||sum of all gradients at rho||``.
    local_residual : float
        Worst residual of the local problems.
    iterations : int
        Newton steps taken.
    converged : bool
        Both residuals are within the tolerance.
    """

    rho: Tensor
    theta: Tensor
    residual: float
    local_residual: float
    iterations: int
    converged: bool


def equilibrium(
    population: Population,
    *,
    attack_models: Tensor | None = None,
    attack_regularizer: Regularizer | None = None,
    attack_gradient: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MOST_STEPS,
) -> Equilibrium:
    """Minimise LOSS over rho and all local models.

    Parameters
    ----------
    population : Population
        The users who solve their local problems: honest ones and poisoned ones.
    attack_models : Tensor, optional
        Models ``(m, d)`` that strategic users pretend to hold (model attacks).
    attack_regularizer : Regularizer, optional
        What couples rho to the attack models; the users' own when absent.
    attack_gradient : Tensor, optional
        Sum ``(d,)`` of the gradients at which gradient attacks have converged.
    start : Tensor, optional
        First rho, ``(d,)``; 0 when absent.
    tolerance : float
        On the norm of the gradient in rho.
    max_iterations : int
        Most Newton steps.

    Returns
    -------
    Equilibrium
        With ``converged`` False when the tolerance was not met. Where no minimiser exists (nu = 0
        on separable data) gradients fall below any tolerance far out: a large ``||rho||`` tells.
    """
    dim = population.model.dim
    zeros = torch.zeros(dim, dtype=population.dtype, device=population.device)
    coupling = attack_regularizer or population.regularizer
    shared = _Shared(population, attack_models, coupling, attack_gradient)
    point = shared.at(zeros if start is None else start, zeros.expand(population.size, dim))
    iteration = 0
    # Each step starts the local solves at the last local models, a few systems away.
    while iteration < max_iterations:
        norm = float(torch.linalg.vector_norm(point.gradient))
        if norm <= tolerance:
            break
        moved = _along(shared, point, shared.newton_step(point))
        if moved is None:
            break
        point, iteration = moved, iteration + 1
    norm = float(torch.linalg.vector_norm(point.gradient))
    good = norm <= tolerance and point.local_residual <= population.tolerance
    return Equilibrium(point.rho, point.theta, norm, point.local_residual, iteration, good)


@dataclass(frozen=True)
class _Point:
    rho: Tensor
    theta: Tensor
    value: Tensor
    gradient: Tensor
    local_residual: float


class _Shared:
    """LOSS as a function of rho alone."""

    def __init__(
        self,
        population: Population,
        models: Tensor | None,
        coupling: Regularizer,
        gradient: Tensor | None,
    ) -> None:
        self.population, self.models = population, models
        self.coupling, self.linear = coupling, gradient

    def at(self, rho: Tensor, theta: Tensor) -> _Point:
        population, regularizer = self.population, self.population.regularizer
        solution = population.solve(rho, theta)
        value = (population.value(solution.theta) + regularizer.value(rho, solution.theta)).sum()
        gradient = population.report(rho, solution.theta).sum(dim=0)
        if self.models is not None:
            value = value + self.coupling.value(rho, self.models).sum()
            gradient = gradient + self.coupling.grad_rho(rho, self.models).sum(dim=0)
        if self.linear is not None:
            value, gradient = value + self.linear @ rho, gradient + self.linear
        return _Point(rho, solution.theta, value, gradient, float(solution.residual.max()))

    def newton_step(self, point: _Point) -> Tensor:
        population, regularizer = self.population, self.population.regularizer
        identity = torch.eye(len(point.rho), dtype=point.rho.dtype, device=point.rho.device)
        hessian = torch.zeros_like(identity)
        for row, theta in enumerate(point.theta):
            local = population.hessian(row, theta)
            hessian += _envelope_hessian(local, regularizer, point.rho, theta, identity)
        for model in () if self.models is None else self.models:
            hessian += self.coupling.hessian_product(point.rho, model, identity)
        # Everybody at a kink of l2 where L_n is flat: nothing but tiny is left to divide by.
        ridge = RIDGE * hessian.diagonal().mean() + torch.finfo(hessian.dtype).tiny
        # A singular matrix makes a step that is no number, which the line search would refuse.
        step: Tensor = torch.linalg.solve_ex(hessian + ridge * identity, point.gradient).result
        if not bool(hessian.isfinite().all()):
            step = point.gradient
        elif not bool(point.gradient @ step > 0):
            # Where an envelope is straight its curvature is what rounding left, of either sign.
            values, vectors = torch.linalg.eigh(hessian)
            step = vectors @ ((vectors.T @ point.gradient) / values.abs().clamp(min=ridge))
        # An envelope of l2 is straight towards its user, and a Newton step along it has no length.
        reach = torch.linalg.vector_norm(point.rho - point.theta, dim=-1).max()
        return shortened(step, reach)


def _envelope_hessian(
    local: Tensor, regularizer: Regularizer, rho: Tensor, theta: Tensor, identity: Tensor
) -> Tensor:
    if regularizer.kink > 0 and bool((theta == rho).all()):
        return local
    coupling = regularizer.hessian_product(rho, theta, identity)
    # H_R - H_R (H_L + H_R)^{-1} H_R and not the inverse of a sum of inverses: for l2 H_R has none.
    return coupling - coupling @ torch.linalg.solve_ex(local + coupling, coupling).result


def _along(shared: _Shared, point: _Point, step: Tensor) -> _Point | None:
    """Return the point a good way along the step, None where there is none.

    The first good scale is taken: every value costs solves of all local problems.
    """
    at = cache(lambda scale: shared.at(point.rho - scale * step, point.theta))
    scale = line_search(
        lambda s: at(s).value,
        point.value,
        point.gradient @ step,
        norm_at=lambda s: torch.linalg.vector_norm(at(s).gradient),
        norm=torch.linalg.vector_norm(point.gradient),
    )
    return at(float(scale)) if bool(scale > 0) else None
