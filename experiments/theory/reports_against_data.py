"""Where the equivalence stops: reports may answer to the honest users' data, a dataset may not.

Boudou et al. (arXiv 2506.18020) bound how far a learned model moves when one honest point is
replaced, uniform stability, which bounds the generalisation error: f of n workers who poison add
``f/(n - f)`` to it, Byzantine ones ``sqrt(f/(n - 2f))``, which is worse. Theorem 1 seems to say
that they are alike. It speaks of one given dataset of the honest users, D_-s: whatever rho reports
reach, data reach as well. Stability compares two of them, S and S'. Reports may be other ones on
S'; a dataset was made before.

Measured: 20 users of smooth l2, of whom f attack; the n - f honest ones do least squares on m
points each and prefer the same model; S' has one point of one user answered the other way. Each
attacker reports 0.9 lam u on S, for a random direction u, and -0.9 lam u on S'; or holds data that
keep rho where those reports take it on S, the same on S' (``data``) or new ones (``remade``). With
``phi = 0.9 f/(n - f)`` the honest users, all at one place, hold rho at ``phi/sqrt(1 - phi^2)`` from
it, so that reports move it by twice that, whatever m is: for reports of length lam ``2 f/sqrt(n(n -
2f))``, which is at most ``2 sqrt(f/(n - 2f))`` and as steep towards n = 2f. A dataset that stays
moves rho by O(1/m), as honest data do: the term ``f/(n - f)``, proved of rules that choose among
the rows, is not there where rho minimises a strictly convex LOSS. So the equivalence stops at who
answers whom: data that are made after S' are reports in all but form.

Seeds 1 to 3: reports move rho by 0.979 to 1.009 of what is predicted, for f of 1 to 9, m = 1,000,
and by m^-0.01; data that stay as m^-0.93 to m^-0.99, like no attack at all to 1.2 % with 10,000
points, where reports move rho 2,150 times as far. Remade data reach the reports' rho to 6e-11.

Section 6 says that lower bounds for Byzantine learning hold for data poisoning too. The bounds come
from worlds that nobody can tell apart, for which data do: f users at +u and f at -u, either of
which attack and look honest. Then rho is ``f/(n - f)`` away from the honest users' mean in one of
the worlds at least, and is so in both under every R, by symmetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.studies.power_law import exponent
from experiments.studies.study import Setting
from experiments.theory.scenario import SETTLED, Scenario, relative
from pfl_flower.attacks.equivalence import model_from_gradient
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.support.seeding import generator

NAME = "reports-against-data"
USERS, DIM, LAM, NOISE = 20, 4, 1.0, 0.5
SHARE = 0.9
"""Length of a report over lam: what a model attains."""
OPPOSED = -10.0
"""The replaced point's answer over that of the preferred model."""
SIZES, QUICK_SIZES = (30, 100, 300, 1000, 3000, 10_000), (100, 1000, 10_000)
ATTACKERS, QUICK_ATTACKERS, SOME = tuple(range(1, 10)), (1, 5, 9), 5
POINTS = 1000
"""Of each user where f varies; f is ``SOME`` where m does."""
REGULARIZERS = {"squared-l2": SquaredL2(lam=LAM), "l2": L2(lam=LAM), "smooth-l2": SmoothL2(lam=LAM)}


def displacement(attackers: int, share: float = SHARE, users: int = USERS) -> float:
    """Return how far reports of length ``share lam`` hold rho from honest users at one place.

    >>> round(displacement(9, 1.0) / (9 / (20 * 2) ** 0.5), 12)
    1.0
    """
    phi = share * attackers / (users - attackers)
    return float(phi / np.sqrt(1 - phi**2))


@dataclass(frozen=True)
class Neighbours:
    """S and S', the direction of the reports, and the number of attackers."""

    before: Scenario
    after: Scenario
    direction: Tensor
    attackers: int
    idle: bool

    @classmethod
    def draw(cls, setting: Setting, attackers: int, points: int) -> Neighbours:
        """Draw honest users who prefer the same model, and replace one point of the first."""
        draw = generator(setting.seed, NAME, attackers, points)
        preferred, direction = normalize(_normal(2, DIM, draw=draw), dim=1)
        users = [_answered(preferred, points, draw) for _ in range(USERS - attackers)]
        opposed = _beginning(users[0], 2 * preferred, 2 * OPPOSED)
        users[0] = _beginning(users[0], 2 * preferred, 2.0)
        after = [opposed, *users[1:]]
        return cls(
            _scenario(users, SmoothL2(lam=LAM), setting.seed),
            _scenario(after, SmoothL2(lam=LAM), setting.seed),
            direction,
            attackers,
            setting.control,
        )

    def reported(self, scenario: Scenario, sign: float) -> Tensor:
        """Return rho under reports of ``sign 0.9 lam u``."""
        total = sign * self.attackers * SHARE * LAM * self.direction
        found = equilibrium(scenario.honest, attack_gradient=None if self.idle else total)
        return found.rho

    def dataset(self, scenario: Scenario, rho: Tensor, sign: float) -> UserData:
        """Return an attacker's data that hold rho where such reports do."""
        spade = model_from_gradient(scenario.regularizer, rho, sign * SHARE * LAM * self.direction)
        return single_point(scenario.aim(rho, spade.value)).user()

    def poisoned(self, scenario: Scenario, data: UserData) -> Tensor:
        """Return rho where every attacker holds the data."""
        if self.idle:
            return scenario.honest_optimum
        return scenario.attempt(*[data] * self.attackers).rho

    def measure(self) -> dict[str, float]:
        """Return by how much rho moves from S to S', and how well data stand for reports."""
        there, here = self.reported(self.before, 1.0), self.reported(self.after, -1.0)
        attacking = Neighbours(self.before, self.after, self.direction, self.attackers, False)
        asked = (attacking.reported(self.before, 1.0), attacking.reported(self.after, -1.0))
        data = self.dataset(self.before, asked[0], 1.0)
        remade = self.dataset(self.after, asked[1], -1.0)
        held = self.poisoned(self.before, data)
        moved = float(torch.linalg.vector_norm(there - here))
        return {
            "reports": moved,
            "data": float(torch.linalg.vector_norm(self.poisoned(self.after, data) - held)),
            "honest": float(
                torch.linalg.vector_norm(self.before.honest_optimum - self.after.honest_optimum)
            ),
            "held": relative(held, asked[0]),
            "remade": relative(self.poisoned(self.after, remade), asked[1]),
            "over prediction": moved / (2 * displacement(self.attackers)),
            "over sqrt": moved / (2 * np.sqrt(self.attackers / (USERS - 2 * self.attackers))),
        }


def worlds(setting: Setting, regularizer: Regularizer, attackers: int) -> float:
    """Return the larger error of two worlds that look alike, over ``f/(n - f)``.

    In the control those who would attack stay away, and each world's honest users are alone.
    """
    draw = generator(setting.seed, NAME, "worlds", attackers)
    direction = normalize(_normal(DIM, draw=draw), dim=0)
    sides = [*[1.0] * attackers, *[0.0] * (USERS - 2 * attackers), *[-1.0] * attackers]
    users = [_answered(side * direction, POINTS, draw) for side in sides]
    errors = []
    for honest, mean in ((slice(None, -attackers), 1.0), (slice(attackers, None), -1.0)):
        who = users[honest] if setting.control else users
        found = equilibrium(_scenario(who, regularizer, setting.seed).honest)
        aim = mean * attackers / (USERS - attackers) * direction
        errors.append(float(torch.linalg.vector_norm(found.rho - aim)))
    return max(errors) * (USERS - attackers) / attackers


def measure(setting: Setting) -> dict[str, Any]:
    """Vary m, then f; then the worlds."""
    sizes = QUICK_SIZES if setting.quick else SIZES
    numbers = QUICK_ATTACKERS if setting.quick else ATTACKERS
    by_size, by_number = [], []
    for points in sizes:
        setting.say(f"{points} points")
        by_size.append(Neighbours.draw(setting, SOME, points).measure())
    for attackers in numbers:
        setting.say(f"{attackers} attackers")
        by_number.append(Neighbours.draw(setting, attackers, POINTS).measure())
    metrics = {
        f"exponent, {who}": exponent(sizes, [max(one[who], 1e-300) for one in by_size])
        for who in ("reports", "data", "honest")
    }
    last = by_size[-1]
    metrics["reports over data"] = last["reports"] / last["data"]
    metrics["data over honest"] = last["data"] / last["honest"]
    for what in ("held", "remade", "over prediction", "over sqrt"):
        metrics |= {
            f"{what}: f = {f}": one[what] for f, one in zip(numbers, by_number, strict=True)
        }
    for name, regularizer in REGULARIZERS.items():
        metrics[f"worlds: {name}"] = worlds(setting, regularizer, SOME)
    curves = {"size": by_size, "number": by_number}
    return {"metrics": metrics, "sizes": sizes, "numbers": numbers, "curves": curves}


def _normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def _answered(preferred: Tensor, points: int, draw: torch.Generator) -> UserData:
    queries = _normal(points, DIM, draw=draw)
    return UserData(queries, queries @ preferred + NOISE * _normal(points, draw=draw))


def _beginning(user: UserData, query: Tensor, answer: float) -> UserData:
    """Return the user with another first point."""
    queries, answers = user.features.clone(), user.labels.clone()
    queries[0], answers[0] = query, answer
    return UserData(queries, answers)


def _scenario(users: Sequence[UserData], regularizer: Regularizer, seed: int) -> Scenario:
    return Scenario(
        loss="least-squares",
        users=tuple(users),
        regularizer=regularizer,
        nu=0.0,
        seed=seed,
        tolerance=SETTLED,
    )
