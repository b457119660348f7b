"""Data poisoning (Sections 4 and 5.3): the ways to make data that hold a model, in one place.

Here are Theorem 5's single point and the random queries of Theorems 2 and 3; the other methods have
modules of their own. Each takes an ``Aim`` and returns ``PoisonedData``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.attacks.aim import (
    Aim,
    PoisonedData,
    check_queries,
    gaussian_queries,
    local_gradient,
    rounded,
)
from pfl_flower.attacks.indifference import indifference
from pfl_flower.attacks.matching import matching
from pfl_flower.attacks.repeated import label_bound, least_weight, repeated
from pfl_flower.losses import LeastSquares, Logistic, PointLoss, Softmax
from pfl_flower.models import augment

__all__ = [
    "Aim",
    "PoisonedData",
    "gaussian_queries",
    "indifference",
    "label_bound",
    "least_weight",
    "local_gradient",
    "matching",
    "repeated",
    "rounded",
    "sampling",
    "single_point",
]


def single_point(aim: Aim) -> PoisonedData:
    """Return Theorem 5's dataset for least squares: one point that holds theta_spade.

    With ``Q = g - 2 nu theta_spade`` and ``A = Q^T theta_spade - 1`` the point's gradient at
    theta_spade is ``(Q^T theta_spade - A) Q = Q``, so that ``2 nu theta_spade + Q = g``
    (Appendix H, which leaves the local term 2 nu theta_spade out).

    With a constant feature Q must end in 1, and a point with residual r adds ``r Q``: with
    ``(q, b) = g - 2 nu theta_spade``, ``Q = (q/b, 1)`` and r = b do unless b = 0, where two points
    ``(q, 1)`` and ``(-q, 1)`` with residuals 1/2 and -1/2 do and no single point does.

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
    elif bool(needed[-1].abs() > 1e-6 * torch.linalg.vector_norm(needed)):
        queries, residuals = needed[None] / needed[-1], needed[-1:]
    else:
        queries = augment(torch.stack([needed[:-1], -needed[:-1]]))
        residuals = torch.stack([(needed[-1] + 1) / 2, (needed[-1] - 1) / 2])
    answers = queries @ theta - residuals
    return PoisonedData.measure(
        aim, "single point", queries, answers, needed.new_ones(len(queries))
    )


def sampling(
    aim: Aim,
    queries: Tensor,
    *,
    generator: torch.Generator,
    noise: float = 0.0,
) -> PoisonedData:
    """Return queries answered as an honest user who prefers theta_spade would (Theorems 2, 3).

    ``A_i = Q_i^T theta_spade + xi_i``, xi_i normal with standard deviation ``noise``, for least
    squares; ``A_i`` drawn from the probabilities that theta_spade gives its labels for
    classification. The local optimum tends to theta_spade as the number of points grows.

    Parameters
    ----------
    aim : Aim
        Any model and any of the three losses.
    queries : Tensor
        ``(n, q)``, spanning R^q for Theorems 2 and 3 to apply.
    generator : torch.Generator
        Source of the noise or of the labels.
    noise : float
        Standard deviation of a regression's answers.

    Raises
    ------
    ValueError
        If the queries do not fit the model or the loss is another one.
    """
    check_queries(aim, queries)
    scores = aim.model.scores(aim.attack_model[None], queries[None])[0]
    labels = draw_labels(aim.loss, scores, generator=generator, noise=noise)
    return PoisonedData.measure(aim, "sampling", queries, labels, scores.new_ones(len(queries)))


def draw_labels(
    loss: PointLoss, scores: Tensor, *, generator: torch.Generator, noise: float = 0.0
) -> Tensor:
    """Return one answer ``(n,)`` to each query with scores ``(n, c)``, see ``sampling``."""
    if isinstance(loss, LeastSquares):
        draws = torch.randn(len(scores), generator=generator, dtype=torch.float64)
        return scores[:, 0] + noise * draws.to(scores)
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64).to(scores)
    if isinstance(loss, Logistic):
        return torch.where(uniform < torch.sigmoid(scores[:, 0]), 1, -1)
    if isinstance(loss, Softmax):
        cumulative = torch.softmax(scores, dim=-1).cumsum(dim=-1)
        below = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=-1)
        return below.clamp(max=scores.shape[1] - 1)
    raise ValueError(f"loss {type(loss).__name__}: no rule for its answers")
