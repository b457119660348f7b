"""Newton's method for one user's proximal problem: own line search, stopping and warm start.

A Cholesky factor is kept as long as it still contracts the residual (chord steps), since a factor
costs as much as a hundred gradients, and made in single precision while that does, since gradients
in double precision correct the steps. Above ``DENSE_LIMIT`` parameters the systems are solved by
preconditioned conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import norm
from pfl_flower.solvers.conjugate_gradients import Preconditioner, conjugate_gradients
from pfl_flower.solvers.line_search import line_search, shortened

DENSE_LIMIT = 1500
"""Most parameters for dense Hessians.

With a softmax of ten classes and 500 points, dense systems and conjugate gradients take equally
long up to here; at 2,500 parameters it is 2.3 s against 0.5 s.
"""
CHORD_CONTRACTION = 0.3
"""Largest ratio of residuals at which a factor is kept. From 0.1 to 0.5 solves take the same time
within a fifth; at 0.8 small ones take twice as long, in steps that hardly move."""
GOAL = 0.01
"""Solves aim this far below the tolerance, so that its last digits do not depend on the engine."""
SINGLE_PRECISION_FROM = 200
"""Parameters from which a factor in single precision saves time: a third at 200, half at 400."""
EPS = torch.finfo(torch.float64).eps
FAR = 1e30
"""Length of a step where there is no curvature: ``shortened`` decides how long it is."""
RIDGE_GROWTH = 1e3
"""Factor between ridges that are tried: from ``d eps`` five tries reach the diagonal itself."""
LOOSEST = 0.1
"""Largest relative residual of conjugate gradients: a step that still contracts as a chord does."""

Direction = Callable[[Tensor], Tensor]


def minimise_user(
    loss: LocalLoss,
    regularizer: Regularizer,
    rho: Tensor,
    start: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Minimise ``L(theta) + R(rho, theta)`` for the single user of ``loss``.

    Parameters
    ----------
    loss : LocalLoss
        One user, linear model.
    regularizer : Regularizer
        The coupling.
    rho, start : Tensor
        Global model and starting point, ``(d,)``.
    tolerance : float
        Residual asked for; the iteration stops well below it, or where rounding stops it.
    max_iterations : int
        Most linear systems to solve.

    Returns
    -------
    tuple of Tensor and int
        The point and the number of linear systems solved. The caller recomputes the residual.
    """
    problem = _Proximal(loss, regularizer, rho)
    theta = problem.first_point(start)
    if theta is None:
        return rho.clone(), 0
    # Below the rounding of its own sum a gradient says nothing.
    return _descend(problem, theta, max(GOAL * tolerance, problem.rounding()), max_iterations)


def _descend(
    problem: _Proximal, theta: Tensor, goal: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Return the point where the residual is at most the goal, or where no step leads down."""
    gradient = problem.gradient(theta)
    residual = torch.linalg.vector_norm(gradient)
    direction: Direction | None = None
    for iteration in range(max_iterations):
        if residual <= goal:
            return theta, iteration
        fresh = direction is None
        if direction is None:
            direction = problem.newton_direction(theta, residual)
        step = shortened(direction(gradient), torch.linalg.vector_norm(problem.rho - theta))
        full_gradient = problem.gradient(theta - step)
        full_residual = torch.linalg.vector_norm(full_gradient)
        # The residual alone decides as long as it falls fast: a value would cost as much again.
        if full_residual <= CHORD_CONTRACTION * residual:
            theta, gradient, residual = theta - step, full_gradient, full_residual
            continue
        direction = None
        if not fresh:
            # An old factor is no reason to shorten a step: a new one is made first.
            continue
        scale = float(problem.good_scale(theta, step, gradient, residual))
        if scale > 0:
            theta = theta - scale * step
            gradient = problem.gradient(theta)
            residual = torch.linalg.vector_norm(gradient)
        elif problem.precise:
            return theta, iteration + 1
        else:
            # A step from single precision may point upwards where one from double does not.
            problem.precise = True
    return theta, max_iterations


class _Proximal:
    """One user's ``L + R(rho, .)`` with the pieces that Newton's method asks for."""

    def __init__(self, loss: LocalLoss, regularizer: Regularizer, rho: Tensor) -> None:
        self.loss, self.regularizer, self.rho = loss, regularizer, rho
        self._preconditioner: Preconditioner | None = None
        self.precise = len(rho) < SINGLE_PRECISION_FROM or rho.dtype != torch.float64

    def value(self, theta: Tensor) -> Tensor:
        return self.loss.value(theta[None])[0] + self.regularizer.value(self.rho, theta)

    def gradient(self, theta: Tensor) -> Tensor:
        return self.loss.gradient(theta[None])[0] - self.regularizer.grad_rho(self.rho, theta)

    def rounding(self) -> float:
        """Size of the rounding error of the gradient's sum over points."""
        # Slopes in the scores are of the order of 1, so a term is as long as its features.
        weight = self.loss.weights * self.loss.scale[:, None]
        terms = (weight * norm(self.loss.features)).sum()
        return float(torch.finfo(terms.dtype).eps * terms)

    def first_point(self, start: Tensor) -> Tensor | None:
        """Return the warm start or, if it is above rho's value at a kink, a step down from rho.

        None where rho itself is the minimiser: its gradient is within the kink's subdifferential.
        """
        kink = self.regularizer.kink
        if kink == 0:
            return start
        opinion = self.loss.gradient(self.rho[None])[0]
        size = torch.linalg.vector_norm(opinion)
        if size <= kink:
            return None
        at_kink = self.value(self.rho)
        if self.value(start) < at_kink:
            return start
        # At most 1 long, and about as long as the gradient where that is short.
        share = 1 / (1 + size)
        step = share * opinion
        # The loss falls at the rate ||opinion|| along it, and l2 rises at the rate of its kink.
        scale = line_search(
            lambda s: self.value(self.rho - s * step), at_kink, share * size * (size - kink)
        )
        return self.rho - scale * step

    def newton_direction(self, theta: Tensor, residual: Tensor) -> Direction:
        """Return a function ``g -> H^{-1} g`` with H the Hessian at theta."""
        if len(theta) > DENSE_LIMIT:
            return self._conjugate_gradient_direction(theta, residual)
        factor = self._factor(theta, theta.dtype if self.precise else torch.float32)
        # A factorisation is exact for a matrix that is off by about d eps of the largest entry.
        ridge = len(theta) * EPS
        while factor is None and ridge < 1:
            self.precise = True
            factor = self._factor(theta, theta.dtype, ridge=ridge)
            ridge *= RIDGE_GROWTH
        if factor is None:
            # Saturated losses far from rho have no curvature left: down, as far as is allowed.
            return lambda gradient: gradient * (FAR / torch.linalg.vector_norm(gradient))
        kept = factor

        def direction(gradient: Tensor) -> Tensor:
            solved = torch.cholesky_solve(gradient[:, None].to(kept.dtype), kept)
            return solved[:, 0].to(gradient.dtype)

        return direction

    def _factor(self, theta: Tensor, dtype: torch.dtype, ridge: float = 0.0) -> Tensor | None:
        """Return the Cholesky factor of the Hessian in this precision, or None if there is none."""
        hessian = self.loss.to(dtype).hessian(theta[None].to(dtype))[0]
        z = self.rho - theta
        r = torch.linalg.vector_norm(z)
        weight, second = self.regularizer.weight(r), self.regularizer.second(r)
        diagonal = hessian.diagonal()
        diagonal.add_(float(weight))
        # At z = 0 there is no direction u, and phi'' = w but for l2, whose kink is dealt with.
        if float(r) > 0 and float(second) != float(weight):
            unit = (z / r).to(dtype)
            hessian.addr_(unit, unit, alpha=float(second - weight))
        diagonal.add_(ridge * float(diagonal.abs().max()))
        factor, info = torch.linalg.cholesky_ex(hessian)
        return factor if int(info) == 0 else None

    def _conjugate_gradient_direction(self, theta: Tensor, residual: Tensor) -> Direction:
        if self._preconditioner is None or self._preconditioner.tired:
            radius = torch.linalg.vector_norm(self.rho - theta)
            weight = float(self.regularizer.weight(radius))
            self._preconditioner = Preconditioner.at(self.loss, theta, weight)
        kept = self._preconditioner
        # Superlinear in the end, cheap before (Nocedal and Wright, 2006, Section 7.1).
        rtol = min(LOOSEST, float(residual) ** 0.5)
        local = self.loss.hessian_map(theta[None])

        def direction(gradient: Tensor) -> Tensor:
            products = 0

            def product(vector: Tensor) -> Tensor:
                nonlocal products
                products += 1
                return local(vector[None])[0] + self.regularizer.hessian_product(
                    self.rho, theta, vector
                )

            solved = conjugate_gradients(product, gradient, kept, rtol=rtol)
            kept.longest = max(kept.longest, products)
            return solved

        return direction

    def good_scale(self, theta: Tensor, step: Tensor, gradient: Tensor, residual: Tensor) -> Tensor:
        """Return how far to go along a step, 0 where that leads nowhere."""
        return line_search(
            lambda s: self.value(theta - s * step),
            self.value(theta),
            gradient @ step,
            norm_at=lambda s: torch.linalg.vector_norm(self.gradient(theta - s * step)),
            norm=residual,
            # A value costs one product with the features, a system a hundred.
            further=True,
        )
