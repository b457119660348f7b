"""Data poisoning (Sections 4 and 5.3): the ways to make data that hold a model, in one place.

Here are Theorem 5's single point and the random queries of Theorems 2 and 3; the other methods have
modules of their own. Each takes an ``Aim`` and returns ``PoisonedData``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import (
    Aim,
    PoisonedData,
    check_queries,
)
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.objective.losses import LeastSquares, Logistic, PointLoss, Softmax


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
        # Drawn by inversion in double on the CPU, so that a card draws the same labels; sums of
        # probabilities may end below 1 by rounding, and then the last label has what is missing.
        cumulative = torch.softmax(scores, dim=-1).cumsum(dim=-1)
        below = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=-1)
        return below.clamp(max=scores.shape[1] - 1)
    raise ValueError(f"loss {type(loss).__name__}: no rule for its answers")


def by_sampling(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return theta_spade's answers to the queries of a run."""
    noise = recipe.settings.poisoning_noise
    return sampling(aim, recipe.queries(aim), generator=recipe.generator, noise=noise)
