"""Exact solutions of the local problem ``argmin_theta L_n(theta) + R(rho, theta)`` (Section 2.2).

A solver answers with the point, its first-order residual recomputed at that point, and whether it
met the tolerance.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.point_blocks import thread_limit
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.solvers import user_batch
from pfl_flower.solvers.newton import DENSE_LIMIT, minimise_user
from pfl_flower.solvers.newton_batch import minimise_batch

DEFAULT_TOLERANCE = 1e-10
"""Contract of an exact solve in float64: first-order residual, in units of the loss's gradient.

Rounding leaves about 1e-12 of a gradient summed over some thousand points: 1e-10 can be met with
digits to spare, see ``newton.GOAL``, and rho then agrees to 1e-9 on any number of nodes.
"""
MOST_SYSTEMS = 100
"""Linear systems for one user; 53 is the most that a table of random problems takes, saturated
losses without nu among them, and warm starts take one to five."""


@dataclass(frozen=True)
class Solution:
    """What a solve returned for ``k`` users.

    Attributes
    ----------
    theta : Tensor
        Points, ``(k, d)``.
    residual : Tensor
        First-order optimality residual of ``theta``, ``(k,)``.
    iterations : Tensor
        Linear systems solved per user, ``(k,)``.
    converged : Tensor
        ``residual <= tolerance``, ``(k,)``.
    """

    theta: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def proximal_residual(
    loss: LocalLoss, regularizer: Regularizer, rho: Tensor, theta: Tensor
) -> Tensor:
    """Distance from 0 to the subdifferential of ``L_n + R(rho, .)`` at theta, shape ``(k,)``.

    It is ``||grad L_n(theta) - grad_rho R(rho, theta)||``, and ``max(0, ||grad L_n(rho)|| - lam)``
    for l2 at ``theta = rho``, where the subdifferential of R is the whole ball.
    """
    local = loss.gradient(theta)
    smooth = torch.linalg.vector_norm(local - regularizer.grad_rho(rho, theta), dim=-1)
    if regularizer.kink == 0:
        return smooth
    # At the kink 0 is in the subdifferential once the ball takes up all of the loss's gradient.
    certificate = (torch.linalg.vector_norm(local, dim=-1) - regularizer.kink).clamp(min=0)
    return torch.where((theta == rho).all(dim=-1), certificate, smooth)


class ProximalSolver:
    """Solves the local problems of a fixed batch of users, keeping what does not change.

    Parameters
    ----------
    loss : LocalLoss
        The users' losses; linear models only.
    regularizer : Regularizer
        The coupling.
    tolerance : float
        Residual at which a solve counts as converged.
    max_iterations : int
        Linear systems a user may cost before it is returned as it is, not converged.

    Raises
    ------
    ValueError
        If the model is not linear: the problem is then not convex and has no certified solution.
    """

    def __init__(
        self,
        loss: LocalLoss,
        regularizer: Regularizer,
        *,
        tolerance: float = DEFAULT_TOLERANCE,
        max_iterations: int = MOST_SYSTEMS,
    ) -> None:
        if not isinstance(loss.model, Linear):
            raise ValueError("model: exact local solves need a linear model")
        self.loss = loss
        self.regularizer = regularizer
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self._factor: Tensor | None = None
        self._batch: user_batch.Batch | None = None

    def select(self, index: Tensor) -> ProximalSolver:
        """Return the solver of the users at ``index``, with what has been worked out for them."""
        chosen = copy.copy(self)
        chosen.loss = self.loss.select(index)
        chosen._factor = None if self._factor is None else self._factor[index]
        chosen._batch = None if self._batch is None else self._batch.select(index)
        return chosen

    @property
    def closed_form(self) -> bool:
        """Whether the solution is one linear system: least squares with squared l2."""
        return isinstance(self.loss.loss, LeastSquares) and isinstance(self.regularizer, SquaredL2)

    def solve(self, rho: Tensor, start: Tensor) -> Solution:
        """Minimise for every user, from ``start (k, d)``, at the global model ``rho (d,)``."""
        if user_batch.pays(self.loss):
            return self._together(rho, start)
        if self.closed_form:
            theta, iterations = (
                self._normal_equations(rho),
                torch.ones(len(start), dtype=torch.int64, device=start.device),
            )
        else:
            theta, iterations = self._per_user(rho, start)
        residual = proximal_residual(self.loss, self.regularizer, rho, theta)
        return Solution(theta, residual, iterations, residual <= self.tolerance)

    def _together(self, rho: Tensor, start: Tensor) -> Solution:
        """All users as one problem; those whom it fails, one at a time."""
        if self._batch is None:
            self._batch = user_batch.Batch.build(self.loss, self.regularizer)
        theta, residual = torch.empty_like(start), start.new_empty(len(start))
        iterations = torch.empty(len(start), dtype=torch.int64, device=start.device)
        for part, batch in self._batch.split():
            theta[part], residual[part], iterations[part] = minimise_batch(
                batch,
                rho,
                start[part],
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
        # The batch makes no ridges and no steps of lower precision: whom it fails is solved alone,
        # but for those who have had their number of systems. NaN is not within a tolerance.
        missed = ~(residual <= self.tolerance) & (iterations < self.max_iterations)
        failed = missed.nonzero()[:, 0]
        if len(failed):
            alone = self.select(failed)
            theta[failed], iterations[failed] = alone._per_user(rho, start[failed])
            again = proximal_residual(alone.loss, self.regularizer, rho, theta[failed])
            residual[failed] = again
        return Solution(theta, residual, iterations, residual <= self.tolerance)

    def _normal_equations(self, rho: Tensor) -> Tensor:
        """``(X^T W X + 2 (nu + lam) I) theta = X^T W A + 2 lam rho``, refined once."""
        zero = torch.zeros((self.loss.users, len(rho)), dtype=rho.dtype, device=rho.device)
        if self._factor is None:
            hessian = self.loss.hessian(zero)
            hessian.diagonal(dim1=1, dim2=2).add_(2 * self.regularizer.lam)
            self._factor = torch.linalg.cholesky(hessian)
        theta = zero
        # The first step leaves the factor's rounding, eps times the condition number of it; the
        # second works on the residual of the data themselves and takes that away.
        for _ in range(2):
            gradient = self.loss.gradient(theta) - self.regularizer.grad_rho(rho, theta)
            theta = theta - torch.cholesky_solve(gradient[..., None], self._factor)[..., 0]
        return theta

    def _per_user(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """One user at a time, so that a user's bits do not depend on who shares its node.

        Small systems are solved on one thread: that is faster than sharing them, and the sums then
        have the same order on every engine.
        """
        with thread_limit(1 if self.loss.model.dim <= DENSE_LIMIT else torch.get_num_threads()):
            return self._each_user(rho, start)

    def _each_user(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        thetas, iterations = [], []
        for user in range(self.loss.users):
            theta, count = minimise_user(
                self.loss.select(slice(user, user + 1)),
                self.regularizer,
                rho,
                start[user],
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            thetas.append(theta)
            iterations.append(count)
        return torch.stack(thetas), torch.tensor(iterations, device=start.device)
