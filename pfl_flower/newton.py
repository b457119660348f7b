"""Newton's method for one user's proximal problem: own line search, stopping and warm start.

A Cholesky factor is kept as long as it still contracts the residual (chord steps), since a factor
costs as much as a hundred gradients. Above ``DENSE_LIMIT`` parameters the systems are solved by
preconditioned conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.losses import LocalLoss
from pfl_flower.regularizers import Regularizer

DENSE_LIMIT = 1500
CHORD_CONTRACTION = 0.3
GOAL = 0.01
"""Solves aim this far below the tolerance, so that its last digits do not depend on the engine."""

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
    theta = start
    if regularizer.kink > 0:
        opinion = loss.gradient(rho[None])[0]
        if torch.linalg.vector_norm(opinion) <= regularizer.kink:
            return rho.clone(), 0
        theta = problem.leave_kink(start, opinion)
    goal = max(GOAL * tolerance, problem.rounding())
    gradient = problem.gradient(theta)
    residual = torch.linalg.vector_norm(gradient)
    direction: Direction | None = None
    for iteration in range(max_iterations):
        if residual <= goal:
            return theta, iteration
        fresh = direction is None
        if direction is None:
            direction = problem.newton_direction(theta, residual)
        step = direction(gradient)
        full_gradient = problem.gradient(theta - step)
        full_residual = torch.linalg.vector_norm(full_gradient)
        if full_residual <= CHORD_CONTRACTION * residual:
            theta, gradient, residual = theta - step, full_gradient, full_residual
            continue
        direction = None
        if not fresh:
            continue
        advanced = problem.line_search(theta, step, gradient, residual)
        if advanced is None:
            return theta, iteration + 1
        theta, gradient = advanced
        residual = torch.linalg.vector_norm(gradient)
    return theta, max_iterations


class _Proximal:
    """One user's ``L + R(rho, .)`` with the pieces that Newton's method asks for."""

    def __init__(self, loss: LocalLoss, regularizer: Regularizer, rho: Tensor) -> None:
        self.loss, self.regularizer, self.rho = loss, regularizer, rho

    def value(self, theta: Tensor) -> Tensor:
        return self.loss.value(theta[None])[0] + self.regularizer.value(self.rho, theta)

    def gradient(self, theta: Tensor) -> Tensor:
        return self.loss.gradient(theta[None])[0] - self.regularizer.grad_rho(self.rho, theta)

    def rounding(self) -> float:
        """Size of the rounding error of the gradient's sum over points."""
        weight = self.loss.weights * self.loss.scale[:, None]
        terms = (weight * torch.linalg.vector_norm(self.loss.features, dim=-1)).sum()
        return float(torch.finfo(terms.dtype).eps * terms)

    def leave_kink(self, start: Tensor, opinion: Tensor) -> Tensor:
        """Return a point below the value at rho: the warm start, or a step down from rho."""
        at_kink = self.value(self.rho)
        if self.value(start) < at_kink:
            return start
        scale = 1.0 / (1.0 + torch.linalg.vector_norm(opinion))
        for _ in range(200):
            candidate = self.rho - scale * opinion
            if self.value(candidate) < at_kink:
                return candidate
            scale = scale / 2
        return candidate

    def newton_direction(self, theta: Tensor, residual: Tensor) -> Direction:
        """Return a function ``g -> H^{-1} g`` with H the Hessian at theta."""
        if len(theta) > DENSE_LIMIT:
            return self._conjugate_gradient_direction(theta, residual)
        hessian = self.loss.hessian(theta[None])[0]
        identity = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
        hessian += self.regularizer.hessian_product(self.rho, theta, identity)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) != 0:
            ridge = torch.finfo(theta.dtype).eps * hessian.diagonal().abs().max() * len(theta)
            factor = torch.linalg.cholesky(hessian + ridge * identity)
        return lambda gradient: torch.cholesky_solve(gradient[:, None], factor)[:, 0]

    def _conjugate_gradient_direction(self, theta: Tensor, residual: Tensor) -> Direction:
        def product(vector: Tensor) -> Tensor:
            local = self.loss.hessian_product(theta[None], vector[None])[0]
            return local + self.regularizer.hessian_product(self.rho, theta, vector)

        scores = self.loss.loss.factors(self.loss.model.scores(theta[None], self.loss.features))
        curvature = scores[0] if scores[1] is None else scores[0] - scores[1] ** 2
        weighted = curvature * (self.loss.weights * self.loss.scale[:, None])[..., None]
        radius = torch.linalg.vector_norm(self.rho - theta)
        diagonal = (weighted.transpose(1, 2) @ self.loss.features**2).reshape(-1) + 2 * self.loss.nu
        diagonal = diagonal + self.regularizer.weight(radius)
        rtol = float(min(0.1, float(residual) ** 0.5))
        return lambda gradient: conjugate_gradients(product, gradient, diagonal, rtol=rtol)

    def line_search(
        self, theta: Tensor, step: Tensor, gradient: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """First halving of the step that lowers the value (Armijo) or, near the end, the residual.

        Values differ by less than their rounding close to the minimum; there the gradient of a
        convex function is the better judge.
        """
        value, slope = self.value(theta), gradient @ step
        rounding = 4 * torch.finfo(theta.dtype).eps * value.abs()
        scale = 1.0
        for _ in range(50):
            candidate = theta - scale * step
            candidate_gradient = self.gradient(candidate)
            lower = self.value(candidate) <= value - 1e-4 * scale * slope
            if lower and scale * slope > rounding:
                return candidate, candidate_gradient
            if torch.linalg.vector_norm(candidate_gradient) <= (1 - 0.1 * scale) * residual:
                return candidate, candidate_gradient
            scale /= 2
        return None


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    diagonal: Tensor,
    *,
    rtol: float,
    max_iterations: int = 500,
) -> Tensor:
    """Solve ``A x = target``, A positive definite, preconditioned by its diagonal.

    Stops at ``||target - A x|| <= rtol ||target||`` or after ``max_iterations`` products.
    """
    solution = torch.zeros_like(target)
    residual = target.clone()
    preconditioned = residual / diagonal
    direction = preconditioned
    energy = residual @ preconditioned
    limit = rtol * torch.linalg.vector_norm(target)
    for _ in range(max_iterations):
        image = product(direction)
        length = energy / (direction @ image)
        solution = solution + length * direction
        residual = residual - length * image
        if torch.linalg.vector_norm(residual) <= limit:
            break
        preconditioned = residual / diagonal
        energy, previous = residual @ preconditioned, energy
        direction = preconditioned + (energy / previous) * direction
    return solution
