"""Newton's method for many users with small systems, as batched tensor problems.

A user with n points and one score has a Hessian ``alpha I + X^T D X + beta u u^T`` with ``alpha``
and ``beta`` from nu and the regulariser, u the direction of ``rho - theta``. Where n < d the system
is solved in the space of the points (Woodbury's identity), with ``S = sqrt(D)``:

    (alpha I + X^T D X)^{-1} = (I - X^T S (alpha I + S X X^T S)^{-1} S X) / alpha

and the rank-one term by Sherman and Morrison's formula. Every user has its own line search,
stopping and warm start; those that have converged leave the batch. The bits of a user's solution
depend on who shares the batch, its residual meets the same tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import length
from pfl_flower.solvers.line_search import line_search, shortened
from pfl_flower.solvers.newton import CHORD_CONTRACTION, GOAL

LEAST_USERS = 64
"""Users from which a batch pays: below, each is solved by itself."""
LARGEST_SYSTEM = 64
"""Size of a user's linear system above which it is solved by itself."""
FEATURES_AT_ONCE = 2**18
"""Numbers of features in a part of the batch, so that it stays in the processor's cache."""
FEATURES_ON_A_CARD = 2**26
"""The same for a CUDA device, where every operation on a part has a price of its own."""


def pays(loss: LocalLoss) -> bool:
    """Return whether the users of a loss are many and their systems small."""
    return loss.users >= LEAST_USERS and min(loss.model.dim, _points(loss)) <= LARGEST_SYSTEM


def _points(loss: LocalLoss) -> int:
    """Size of the system in the space of the points; with several scores there is none."""
    return loss.features.shape[1] if loss.model.outputs == 1 else loss.model.dim


@dataclass(frozen=True)
class Batch:
    """Users with one regulariser; ``gram`` is ``X X^T``, ``(k, n, n)``, where n < d, else None."""

    loss: LocalLoss
    regularizer: Regularizer
    gram: Tensor | None

    @classmethod
    def build(cls, loss: LocalLoss, regularizer: Regularizer) -> Batch:
        """Return the batch of a loss's users."""
        dual = _points(loss) < loss.model.dim
        gram = loss.features @ loss.features.transpose(1, 2) if dual else None
        return cls(loss, regularizer, gram)

    def select(self, index: Tensor | slice) -> Batch:
        """Return the users at ``index`` (a slice copies nothing)."""
        gram = None if self.gram is None else self.gram[index]
        return replace(self, loss=self.loss.select(index), gram=gram)

    def split(self) -> Iterator[tuple[slice, Batch]]:
        """Yield parts that fit into the cache."""
        most = FEATURES_ON_A_CARD if self.loss.features.is_cuda else FEATURES_AT_ONCE
        size = max(1, most // self.loss.features[0].numel())
        for first in range(0, self.loss.users, size):
            part = slice(first, first + size)
            yield part, self.select(part)

    def value(self, rho: Tensor, theta: Tensor) -> Tensor:
        """``L_n(theta_n) + R(rho, theta_n)``, ``(k,)``."""
        return self.loss.value(theta) + self.regularizer.value(rho, theta)

    def gradient(self, rho: Tensor, theta: Tensor) -> Tensor:
        """Return the gradient in theta, ``(k, d)``."""
        return self.loss.gradient(theta) - self.regularizer.grad_rho(rho, theta)

    def rounding(self) -> Tensor:
        """Size of the rounding error of each gradient's sum over points, ``(k,)``."""
        weight = self.loss.weights * self.loss.scale[:, None]
        terms = (weight * torch.linalg.vector_norm(self.loss.features, dim=-1)).sum(dim=-1)
        return torch.finfo(terms.dtype).eps * terms

    def direction(self, rho: Tensor, theta: Tensor, gradient: Tensor) -> Tensor:
        """``H_n^{-1} g_n``, ``(k, d)``; not finite where the Hessian has no factor."""
        z = rho - theta
        r = length(z)
        weight = self.regularizer.weight(r)
        beta = self.regularizer.second(r) - weight
        if not bool(beta.any()):
            return self._solve(theta, weight, gradient[..., None])[..., 0]
        unit = z / r.clamp(min=torch.finfo(r.dtype).tiny)
        targets = torch.stack([gradient, unit], dim=-1)
        solved = self._solve(theta, weight, targets)
        along, across = solved[..., 0], solved[..., 1]
        share = (unit * along).sum(dim=-1, keepdim=True)
        bend = 1 + beta * (unit * across).sum(dim=-1, keepdim=True)
        return along - torch.where(bend > 0, beta * share / bend, torch.nan) * across

    def _solve(self, theta: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """``(Hess L_n + w I)^{-1}`` times ``(k, d, m)``, for ``weight (k, 1)``."""
        if self.gram is None:
            hessian = self.loss.hessian(theta)
            hessian.diagonal(dim1=1, dim2=2).add_(weight)
            return _cholesky_solve(hessian, targets)
        features = self.loss.features
        curvature = self.loss.loss.factors(self.loss.model.scores(theta, features))[0][..., 0]
        root = (curvature * self.loss.weights * self.loss.scale[:, None]).sqrt()[..., None]
        alpha = (weight + 2 * self.loss.nu)[..., None]
        system = self.gram * root * root.transpose(1, 2)
        system.diagonal(dim1=1, dim2=2).add_(alpha[..., 0])
        inner = root * _cholesky_solve(system, root * (features @ targets))
        return (targets - features.transpose(1, 2) @ inner) / alpha


def _cholesky_solve(system: Tensor, targets: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(targets, factor)
    if bool(info.any()):
        solved[info > 0] = torch.nan
    return solved


def minimise_batch(
    batch: Batch, rho: Tensor, start: Tensor, *, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise ``L_n(theta) + R(rho, theta)`` for every user of the batch.

    Parameters
    ----------
    batch : Batch
        The users, linear model.
    rho, start : Tensor
        Global model ``(d,)`` and starting points ``(k, d)``.
    tolerance : float
        Residual asked for; the iteration stops well below it, or where no step lowers the value.
    max_iterations : int
        Most linear systems to solve for a user.

    Returns
    -------
    tuple of Tensor
        The points ``(k, d)``, their first-order residuals ``(k,)``, and the numbers of linear
        systems solved ``(k,)``.
    """
    theta, residuals = start.clone(), start.new_zeros(len(start))
    iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    users = _leave_kink(batch, rho, theta)
    if len(users) == 0:
        return theta, residuals, iterations
    batch = batch if len(users) == len(start) else batch.select(users)
    points = theta[users]
    gradient = batch.gradient(rho, points)
    residual = torch.linalg.vector_norm(gradient, dim=-1)
    goal = batch.rounding().clamp(min=GOAL * tolerance)
    for _ in range(max_iterations):
        left = residual > goal
        if not bool(left.all()):
            theta[users], residuals[users] = points, residual
            index = left.nonzero()[:, 0]
            users, points, gradient = users[index], points[index], gradient[index]
            residual, goal, batch = residual[index], goal[index], batch.select(index)
        if len(users) == 0:
            break
        iterations[users] += 1
        reach = torch.linalg.vector_norm(rho - points, dim=-1)
        step = shortened(batch.direction(rho, points, gradient), reach)
        moved = points - step
        new = batch.gradient(rho, moved)
        size = torch.linalg.vector_norm(new, dim=-1)
        hard = (~(size <= CHORD_CONTRACTION * residual)).nonzero()[:, 0]
        if len(hard):
            some = batch.select(hard)
            scale = _good_scales(some, rho, points[hard], step[hard], gradient[hard])
            found = (scale > 0)[:, None]
            # A step without a good scale need not be finite.
            moved[hard] = points[hard] - torch.where(found, scale[:, None] * step[hard], 0.0)
            new[hard] = some.gradient(rho, moved[hard])
            size[hard] = torch.linalg.vector_norm(new[hard], dim=-1)
            # Whoever has none ends here, at the point it has reached.
            goal[hard[scale == 0]] = torch.inf
        points, gradient, residual = moved, new, size
    theta[users], residuals[users] = points, residual
    return theta, residuals, iterations


def _leave_kink(batch: Batch, rho: Tensor, theta: Tensor) -> Tensor:
    """Put users whose optimum is rho there, and others below the value at rho; return the latter.

    ``theta (k, d)``, the starting points, is changed in place.
    """
    kink = batch.regularizer.kink
    if kink == 0:
        return torch.arange(len(theta), device=theta.device)
    opinion = batch.loss.gradient(rho.repeat(len(theta), 1))
    size = torch.linalg.vector_norm(opinion, dim=-1)
    theta[size <= kink] = rho
    users = (~(size <= kink)).nonzero()[:, 0]
    if len(users) == 0:
        return users
    at_kink = batch.select(users).value(rho, rho.repeat(len(users), 1))
    high = ~(batch.select(users).value(rho, theta[users]) < at_kink)
    if bool(high.any()):
        some = users[high]
        theta[some] = _down(batch.select(some), rho, opinion[some], at_kink[high])
    return users


def _down(batch: Batch, rho: Tensor, opinion: Tensor, at_kink: Tensor) -> Tensor:
    """Return points ``(k, d)`` below the value at rho, as one user's ``leave_kink`` does."""
    size = torch.linalg.vector_norm(opinion, dim=-1)
    share = 1 / (1 + size)
    step = share[:, None] * opinion
    slope = share * size * (size - batch.regularizer.kink)
    scale = line_search(lambda s: batch.value(rho, rho - s * step), at_kink, slope)
    return rho - scale[:, None] * step


def _good_scales(
    batch: Batch, rho: Tensor, theta: Tensor, step: Tensor, gradient: Tensor
) -> Tensor:
    """Return how far to go along each user's step, ``(k,)``, 0 where that leads nowhere."""
    return line_search(
        lambda s: batch.value(rho, theta - s * step),
        batch.value(rho, theta),
        (gradient * step).sum(dim=-1),
        norm_at=lambda s: torch.linalg.vector_norm(batch.gradient(rho, theta - s * step), dim=-1),
        norm=torch.linalg.vector_norm(gradient, dim=-1),
        further=True,
    )
