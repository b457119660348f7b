"""Local PAC* learning (Definition 1): what honest data are worth against any fixed adversaries.

One honest user h answers I queries by a preferred model theta_dagger; four others hold datasets
that do not change and that were made against h: thousands of points answered by ``-10
theta_dagger``, one of them with every point counted a hundred times. All five share rho, and the
exact equilibrium (rho*, theta*) of LOSS says what h learns. With ``alone = argmin L_h``,

    ||theta*_h - theta_dagger|| <= ||theta*_h - alone|| + ||alone - theta_dagger||

splits the distance into what the others do through R, a gradient that I does not raise against a
curvature that grows with I, and into what h's own noise does: ``1/I`` and ``I^{-1/2}``. The proof
of Lemma 5 (Equation 162), with the ``alpha = 3/4`` of Lemma 4's, guarantees ``I^{-1/4}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.studies.power_law import exponent
from experiments.studies.study import Setting
from experiments.theory.honest_users import answers
from experiments.theory.queries import DIM, Queries
from experiments.theory.scenario import SETTLED, Scenario
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import Equilibrium, equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

NU, NOISE = 0.1, 1.0
SIZES = tuple(round(10 ** (1 + step / 4)) for step in range(17))
QUICK_SIZES = SIZES[0], *SIZES[8::4]
UPPER = 1000
"""Exponents are fitted from here on."""
TURNS = 3
"""Independent honest datasets of every size, per seed."""
LENGTH = 2.0
"""``||theta_dagger||``."""
ENOUGH = 0.1
"""Definition 1's epsilon."""
OPPOSED = -10.0
"""The adversaries' preferred model over theta_dagger."""
ADVERSARIES = ((1000, 1.0), (1000, 1.0), (1000, 1.0), (200, 100.0))
"""Points of each adversary, and the weight of every point."""

Solve = Callable[[Population, Tensor | None], Equilibrium]


def convex_equilibrium(population: Population, start: Tensor | None) -> Equilibrium:
    """Return the exact minimiser of LOSS by Newton's method, from a first rho."""
    return equilibrium(population, start=start)


@dataclass(frozen=True)
class Case:
    """One curve: who asks what, what couples the users, and how LOSS is minimised."""

    queries: Queries
    regularizer: Regularizer
    solve: Solve = convex_equilibrium


@dataclass(frozen=True, kw_only=True)
class Learner:
    """An honest user of any number of points, among adversaries whose datasets are fixed.

    Attributes
    ----------
    loss : str
        ``least-squares`` or ``logistic``.
    queries : callable
        The query distribution.
    preferred : Tensor
        theta_dagger of the honest user, ``(d,)``.
    adversaries : tuple of UserData
        The others.
    seed : int
        Of all that is drawn.
    idle : bool
        The control: the honest user's answers have nothing to do with the queries.
    own : dict
        What users have learnt on their own, ``(d,)``, by points and turn.
    """

    loss: str
    queries: Queries
    preferred: Tensor
    adversaries: tuple[UserData, ...]
    seed: int
    idle: bool
    own: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def draw(cls, loss: str, queries: Queries, setting: Setting) -> Learner:
        """Draw theta_dagger and the adversaries."""
        draw = generator(setting.seed, "pac", loss, queries.__name__)
        direction = torch.randn(DIM, generator=draw, dtype=torch.float64)
        preferred = LENGTH * torch.nn.functional.normalize(direction, dim=0)
        adversaries = []
        for points, weight in ADVERSARIES:
            asked = queries(points, draw)
            answered = answers(loss, asked, OPPOSED * preferred, draw=draw)
            adversaries.append(UserData(asked, answered, torch.full((points,), weight).double()))
        return cls(
            loss=loss,
            queries=queries,
            preferred=preferred,
            adversaries=tuple(adversaries),
            seed=setting.seed,
            idle=setting.control,
        )

    def data(self, points: int, turn: int, *, sign: float = 1.0) -> UserData:
        """Return a dataset of the user who prefers ``sign * theta_dagger``."""
        draw = generator(self.seed, "honest", self.loss, self.queries.__name__, points, turn)
        asked = self.queries(points, draw)
        preferred = torch.zeros_like(self.preferred) if self.idle else sign * self.preferred
        noise = math.hypot(NOISE, LENGTH) if self.idle else NOISE
        return UserData(asked, answers(self.loss, asked, preferred, draw=draw, noise=noise))

    def among_adversaries(self, regularizer: Regularizer, *honest: UserData) -> Population:
        """Return honest users, and then the adversaries."""
        return self._scenario(regularizer, honest).population(*self.adversaries)

    def alone(self, points: int, turn: int) -> Tensor:
        """Return ``argmin L_h``, ``(d,)``: one user and a rho of its own, which costs nothing."""
        if (points, turn) not in self.own:
            alone = self._scenario(SquaredL2(lam=1.0), (self.data(points, turn),))
            self.own[points, turn] = alone.honest_equilibrium.theta[0]
        return self.own[points, turn]

    def _scenario(self, regularizer: Regularizer, honest: tuple[UserData, ...]) -> Scenario:
        return Scenario(
            loss=self.loss,
            users=honest,
            regularizer=regularizer,
            nu=NU,
            seed=self.seed,
            tolerance=SETTLED,
        )

    def miss(self, theta: Tensor, *, sign: float = 1.0) -> float:
        """Return ``||theta - sign * theta_dagger||``."""
        return float(torch.linalg.vector_norm(theta - sign * self.preferred))


@dataclass
class Curves:
    """Distances to theta_dagger, coupled and alone, and the others' bias, by dataset and size."""

    distance: np.ndarray[Any, np.dtype[np.float64]]
    alone: np.ndarray[Any, np.dtype[np.float64]]
    bias: np.ndarray[Any, np.dtype[np.float64]]
    pair: float
    residual: float


def measure_pac(setting: Setting, loss: str, cases: Mapping[str, Case]) -> dict[str, Any]:
    """Return, for each case, distances by I, their exponents, and what two honest users learn."""
    sizes, turns = (QUICK_SIZES, 1) if setting.quick else (SIZES, TURNS)
    asked = {case.queries for case in cases.values()}
    learners = {queries: Learner.draw(loss, queries, setting) for queries in asked}
    metrics: dict[str, float] = {}
    drawn: dict[str, dict[str, Any]] = {}
    for label, case in cases.items():
        setting.say(label)
        curves = _follow(learners[case.queries], case, sizes, turns)
        metrics |= {f"{what}: {label}": value for what, value in _summary(curves, sizes).items()}
        names = "distance", "alone", "bias"
        drawn[label] = {name: getattr(curves, name).tolist() for name in names}
    return {"metrics": metrics, "sizes": sizes, "curves": drawn}


def _follow(learner: Learner, case: Case, sizes: Sequence[int], turns: int) -> Curves:
    shape = turns, len(sizes)
    curves = Curves(np.zeros(shape), np.zeros(shape), np.zeros(shape), 0.0, 0.0)
    start = None
    for turn in range(turns):
        for column, points in enumerate(sizes):
            user, alone = learner.data(points, turn), learner.alone(points, turn)
            found = case.solve(learner.among_adversaries(case.regularizer, user), start)
            start, place = found.rho, (turn, column)
            curves.distance[place] = learner.miss(found.theta[0])
            curves.alone[place] = learner.miss(alone)
            curves.bias[place] = torch.linalg.vector_norm(found.theta[0] - alone)
            curves.residual = max(curves.residual, found.residual, found.local_residual)
    users = learner.data(sizes[-1], 0), learner.data(sizes[-1], turns, sign=-1.0)
    found = case.solve(learner.among_adversaries(case.regularizer, *users), start)
    curves.residual = max(curves.residual, found.residual, found.local_residual)
    curves.pair = max(learner.miss(found.theta[0]), learner.miss(found.theta[1], sign=-1.0))
    return curves


def _summary(curves: Curves, sizes: Sequence[int]) -> dict[str, float]:
    upper = [column for column, points in enumerate(sizes) if points >= UPPER]
    large = [sizes[column] for column in upper]

    def falls(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        means = np.sqrt((values[:, upper] ** 2).mean(axis=0))
        return exponent(large, means.tolist())

    worst = curves.distance.max(axis=0)
    summary = {
        "exponent": falls(curves.distance),
        "exponent alone": falls(curves.alone),
        "exponent bias": falls(curves.bias),
        "first": float(curves.distance[:, 0].min()),
        "last": float(worst[-1]),
        "pair": curves.pair,
        "residual": curves.residual,
    }
    crossing = enough(sizes, worst.tolist())
    return summary if crossing is None else {**summary, "I at 0.1": crossing}


def enough(sizes: Sequence[int], distances: Sequence[float]) -> float | None:
    """Return the I from which distances stay below 0.1, log-log interpolated; None if they do not.

    >>> round(enough([10, 100, 1000], [10.0, 1.0, 0.01]))
    316
    """
    above = [index for index, distance in enumerate(distances) if distance >= ENOUGH]
    if not above:
        return float(sizes[0])
    if above[-1] == len(sizes) - 1:
        return None
    place = slice(above[-1], above[-1] + 2)
    falling = np.log(distances[place])[::-1]
    return float(np.exp(np.interp(math.log(ENOUGH), falling, np.log(sizes[place])[::-1])))
