"""Exact data poisoning by convex optimisation over (query, label) pairs (not in the paper).

    minimise sum_j w_j   subject to   sum_j w_j (y_j - p(Q_j)) Q_j^T = 2 nu theta_spade - g, w >= 0

is the aim ``grad L_s(theta_spade, D_s) = g`` with the fewest labels. A linear programme finds the
weights of given pairs. Where queries may be designed, its prices Y, the dual solution, tell which
pairs would lower the total, those with ``(y - p(Q))^T Y Q > 1``, and these are added until the
total meets its lower bound (column generation). As the labels of one query pull in all directions
``y - p``, queries that affinely span the space always suffice, in any box; given queries alone may
not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, check_queries, rounded
from pfl_flower.attacks.poisoning.cheapest_combination import Combination, least_combination
from pfl_flower.attacks.poisoning.indifference import indifference_subspace
from pfl_flower.attacks.poisoning.integer_weights import with_integers
from pfl_flower.attacks.poisoning.query_design import Design, Reduction, Task
from pfl_flower.attacks.poisoning.query_search import Box, Search
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.attacks.poisoning.repeated import label_bound
from pfl_flower.objective.models import augment

POOL = 1500
"""Pairs not in use that are kept for the next programme: they steady the prices, and a programme of
this many more columns takes a fraction of a second."""
FIRST = 200
"""Queries of the first programme without limits, each with every label: for ten classes 2,000 pairs
in 90 equations, which nearly always have a solution."""
SPREAD = 2.0
"""Deviation of first queries along theta_spade's rows, in scores: between ties and certainty."""
CUTS = 1e-9
"""How much more than 1 a pair must be worth to be added: more than the rounding of a worth."""


def matching(
    aim: Aim,
    *,
    generator: torch.Generator,
    candidates: Tensor | None = None,
    box: Box | None = None,
    integer: bool = False,
    rounds: int = 40,
    gap: float = 0.02,
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
        cheapest and fastest: the programme then has ``C (C-1)`` equations at most.
    integer : bool
        Integer weights: exact, by moving the queries, where these are unlimited; rounded, with the
        residual that leaves, otherwise.
    rounds : int
        Most rounds of column generation.
    gap : float
        Stop at a total within this fraction of its lower bound, as far as the search can tell, or
        of less than one label.

    Returns
    -------
    PoisonedData
        With ``feasible`` False and the smallest residual found where no weights meet the aim.

    Raises
    ------
    ValueError
        If the candidates do not fit the model or come with a box, or the loss is a regression's.
    """
    task = Task.of(aim)
    if candidates is not None:
        if box is not None:
            raise ValueError("box: candidates are used as they are")
        check_queries(aim, candidates)
        method, design = "given queries", _Programme(task, candidates).design()
    elif box is None:
        return _unlimited(aim, generator, integer, rounds, gap)
    else:
        search, start = Search(task, box), _first_in_box(aim, box, generator)
        method, design = "box", _generate(search, start, generator, rounds, gap)
    data = _measure(aim, f"matching, {method}", design.points, design)
    return rounded(aim, data) if integer else data


def _unlimited(
    aim: Aim, generator: torch.Generator, integer: bool, rounds: int, gap: float
) -> PoisonedData:
    reduction = Reduction.of(aim)
    search = Search(reduction.task)
    start = search.start(FIRST, generator)
    design = reduction.completed(_generate(search, start, generator, rounds, gap))
    exact = with_integers(reduction.task, design, generator=generator) if integer else None
    if exact is not None:
        return _measure(aim, "matching, integer", reduction.lift(exact), exact)
    data = _measure(aim, "matching", reduction.lift(design), design)
    return rounded(aim, data) if integer else data


def _measure(aim: Aim, method: str, queries: Tensor, design: Design) -> PoisonedData:
    return PoisonedData.measure(aim, method, queries, design.labels, design.weights)


def _first_in_box(aim: Aim, box: Box, generator: torch.Generator) -> Tensor:
    """Draw queries in the box whose labels are uncertain, as far as the box has such queries.

    Others pull so little that their weights would be astronomical.
    """
    reduction, subspace = Reduction.of(aim), indifference_subspace(aim)
    # Four times as many as affinely span the space: at the box's edges many are nearly dependent.
    count, rank = 4 * aim.model.inputs, len(reduction.along)
    uniform = Search(Task.of(aim), box).start(count, generator)
    spread = SPREAD * torch.randn((count, rank), generator=generator, dtype=torch.float64)
    points = uniform[:, :-1] if aim.bias else uniform
    points = subspace.project_in_box(points, box) + spread.to(points) @ reduction.along
    return augment(points.clamp(*box)) if aim.bias else points.clamp(*box)


class _Programme:
    """The linear programme over a pool of pairs, at first every query with every label."""

    def __init__(self, task: Task, queries: Tensor) -> None:
        self.task = task
        self.points = queries.repeat_interleave(len(task.classes), dim=0)
        self.labels = task.classes.repeat(len(queries))
        self.solve()

    def solve(self) -> None:
        """Find the weights of the pool."""
        self.columns = self.task.columns(self.points, self.labels)
        wanted = self.task.wanted()
        self.answer: Combination = least_combination(
            self.columns.cpu().numpy(), wanted.cpu().numpy()
        )
        self.weights = torch.from_numpy(self.answer.weights).to(self.points)
        self.prices = torch.from_numpy(self.answer.prices).to(self.points)

    def design(self) -> Design:
        """Return the pairs in use, or the first one, unused, where nothing is wanted."""
        used = self.weights > 0
        used[0] |= not bool(used.any())
        return Design(self.points[used], self.labels[used], self.weights[used])

    def add(self, points: Tensor, labels: Tensor) -> None:
        """Replace pairs that are far from worth their weight, and solve again."""
        merit = self.prices @ self.columns
        rank = merit.argsort(descending=True).argsort()
        kept = (self.weights > 0) | (rank < POOL)
        self.points = torch.cat([self.points[kept], points])
        self.labels = torch.cat([self.labels[kept], labels])
        self.solve()


@dataclass
class _Bound:
    """Prices at which no pair is known to be worth more than 1: a bound on every total.

    By weak duality ``<demand, Y> <= sum_j w_j``. It starts at ``theta_spade/W((C-1)/e)``, see
    ``least_weight``.
    """

    prices: Tensor
    value: float

    def improve(self, prices: Tensor, value: float) -> None:
        if value > self.value:
            self.prices, self.value = prices, value


def _generate(
    search: Search, queries: Tensor, generator: torch.Generator, rounds: int, gap: float
) -> Design:
    """Solve the programme, adding pairs for some rounds, by in-out separation.

    (Ben-Ameur, Neto, *Acceleration of cutting-plane and column generation algorithms*, 2007.) Pairs
    are sought at prices halfway between the bound's and the programme's: a pair worth more than 1
    there cuts the programme's prices off, and otherwise the bound has improved. Sought at the
    programme's own prices, which swing from round to round, pairs of the digits cost a third more
    after as many rounds.
    """
    task, programme = search.task, _Programme(search.task, queries)
    wanted, classes = task.wanted(), len(task.classes)
    inner = (task.basis.T @ task.theta).reshape(-1) / label_bound(classes)
    bound = _Bound(inner, float(wanted @ inner))
    for _ in range(rounds):
        exact = programme.answer.exact
        # No user can save less than a label.
        if exact and float(programme.weights.sum()) <= max(1.0, (1 + gap) * bound.value):
            break
        outer = programme.prices
        prices = (bound.prices + outer) / 2 if exact else outer
        design = programme.design()
        points, labels, worth = search.better(
            task.basis @ prices.view(task.basis.shape[1], -1),
            design.points,
            design.labels,
            generator,
        )
        if exact:
            # Scaled until the best pair found is worth 1: feasible, as far as the search can tell.
            feasible = prices / worth.max().clamp(min=1)
            bound.improve(feasible, float(wanted @ feasible))
        good = worth > (1 + CUTS if exact else 0)
        if not exact and not bool(good.any()):
            break
        programme.add(points[good], labels[good])
    return programme.design()


def by_matching(aim: Aim, recipe: Recipe, *, rounds: int = 40, gap: float = 0.02) -> PoisonedData:
    """Return what the keys of a run ask for; ``rounds`` and ``gap`` are of column generation."""
    settings = recipe.settings
    given = settings.poisoning_queries == "images"
    return matching(
        aim,
        generator=recipe.generator,
        candidates=recipe.images(aim) if given else None,
        box=recipe.box,
        integer=settings.poisoning_integer,
        rounds=rounds,
        gap=gap,
    )
