"""Divide and conquer: without the rows that stick out where rows differ most."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.aggregation.rounds import Nothing, Received, RuleSetup
from pfl_flower.aggregation.ties import mean_of_least, rounded
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import middle

COORDINATES = 10_000
"""At most so many coordinates are looked at in a round, as in the paper."""


class DivideAndConquer:
    """k times the mean of the ``k - f`` rows that stick out least.

    (Shejwalkar, Houmansadr, *Manipulating the Byzantine*, 2021.) Of the centred rows, at up to
    10,000 coordinates drawn each round, the right singular vector v of the largest singular value
    is the direction in which they differ most; a row's score is ``<row, v>^2``, and the f highest
    (``share`` times f) are left out. Where several singular values are the largest, the score is
    the squared length in the space of all their vectors. Rows that tie for the last place share it.
    """

    def __init__(self, setup: RuleSetup, *, share: float = 1.0, tolerance: int = 1) -> None:
        self.setup, self.share, self.tolerance = setup, share, tolerance

    def init(self, rho: Tensor) -> Nothing:
        """Return nothing: what is drawn is a function of the seed and the round."""
        return Nothing()

    def update(self, state: Nothing, received: Received) -> tuple[Tensor, Nothing]:
        """Return the direction of a round."""
        rows, dim = received.rows, received.rows.shape[1]
        seen = rows
        if dim > COORDINATES:
            draw = self.setup.generator("coordinates", received.round)
            chosen = torch.randperm(dim, generator=draw)[:COORDINATES].sort().values
            seen = rows[:, chosen.to(rows.device)]
        f = min(self.tolerance, (len(rows) - 1) // 2)
        kept = max(1, len(rows) - int(self.share * f))
        return _mean_of_kept(rows, rounded(outlying(seen)), kept), state


@in_units()
def outlying(rows: Tensor) -> Tensor:
    """Return the scores ``(k,)`` of rows ``(k, d)``, the largest entry of which is near 1."""
    centred = rows / middle(rows) if bool(rows.any()) else rows
    centred = centred - centred.mean(dim=0)
    # The k x k products have the same singular values, and the scores are their vectors' squares.
    values, vectors = torch.linalg.eigh(centred @ centred.mT)
    # As large as the largest, but for the rounding of a sum of d products.
    largest = values >= values[-1] * (1 - 1e-9)
    return values[-1].clamp(min=0) * (vectors[:, largest] ** 2).sum(dim=1)


def _mean_of_kept(rows: Tensor, scores: Tensor, kept: int) -> Tensor:
    return in_units()(lambda some: len(some) * mean_of_least(some, scores, kept))(rows)
