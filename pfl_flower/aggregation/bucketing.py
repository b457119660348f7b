"""Bucketing: means of a few users at random, and then another rule."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.aggregation.following import rule_then
from pfl_flower.aggregation.kernels import mean
from pfl_flower.aggregation.rounds import Nothing, Received, RuleSetup


class Bucketing:
    """What another rule makes of the means of ``size`` rows each, dealt anew every round.

    (Karimireddy, He, Jaggi, *Byzantine-robust learning on heterogeneous datasets via bucketing*,
    2022.) Means differ less than users do; up to f of them hold a strategic row, so that with n
    users the other rule must withstand f of ``ceil(n / size)``. The last bucket may be smaller and
    counts as the others do. The direction is k times the estimate, as of k rows.

    A deal is a function of the seed, the round, and the places of those who replied in the order of
    their ids, which are the same whatever nodes carry them and in which order replies come; in
    somebody else's app, of the numbers that ``pfl_flower.interop.rounds.Rounds`` gives.
    """

    def __init__(
        self, setup: RuleSetup, *, size: int = 2, then: str = "trimmed-mean", tolerance: int = 1
    ) -> None:
        self.setup, self.size, self.then, self.tolerance = setup, size, then, tolerance

    def init(self, rho: Tensor) -> Nothing:
        """Return nothing: the deal is a function of the seed and the round."""
        return Nothing()

    def update(self, state: Nothing, received: Received) -> tuple[Tensor, Nothing]:
        """Return the direction of the round's buckets."""
        rows = received.rows
        draw = self.setup.generator("buckets", received.round)
        order = torch.randperm(len(rows), generator=draw).to(rows.device)
        means = torch.stack(
            [mean(rows[order[at : at + self.size]]) for at in range(0, len(rows), self.size)]
        )
        # The other rule multiplies by the number of buckets, each of which stands for several.
        return rule_then(self.then, means, self.tolerance) * (len(rows) / len(means)), state
