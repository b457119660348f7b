"""Exact data poisoning by convex optimisation over (query, label) pairs (no paper's).

    minimise sum_j w_j   subject to   sum_j w_j (y_j - p(Q_j)) Q_j^T = 2 nu theta_spade - g, w >= 0

is the aim ``grad L_s(theta_spade, D_s) = g`` with the fewest labels. A linear programme finds the
weights of given pairs; where queries may be designed, its prices Y tell which pair would lower the
total, one with ``(y - p(Q))^T Y Q > 1``, and those are added until there is none (column
generation). As the labels of one query pull in all directions ``y - p``, queries that affinely span
the space always suffice, in any box; given queries alone may not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.cone import Combination, least_combination
from pfl_flower.attacks.data import Aim, PoisonedData, check_queries, rounded
from pfl_flower.attacks.design import Design, Reduction, Task, with_integers

Box = tuple[float, float]

REACH = 30.0
"""Largest norm of a designed query's scores, beyond which labels are all but certain."""


def matching(
    aim: Aim,
    *,
    generator: torch.Generator,
    candidates: Tensor | None = None,
    box: Box | None = None,
    integer: bool = False,
    rounds: int = 40,
    gap: float = 1e-3,
) -> PoisonedData:
    """Return the data of least total weight whose local optimum under the aim is theta_spade.

    Parameters
    ----------
    aim : Aim
        Linear classifier, softmax or logistic.
    generator : torch.Generator
        Source of the first queries and of the starts of the search for better ones.
    candidates : Tensor, optional
        The only queries allowed, ``(n, q)``, each with every label: real images, say.
    box : tuple of float, optional
        Interval of every designed feature but the constant. Unlimited when absent, which is both
        cheapest and fastest: the programme then has ``(C-1) C`` equations at most.
    integer : bool
        Integer weights: exact, by moving the queries, where these are unlimited; rounded, with the
        residual that leaves, otherwise.
    rounds : int
        Most rounds of column generation.
    gap : float
        Stop when no pair is worth more than ``1 + gap``: the weight is then within that factor of
        the least, as far as the search for pairs can tell.

    Returns
    -------
    PoisonedData
        With ``feasible`` False and the smallest residual found where no weights meet the aim.

    Raises
    ------
    ValueError
        If the candidates do not fit the model, come with a box, or the loss is a regression's.
    """
    if candidates is not None:
        if box is not None:
            raise ValueError("box: candidates are used as they are")
        check_queries(aim, candidates)
        design = _cheapest(_Search(Task.of(aim), None, 0.0), candidates, generator, 0, gap)
        data = _measure(aim, "matching, given queries", design.points, design)
    elif box is not None:
        search = _Search(Task.of(aim), box, 0.0)
        start = search.start(4 * aim.model.inputs, generator)
        design = _cheapest(search, start, generator, rounds, gap)
        data = _measure(aim, "matching, box", design.points, design)
    else:
        return _unlimited(aim, generator, integer, rounds, gap)
    return rounded(aim, data) if integer else data


def _unlimited(
    aim: Aim, generator: torch.Generator, integer: bool, rounds: int, gap: float
) -> PoisonedData:
    reduction = Reduction.of(aim)
    search = _Search(reduction.task, None, REACH)
    design = _cheapest(search, search.start(200, generator), generator, rounds, gap)
    exact = with_integers(reduction.task, design, generator=generator) if integer else None
    if exact is not None:
        return _measure(aim, "matching, integer", reduction.lift(exact), exact)
    data = _measure(aim, "matching", reduction.lift(design), design)
    return rounded(aim, data) if integer else data


def _measure(aim: Aim, method: str, queries: Tensor, design: Design) -> PoisonedData:
    return PoisonedData.measure(aim, method, queries, design.labels, design.weights)


def _cheapest(
    search: _Search, queries: Tensor, generator: torch.Generator, rounds: int, gap: float
) -> Design:
    """Solve the programme for the queries with every label, adding pairs for some rounds."""
    classes = search.task.classes
    points = queries.repeat_interleave(len(classes), dim=0)
    labels = classes.repeat(len(queries))
    answer = _solve(search.task, points, labels)
    for _ in range(rounds):
        used = torch.from_numpy(answer.weights).to(points) > 0
        found, answers, worth = search.better(answer, points[used], labels[used], generator)
        good = worth > (1 + gap if answer.exact else 0)
        if not bool(good.any()):
            break
        # The pairs in use stay, so that the programme remains feasible and never gets worse.
        points = torch.cat([points[used], found[good]])
        labels = torch.cat([labels[used], answers[good]])
        answer = _solve(search.task, points, labels)
    weights = torch.from_numpy(answer.weights).to(points)
    used = weights > 0
    return Design(points[used], labels[used], weights[used])


def _solve(task: Task, points: Tensor, labels: Tensor) -> Combination:
    columns = task.columns(points, labels).cpu().numpy()
    return least_combination(columns, task.wanted().cpu().numpy())


@dataclass(frozen=True)
class _Search:
    """Where queries may be, and how to find the pairs that are worth most at given prices."""

    task: Task
    box: Box | None
    reach: float

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw first queries: uniform in the box, normal otherwise."""
        free = self.task.theta.shape[1] - int(self.task.bias)
        if self.box is not None:
            low, high = self.box
            draws = torch.rand((count, free), generator=generator, dtype=torch.float64)
            draws = low + (high - low) * draws
        else:
            draws = 2 * torch.randn((count, free), generator=generator, dtype=torch.float64)
        return self.clamp(self._augment(draws.to(self.task.theta)))

    def clamp(self, points: Tensor) -> Tensor:
        """Return the nearest points that are allowed."""
        free = points[:, :-1] if self.task.bias else points
        if self.box is not None:
            free = free.clamp(*self.box)
        else:
            norm = torch.linalg.vector_norm(free, dim=1, keepdim=True)
            free = free * (self.reach / norm.clamp(min=self.reach))
        return self._augment(free)

    def better(
        self, answer: Combination, points: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Climb from the pairs in use and from new ones; return pairs and what they are worth."""
        fresh = self.start(20, generator)
        classes = self.task.classes
        points = torch.cat([points, fresh.repeat_interleave(len(classes), dim=0)])
        labels = torch.cat([labels, classes.repeat(len(fresh))])
        prices = torch.from_numpy(answer.prices).to(points).view(-1, points.shape[1])
        value = self.task.basis @ prices

        def worth(at: Tensor) -> Tensor:
            return (self.task.residuals(at, labels) * (at @ value.T)).sum(dim=1)

        best, moving = points.clone(), points.clone().requires_grad_()
        score = worth(points)
        adam = torch.optim.Adam([moving], lr=0.1 if self.box is None else 0.02)
        for _ in range(100):
            adam.zero_grad()
            (-worth(moving).sum()).backward()
            adam.step()
            with torch.no_grad():
                moving.copy_(self.clamp(moving))
                now = worth(moving)
                higher = now > score
                best[higher], score = moving[higher], torch.maximum(now, score)
        return best, labels, score

    def _augment(self, free: Tensor) -> Tensor:
        if not self.task.bias:
            return free
        return torch.cat([free, free.new_ones((len(free), 1))], dim=1)
