"""Exact solutions of the local problem ``argmin_theta L_n(theta) + R(rho, theta)`` (Section 2.2).

A solver answers with the point, its first-order residual recomputed at that point, and whether it
met the tolerance: for any finite data, one user or many. Where numbers overflow or have no digits
left, the point is finite, the best that was found, and has not converged. The residual itself is
rounded: it may be off by ``eps`` times the sum of its terms' lengths.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.objective.vectors import finite, norm
from pfl_flower.solvers import user_batch
from pfl_flower.solvers.newton import minimise_user
from pfl_flower.solvers.newton_batch import minimise_batch
from pfl_flower.solvers.normal_equations import NormalEquations
from pfl_flower.support.threads import each, one_thread

DEFAULT_TOLERANCE = 1e-10
"""Contract of an exact solve in float64: first-order residual, in units of the loss's gradient.

Rounding leaves about 1e-12 of a gradient summed over some thousand points: 1e-10 can be met with
digits to spare, see ``newton.GOAL``, and rho then agrees to 1e-9 on any number of nodes.
"""
MOST_SYSTEMS = 100
"""Linear systems for one user; 53 is the most that a table of random problems takes, saturated
losses without nu among them, and warm starts take one to five."""

FEW_SYSTEMS = 5
"""Linear systems by which Newton's method may correct a closed form that missed its tolerance."""


@dataclass(frozen=True)
class Solution:
    """What a solve returned for ``k`` users.

    Attributes
    ----------
    theta : Tensor
        Points, ``(k, d)``.
    residual : Tensor
        First-order optimality residual of ``theta``, ``(k,)``; infinite where it is no number.
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
    smooth = norm(local - regularizer.grad_rho(rho, theta))
    if regularizer.kink == 0:
        return smooth
    # At the kink 0 is in the subdifferential once the ball takes up all of the loss's gradient.
    certificate = (norm(local) - regularizer.kink).clamp(min=0)
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
        self._system: NormalEquations | None = None
        self._batch: user_batch.Batch | None = None

    def select(self, index: Tensor) -> ProximalSolver:
        """Return the solver of the users at ``index``, with what has been worked out for them."""
        chosen = copy.copy(self)
        chosen.loss = self.loss.select(index)
        chosen._system = None if self._system is None else self._system.select(index)
        chosen._batch = None if self._batch is None else self._batch.select(index)
        return chosen

    @property
    def closed_form(self) -> bool:
        """Whether the solution is one linear system: least squares with squared l2."""
        return isinstance(self.loss.loss, LeastSquares) and isinstance(self.regularizer, SquaredL2)

    def solve(self, rho: Tensor, start: Tensor) -> Solution:
        """Minimise for every user, from ``start (k, d)``, at the global model ``rho (d,)``."""
        with one_thread():
            return self._solve(rho, start)

    def _solve(self, rho: Tensor, start: Tensor) -> Solution:
        # A closed form's factors are made once: there is nothing to wait for in a round.
        together = user_batch.pays(self.loss) or (
            not self.closed_form and user_batch.spares_waits(self.loss)
        )
        solve = self._together if together else self._alone
        theta, residual, iterations = solve(rho, start)
        converged = residual <= self.tolerance
        # What is no number is not within a tolerance: one look, which a card is waited for at.
        if bool(converged.all()):
            return Solution(theta, residual, iterations, converged)
        if together:
            self._failed_alone(rho, start, theta, residual, iterations)
        lost = ~finite(theta)
        if bool(lost.any()):
            theta = torch.where(lost[:, None], start, theta)
            residual = proximal_residual(self.loss, self.regularizer, rho, theta)
        residual = residual.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return Solution(theta, residual, iterations, residual <= self.tolerance)

    def _alone(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every user by itself: points, residuals, numbers of systems."""
        if self.closed_form:
            return self._linear_systems(rho, start)
        theta, iterations = self._per_user(rho, start)
        residual = proximal_residual(self.loss, self.regularizer, rho, theta)
        return theta, residual, iterations

    def _together(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All users as one problem."""
        if self._batch is None:
            self._batch = user_batch.Batch.build(self.loss, self.regularizer)
        parts = [
            minimise_batch(
                batch,
                rho,
                start[part],
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            for part, batch in self._batch.split()
        ]
        if len(parts) == 1:
            return parts[0]
        thetas, residuals, iterations = zip(*parts, strict=True)
        return torch.cat(thetas), torch.cat(residuals), torch.cat(iterations)

    def _failed_alone(
        self, rho: Tensor, start: Tensor, theta: Tensor, residual: Tensor, iterations: Tensor
    ) -> None:
        """Solve for those whom the batch fails one at a time, and put that into the results."""
        # The batch makes no ridges and no steps of lower precision: whom it fails is solved alone,
        # but for those who have had their number of systems. NaN is not within a tolerance.
        missed = ~(residual <= self.tolerance)
        missed &= (iterations < self.max_iterations) | self.closed_form
        failed = missed.nonzero()[:, 0]
        if len(failed):
            answer = self.select(failed)._alone(rho, start[failed])
            theta[failed], residual[failed], iterations[failed] = answer

    def _linear_systems(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve the normal equations; whom they fail, two other ways, of which the best counts."""
        theta = self._normal_equations(rho)
        residual = proximal_residual(self.loss, self.regularizer, rho, theta)
        iterations = torch.ones_like(residual, dtype=torch.int64)
        missed = ~(residual <= self.tolerance)
        if self._system is None or not bool(missed.any()):
            return theta, residual, iterations
        if bool((missed & ~self._system.careful).any()):
            self._system.orthogonally((missed & ~self._system.careful).nonzero()[:, 0])
            again = self._normal_equations(rho)
            theta, residual = self._better(rho, theta, residual, again)
        failed = (~(residual <= self.tolerance)).nonzero()[:, 0]
        if len(failed):
            # Exact solutions can be long where next to nothing holds them, and their gradients then
            # rounded; steps from the start stay short. A quadratic takes one or two of them.
            some = self.select(failed)
            some.max_iterations = min(self.max_iterations, FEW_SYSTEMS)
            again = theta.clone()
            again[failed], more = some._per_user(rho, start[failed])
            theta, residual = self._better(rho, theta, residual, again)
            iterations[failed] += more
        return theta, residual, iterations

    def _better(
        self, rho: Tensor, theta: Tensor, residual: Tensor, again: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return each user's better point and its residual.

        That is the one of the smaller residual where one of them meets the tolerance, or values are
        no numbers, else of the smaller value: a step along what next to nothing holds is long and
        hardly seen in a gradient, which is large where it is rounded along what holds most.
        """
        new = proximal_residual(self.loss, self.regularizer, rho, again)
        value, reached = (
            self.loss.value(points) + self.regularizer.value(rho, points)
            for points in (theta, again)
        )
        judged = (residual <= self.tolerance) | (new <= self.tolerance)
        judged |= ~(value.isfinite() & reached.isfinite())
        taken = torch.where(judged, ~(residual <= new), reached < value) & finite(again)
        return torch.where(taken[:, None], again, theta), torch.where(taken, new, residual)

    def _normal_equations(self, rho: Tensor) -> Tensor:
        if self._system is None:
            assert isinstance(self.regularizer, SquaredL2)
            self._system = NormalEquations(self.loss, self.regularizer)
        return self._system.solve(rho)

    def _per_user(self, rho: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """One user at a time, so that a user's bits do not depend on who shares its node.

        A thread solves alone for a user, on the CPU: that is faster than sharing its sums, which
        then have the same order on every engine.
        """
        iterations = torch.zeros(self.loss.users, dtype=torch.int64, device=start.device)

        def work(user: int) -> Tensor:
            theta, iterations[user] = minimise_user(
                self.loss.select(slice(user, user + 1)),
                self.regularizer,
                rho,
                start[user].clone(),
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            return theta

        tasks = [(user,) for user in range(self.loss.users)]
        if start.is_cpu:
            return torch.stack(each(work, tasks)), iterations
        return torch.stack([work(*task) for task in tasks]), iterations
