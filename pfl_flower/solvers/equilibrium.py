"""The exact minimiser (rho*, theta*) of LOSS (Equation 1): what federated runs are tested against.

rho* minimises the sum of the users' envelopes ``e_n(rho) = min_theta L_n(theta) + R(rho, theta)``,
plus what strategic users impose: ``R(rho, theta_spade)`` for a model attack (Equation 38) and ``<g,
rho>`` for a gradient attack that has converged to g (Lemma 3). See ``shared_loss``: Newton's method
with a line search. A kink of l2 at an attack model is a minimiser or it is not, which the ball of
its subgradients tells: each is tried first, as no step of Newton's ends there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.solvers.line_search import line_search, shortened
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.shared_loss import RIDGE, SharedLoss, SharedPoint

TOLERANCE = 1e-9
"""Of the gradient's norm: ten times what each local solve, exact to 1e-10, may leave in the sum."""
MOST_STEPS = 200
"""Newton steps; 13 is the most that random problems of every loss and regulariser took."""


@dataclass(frozen=True)
class Equilibrium:
    """A minimiser and how well it satisfies the first-order conditions.

    Attributes
    ----------
    rho : Tensor
        Global model, ``(d,)``.
    theta : Tensor
        Local models, ``(k, d)``.
    residual : float
        Distance of 0 to the subdifferential at rho: ``||sum of all gradients||`` but at a kink.
    local_residual : float
        Worst residual of the local problems.
    iterations : int
        Newton steps taken.
    converged : bool
        Both residuals are within the tolerance; and there is no other minimiser as far as
        ``minimisers.examined`` has been asked.
    length : float
        How far the set of minimisers extends, where there is more than one; infinite where LOSS
        is flat without end, or falls for ever.
    shifts : int
        Number of directions in which no user's points see a shift of all models.
    """

    rho: Tensor
    theta: Tensor
    residual: float
    local_residual: float
    iterations: int
    converged: bool
    length: float = 0.0
    shifts: int = 0


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
        on separable data) gradients fall below any tolerance far out, and l2 can have many
        minimisers: ``minimisers.examined`` tells.
    """
    shared = SharedLoss(population, attack_models, attack_regularizer, attack_gradient)
    return minimise(shared, start, tolerance=tolerance, max_iterations=max_iterations)


def minimise(
    shared: SharedLoss,
    start: Tensor | None = None,
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MOST_STEPS,
) -> Equilibrium:
    """Minimise LOSS as a function of rho, see ``equilibrium``."""
    population = shared.population
    zeros = torch.zeros(population.model.dim, dtype=population.dtype, device=population.device)
    cold = zeros.expand(population.size, -1)
    for model in shared.kinks:
        point = shared.at(model, cold)
        if point.residual <= tolerance:
            return _answer(population, point, 0, tolerance)
    point = shared.at(zeros if start is None else start, cold)
    iteration = 0
    # Each step starts the local solves at the last local models, a few systems away.
    while iteration < max_iterations and point.residual > tolerance:
        moved = _along(shared, point, _step(shared, point))
        if moved is None:
            break
        point, iteration = moved, iteration + 1
    return _answer(population, point, iteration, tolerance)


def _answer(
    population: Population, point: SharedPoint, iterations: int, tolerance: float
) -> Equilibrium:
    good = point.residual <= tolerance and point.local_residual <= population.tolerance
    return Equilibrium(
        point.rho, point.theta, point.residual, point.local_residual, iterations, good
    )


def _step(shared: SharedLoss, point: SharedPoint) -> Tensor:
    hessian = shared.hessian(point)
    identity = torch.eye(len(point.rho), dtype=point.rho.dtype, device=point.rho.device)
    # Everybody at a kink of l2 where L_n is flat: nothing but tiny is left to divide by.
    ridge = RIDGE * hessian.diagonal().mean() + torch.finfo(hessian.dtype).tiny
    if point.kink > 0:
        # Off a kink the shortest subgradient leads down; a Newton step, turned from it, need not.
        curvature = point.gradient @ hessian @ point.gradient / point.residual**2
        step: Tensor = point.gradient / curvature.clamp(min=ridge)
    else:
        # A singular matrix makes a step that is no number, which the line search would refuse.
        step = torch.linalg.solve_ex(hessian + ridge * identity, point.gradient).result
    if not bool(hessian.isfinite().all()):
        step = point.gradient
    elif not bool(point.gradient @ step > 0):
        # Where an envelope is straight its curvature is what rounding left, of either sign.
        values, vectors = torch.linalg.eigh(hessian)
        step = vectors @ ((vectors.T @ point.gradient) / values.abs().clamp(min=ridge))
    # An envelope of l2 is straight towards its user, and a Newton step along it has no length.
    reach = torch.linalg.vector_norm(point.rho - point.theta, dim=-1).max()
    return shortened(step, reach)


def _along(shared: SharedLoss, point: SharedPoint, step: Tensor) -> SharedPoint | None:
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
