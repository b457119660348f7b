"""The minimiser of LOSS for models too large for dense Hessians: L-BFGS over rho and all theta.

Pixels vary together, and LOSS is as badly scaled as their covariance. L-BFGS therefore works in
coordinates in which it is not: ``rho sqrt(w N)`` and, for each user, ``W_n C_n`` with

    C_n C_n^T = mean over classes of the diagonal blocks of Hess L_n(theta_n), + (2 nu + w) I

and ``w = phi''(0)`` of the regulariser; of more than ``FACTOR_LIMIT`` features, the diagonal of the
right-hand side alone. The C_n are made anew as the theta_n move.

The line search is L-BFGS-B's own (Moré and Thuente, *Line search algorithms with guaranteed
sufficient decrease*, 1994) and not ``line_search``'s: pairs of steps and gradients build curvature
only if slopes flatten (the strong Wolfe conditions), which halvings of a step do not see to, and
every value here comes with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from pfl_flower.objective.models import Linear
from pfl_flower.solvers.equilibrium import Equilibrium
from pfl_flower.solvers.population import Population

MEMORY = 30
"""Pairs of steps and gradients from which L-BFGS builds its curvature.

On digits 5 pairs take a tenth more steps and 100 a tenth fewer; each pair is two vectors as long as
all models together.
"""
FACTOR_LIMIT = 2000
"""Most features for which a factor, that every evaluation reads twice, saves time.

On digits, of 65 features, the diagonal alone takes two to three times as many steps.
"""
FIRST_STAGE = 25
"""Steps before the coordinates are first made anew; every stage is twice as long as the last.

A new stage forgets all pairs. On digits stages that begin with 5 to 25 steps take equally many in
all, coordinates that are never made anew two to three times as many.
"""
EVALUATIONS = 2
"""Evaluations a step may take on average before a stage ends; the first guess mostly is right."""


def joint_minimum(
    population: Population,
    *,
    attack_models: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
    watch: Callable[[int, float], None] | None = None,
) -> Equilibrium:
    """Minimise LOSS (Equation 1), or its form under model attacks (Equation 38), by L-BFGS.

    One evaluation costs one pass over all data. Where ``nu = 0`` and the data are nearly separable
    the minimum is flat and the last digits take long: judge by the residual.

    Parameters
    ----------
    population : Population
        Honest and poisoned users, of a linear model, under a differentiable regulariser.
    attack_models : Tensor, optional
        Models ``(m, d)`` that strategic users pretend to hold.
    start : Tensor, optional
        First rho and local models, ``(d,)``; 0 when absent.
    tolerance : float
        On the norm of the gradient in (rho, theta), relative to its norm at the start.
    max_iterations : int
        Most steps.
    watch : callable, optional
        Told the number of steps and the norm of the gradient after each step.

    Returns
    -------
    Equilibrium
        ``residual`` is the gradient's norm in rho, ``local_residual`` the largest in a theta_n.

    Raises
    ------
    ValueError
        If the regulariser has a kink, where L-BFGS has no gradient to follow, or the model is not
        linear: LOSS is then not convex.
    """
    if population.regularizer.kink > 0:
        raise ValueError("regularizer: expected a differentiable one")
    if not isinstance(population.model, Linear):
        raise ValueError("model: expected a linear one")
    problem = _Joint(population, attack_models)
    zero = torch.zeros(population.model.dim, dtype=population.dtype, device=population.device)
    point = (zero if start is None else start).repeat(population.size + 1, 1)
    goal = tolerance * problem.norm(point)
    steps, length, met = 0, FIRST_STAGE, False
    while steps < max_iterations and not met:
        stage = _Stage(problem, point, steps, goal, watch)
        point = stage.descend(min(length, max_iterations - steps))
        met = problem.norm(point) <= goal
        if stage.steps == 0:
            # No step from here lowers the value by more than its rounding.
            break
        steps, length = steps + stage.steps, 2 * length
    norms = torch.linalg.vector_norm(problem.gradients(point)[1], dim=1)
    return Equilibrium(point[0], point[1:], float(norms[0]), float(norms[1:].max()), steps, met)


class _Joint:
    """LOSS of a point ``(1 + k, d)``: rho, and the theta of each user."""

    def __init__(self, population: Population, attack_models: Tensor | None) -> None:
        self.population, self.attack_models = population, attack_models
        self.regularizer = population.regularizer

    def gradients(self, point: Tensor) -> tuple[float, Tensor]:
        """Return LOSS and its gradient ``(1 + k, d)``."""
        rho, theta = point[0], point[1:]
        local, slopes = self.population.value_and_gradient(theta)
        value = (local + self.regularizer.value(rho, theta)).sum()
        pull = self.regularizer.grad_rho(rho, theta)
        shared = pull.sum(dim=0)
        if self.attack_models is not None:
            value = value + self.regularizer.value(rho, self.attack_models).sum()
            shared = shared + self.regularizer.grad_rho(rho, self.attack_models).sum(dim=0)
        return float(value), torch.cat([shared[None], slopes - pull])

    def norm(self, point: Tensor) -> float:
        """Return the norm of the gradient."""
        return float(torch.linalg.vector_norm(self.gradients(point)[1]))


class _Stage:
    """L-BFGS in coordinates made at one point."""

    def __init__(
        self,
        problem: _Joint,
        point: Tensor,
        before: int,
        goal: float,
        watch: Callable[[int, float], None] | None,
    ) -> None:
        self.problem, self.start, self.before = problem, point, before
        self.goal, self.watch = goal, watch
        self.steps, self.last = 0, (point, float("inf"))
        population, pull = problem.population, problem.regularizer.weight(point.new_zeros(()))
        rest = 2 * population.nu + float(pull)
        self.factors: Tensor | None = None
        self.widths = torch.ones_like(point[1:, None, : population.model.inputs])
        if population.model.inputs <= FACTOR_LIMIT:
            moments = population.second_moments(point[1:])
            moments.diagonal(dim1=1, dim2=2).add_(rest)
            self.factors, failed = torch.linalg.cholesky_ex(moments)
            if bool(failed.any()) or not bool(self.factors.isfinite().all()):
                self.factors = None
        if self.factors is None:
            moments = population.second_moments(point[1:], diagonal=True)
            widths = (moments + rest).sqrt()[:, None]
            self.widths = torch.where((widths > 0) & widths.isfinite(), widths, 1.0)
        models = 0 if problem.attack_models is None else len(problem.attack_models)
        # Of LOSS in rho: w for each user and for each attack model.
        self.scale = float(pull * (population.size + models)) ** 0.5

    def descend(self, most: int) -> Tensor:
        """Return the point after at most so many steps, or where the goal is met."""
        first = self._flat(self._forward(self.start))
        found = minimize(
            self._evaluate,
            first,
            jac=True,
            method="L-BFGS-B",
            callback=self._after,
            options={
                "maxcor": MEMORY,
                "maxiter": most,
                # A short stage may begin with a search of scipy's limit of 20 evaluations.
                "maxfun": EVALUATIONS * most + 20,
                # The gradient's norm in the model's own coordinates ends it, see _after.
                "ftol": 0.0,
                "gtol": 0.0,
            },
        )
        return self._backward(torch.from_numpy(found.x).view(self.start.shape).to(self.start))

    def _evaluate(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        point = self._backward(torch.from_numpy(flat).view(self.start.shape).to(self.start))
        value, gradient = self.problem.gradients(point)
        self.last = point, float(torch.linalg.vector_norm(gradient))
        return value, self._flat(self._pulled_back(gradient))

    def _after(self, flat: NDArray[np.float64]) -> None:
        # A step ends with the evaluation of the point that it accepts.
        self.steps += 1
        if self.watch is not None:
            self.watch(self.before + self.steps, self.last[1])
        if self.last[1] <= self.goal:
            raise StopIteration

    def _forward(self, point: Tensor) -> Tensor:
        """Return coordinates: ``rho`` scaled, and ``W C``."""
        rows = self._rows(point) * self.widths
        if self.factors is not None:
            rows = rows @ self.factors
        return torch.cat([self.scale * point[:1], rows.reshape(len(point) - 1, -1)])

    def _backward(self, coordinates: Tensor) -> Tensor:
        """Return the point of these coordinates: ``rho``, and ``W = Y C^{-1}``."""
        rows = self._rows(coordinates) / self.widths
        if self.factors is not None:
            rows = torch.linalg.solve_triangular(self.factors, rows, upper=False, left=False)
        return torch.cat([coordinates[:1] / self.scale, rows.reshape(len(coordinates) - 1, -1)])

    def _pulled_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the coordinates: ``G C^{-T}``."""
        rows = self._rows(gradient) / self.widths
        if self.factors is not None:
            rows = torch.linalg.solve_triangular(self.factors.mT, rows, upper=True, left=False)
        return torch.cat([gradient[:1] / self.scale, rows.reshape(len(gradient) - 1, -1)])

    def _rows(self, point: Tensor) -> Tensor:
        """Return the users' rows as matrices ``(k, c, q)``."""
        model = self.problem.population.model
        return point[1:].reshape(-1, model.outputs, model.inputs)

    @staticmethod
    def _flat(values: Tensor) -> NDArray[np.float64]:
        return values.double().cpu().numpy().reshape(-1).copy()
