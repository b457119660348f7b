"""Newton's method for many users with small systems, a step of all of them at a time.

Every user has its own line search, stopping and warm start; those that have converged leave the
batch. The bits of a user's solution depend on who shares the batch, its residual meets the same
tolerance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.solvers.line_search import line_search, shortened
from pfl_flower.solvers.newton import CHORD_CONTRACTION, GOAL
from pfl_flower.solvers.user_batch import Batch


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
    goal = batch.rounding.clamp(min=GOAL * tolerance)
    # NaN is not above a goal: who has lost all digits leaves too.
    left = int((residual > goal).sum())
    for systems in range(max_iterations):
        if left < len(users):
            theta[users], residuals[users] = points, residual
            iterations.index_fill_(0, users, systems)
            if left == 0:
                return theta, residuals, iterations
            index = (residual > goal).nonzero()[:, 0]
            users, points, gradient = users[index], points[index], gradient[index]
            residual, goal, batch = residual[index], goal[index], batch.select(index)
        points, gradient, residual, goal, left = _stepped(
            batch, rho, points, gradient, residual, goal
        )
    theta[users], residuals[users] = points, residual
    return theta, residuals, iterations.index_fill_(0, users, max_iterations)


def _stepped(
    batch: Batch, rho: Tensor, points: Tensor, gradient: Tensor, residual: Tensor, goal: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return everybody's next point with its gradient and residual, goals, and how many go on.

    Who is stuck has no goal from there on: it leaves the batch, and is solved alone if what it has
    reached will not do.
    """
    reach = torch.linalg.vector_norm(rho - points, dim=-1)
    step = shortened(batch.direction(rho, points, gradient), reach)
    moved = points - step
    new = batch.gradient(rho, moved)
    size = torch.linalg.vector_norm(new, dim=-1)
    # As for one user, a residual that falls fast needs no line search; NaN is not small either.
    slow = ~(size <= CHORD_CONTRACTION * residual)
    # Both at once: a card is waited for at each look.
    many, left = torch.stack([slow, size > goal]).sum(dim=1).tolist()
    if many:
        hard = slow.nonzero()[:, 0]
        some = batch.select(hard)
        scale = _good_scales(some, rho, points[hard], step[hard], gradient[hard])
        goal = goal.index_put((hard,), torch.where(scale == 0, torch.inf, goal[hard]))
        # A step without a good scale need not be finite.
        taken = torch.where((scale > 0)[:, None], scale[:, None] * step[hard], 0.0)
        moved[hard] = points[hard] - taken
        new[hard] = some.gradient(rho, moved[hard])
        size[hard] = torch.linalg.vector_norm(new[hard], dim=-1)
        left = int((size > goal).sum())
    return moved, new, size, goal, left


def _leave_kink(batch: Batch, rho: Tensor, theta: Tensor) -> Tensor:
    """Put users whose optimum is rho there, and others below the value at rho; return the latter.

    ``theta (k, d)``, the starting points, is changed in place.
    """
    kink = batch.regularizer.kink
    if kink == 0:
        return torch.arange(len(theta), device=theta.device)
    opinion = batch.loss.gradient(rho.repeat(len(theta), 1))
    size = torch.linalg.vector_norm(opinion, dim=-1)
    # Those whose gradient is in the kink's subdifferential are done, with rho's own bits.
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
    """Return points ``(k, d)`` below the value at rho, as one user's ``first_point`` does."""
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
