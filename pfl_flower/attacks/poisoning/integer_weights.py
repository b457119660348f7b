"""Designed data whose weights are integers: the points move until they meet the demand again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.query_design import Design, Task
from pfl_flower.solvers.line_search import line_search

STEP_RANK = 1e-9
"""Singular values of the Jacobian below this fraction of the largest count as 0.

At the optimum it is flat along the prices: a step along what is nearly flat would be too long for
equations that are not straight.
"""
BESIDE = 0.1
"""Deviation of the start from the optimum, relative to the points' mean coordinate: from as far as
0.3 it takes up to 60 steps, from 1 two of three games end nowhere."""
MOST_STEPS = 100
"""Gauss-Newton steps; six to eight are usual."""
SOLVED = 1e-13
"""Relative error at which the equations are solved: a few hundred units of rounding."""
ACCEPTED = 1e-10
"""Relative error up to which a solution counts where rounding ended the iteration before."""


def with_integers(task: Task, design: Design, *, generator: torch.Generator) -> Design | None:
    """Round the weights up to integers and move the points so that the demand is still met.

    The equations ``F(z) = sum w (y - p) point^T - demand = 0`` are far fewer than the points'
    coordinates: Gauss-Newton steps of least norm, halved until F decreases. At the optimum of
    ``matching`` F is flat in the direction of its prices, so the first step starts beside it.

    Returns
    -------
    Design or None
        None if the iteration did not end at rounding error.
    """
    weights = design.weights.ceil()
    fixed = design.points[:, design.points.shape[1] - int(task.bias) :]
    free = design.points[:, : design.points.shape[1] - int(task.bias)]
    noise = torch.randn(free.shape, generator=generator, dtype=torch.float64).to(free)
    goal = task.wanted()

    def misses(moving: Tensor) -> Tensor:
        points = torch.cat([moving, fixed], dim=1)
        return task.columns(points, design.labels) @ weights - goal

    moving = free + BESIDE * free.abs().mean() * noise
    solved = _root(misses, moving, torch.linalg.vector_norm(goal))
    if solved is None:
        return None
    return Design(torch.cat([solved, fixed], dim=1), design.labels, weights)


def _root(misses: Callable[[Tensor], Tensor], moving: Tensor, size: Tensor) -> Tensor | None:
    """Return points where F is 0 relative to ``size``, or None if none was found from these."""
    error = misses(moving)
    for _ in range(MOST_STEPS):
        norm = torch.linalg.vector_norm(error)
        if norm <= SOLVED * size:
            break
        jacobian = torch.func.jacrev(misses)(moving).flatten(1)
        step = torch.linalg.pinv(jacobian, rtol=STEP_RANK) @ error
        # Of ||F||: ||F|| itself where the step solves the equations, less where F is flat.
        slope = error @ (jacobian @ step) / norm
        scale = _good_scale(misses, moving, step.view_as(moving), norm, slope)
        if scale == 0:
            break
        moving = moving - scale * step.view_as(moving)
        error = misses(moving)
    return moving if torch.linalg.vector_norm(error) <= ACCEPTED * size else None


def _good_scale(
    misses: Callable[[Tensor], Tensor], moving: Tensor, step: Tensor, norm: Tensor, slope: Tensor
) -> float:
    """Return how far to go along a step for ``||F||`` to fall, 0 where it does not."""
    return float(
        line_search(lambda s: torch.linalg.vector_norm(misses(moving - s * step)), norm, slope)
    )
