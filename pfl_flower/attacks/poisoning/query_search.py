"""Looking for the (query, label) pairs that are worth most at given prices, in a box or a ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.query_design import Task

Box = tuple[float, float]

REACH = 30.0
"""Largest norm of a designed query's scores. A limit of 10 costs 2% of the total weight with six
classes, one of 100 saves nothing: beyond 30 all pulls but those of ties are below e^-30."""
FRESH = 20
"""New queries, each with every label, that a search starts from. 5 or 80 make no difference to the
total: most of what is found climbs from the pairs in use."""
STEPS = 100
"""Ascent steps of a search: with 30 the programme takes two to three times as long in all and ends
1% heavier, with 300 it ends 0.3% lighter at best."""
SCORE_RATE = 0.3
"""First step in the space of scores; as steps shrink to 0 a point can go 15 units in a search."""
BOX_RATE = 0.05
"""The same in a box, as a share of its width: 2.5 widths, from any corner to any other."""


@dataclass(frozen=True)
class Search:
    """A task and where its points may be.

    Attributes
    ----------
    task : Task
        In the space of scores, or of queries when there is a box.
    box : tuple of float, optional
        Interval of every feature but the constant; the ball of radius ``REACH`` when absent.
    """

    task: Task
    box: Box | None = None

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``(count, k)`` points: uniform in the box, or normal with deviation 2."""
        shape = (count, self.task.theta.shape[1])
        if self.box is None:
            draws = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            low, high = self.box
            draws = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return self.clamp(draws.to(self.task.theta))

    def clamp(self, points: Tensor) -> Tensor:
        """Return the nearest allowed points, their last feature 1 if there is a bias."""
        free = points[:, :-1] if self.task.bias else points
        if self.box is not None:
            free = free.clamp(*self.box)
        else:
            norm = torch.linalg.vector_norm(free, dim=1, keepdim=True)
            free = free * (REACH / norm.clamp(min=REACH))
        return torch.cat([free, torch.ones_like(points[:, :1])], dim=1) if self.task.bias else free

    def better(
        self, prices: Tensor, points: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Climb from the given pairs and from new ones; return pairs and what they are worth.

        The worth is not concave in the query: what is found is a lower bound on the best.

        Parameters
        ----------
        prices : Tensor
            Y, ``(c, k)``.
        points, labels : Tensor
            Pairs to start from, ``(n, k)`` and ``(n,)``.
        generator : torch.Generator
            Source of the new queries.
        """
        classes, fresh = self.task.classes, self.start(FRESH, generator)
        points = torch.cat([points, fresh.repeat_interleave(len(classes), dim=0)])
        labels = torch.cat([labels, classes.repeat(len(fresh))])
        best = points
        worth, slope = self.task.worth(points, labels, prices)
        first, second = torch.zeros_like(points), torch.zeros_like(points)
        rate = SCORE_RATE if self.box is None else BOX_RATE * (self.box[1] - self.box[0])
        for step in range(1, STEPS + 1):
            # Adam: the worths of different labels differ by orders of magnitude. Squares are
            # averaged over 100 steps, a whole search.
            first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
            # A slope of 0 moves nothing; any other is divided by its own size, however small.
            move = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-300)
            points = self.clamp(points + rate * (1 - step / (STEPS + 1)) * move)
            now, slope = self.task.worth(points, labels, prices)
            # Climbing overshoots: what counts is the best point on the way.
            best = torch.where((now > worth)[:, None], points, best)
            worth = torch.maximum(now, worth)
        return best, labels, worth
