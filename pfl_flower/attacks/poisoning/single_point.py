"""One point that moves a least-squares model anywhere (Theorem 5)."""

from __future__ import annotations

import torch

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import augment
from pfl_flower.objective.vectors import norm

LEAST_LAST = 1e-3
"""Least share of b in ``||(q, b)||`` for which one point will do.

Query and answer are ``1/share`` long, and the query multiplies the answer's rounding: a residual
near ``eps/share^2``, 1e-10 here. At a share of 1e-5 it was 6e-7, and the data no longer feasible.
"""


def single_point(aim: Aim) -> PoisonedData:
    """Return Theorem 5's dataset for least squares: one point that holds theta_spade.

    With ``Q = g - 2 nu theta_spade`` and ``A = Q^T theta_spade - 1`` the point's gradient at
    theta_spade is ``(Q^T theta_spade - A) Q = Q``, so that ``2 nu theta_spade + Q = g``
    (Appendix H, which leaves the local term 2 nu theta_spade out).

    With a constant feature Q must end in 1, and a point with residual r adds ``r Q``: with
    ``(q, b) = g - 2 nu theta_spade``, ``Q = (q/b, 1)`` and r = b do unless b = 0, where two points
    ``(q, 1)`` and ``(-q, 1)`` with residuals (b + 1)/2 and (b - 1)/2 do and no single point does.
    Two points are returned where b is nearly 0 as well, see ``LEAST_LAST``.

    Raises
    ------
    ValueError
        If the loss is not least squares or the model not linear.
    """
    if not isinstance(aim.loss, LeastSquares):
        raise ValueError("loss: a single point holds a model of least squares only")
    needed, theta = -aim.demand[0], aim.attack_model
    if not aim.bias:
        queries, residuals = needed[None], needed.new_ones(1)
    # Where nothing is needed b = 0 as well, and two points that cancel do.
    elif bool(needed[-1].abs() >= LEAST_LAST * norm(needed)) and bool(needed[-1] != 0):
        queries, residuals = needed[None] / needed[-1], needed[-1:]
    else:
        queries = augment(torch.stack([needed[:-1], -needed[:-1]]))
        residuals = torch.stack([(needed[-1] + 1) / 2, (needed[-1] - 1) / 2])
    answers = queries @ theta - residuals
    return PoisonedData.measure(
        aim, "single point", queries, answers, needed.new_ones(len(queries))
    )


def by_single_point(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return the point, which leaves a run nothing to choose."""
    return single_point(aim)
