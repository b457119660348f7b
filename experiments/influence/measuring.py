"""One row of the table: a rule and a regulariser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pfl_flower as pfl
from experiments.influence.pushing import FAR
from pfl_flower.aggregation.at_rest import Honest, at_rest
from pfl_flower.aggregation.influence import one_round
from pfl_flower.aggregation.table import AGGREGATIONS, names_f
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import kebab
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.support.versions import commit

USERS = 14
LIMIT = 0.5
"""Of rules that have one: half of lam, so that it binds under l2 as well."""
LIMITED: Mapping[str, dict[str, Any]] = {
    "qrmed": {"aggregation_options": f'{{"influence": {LIMIT}}}'},
    "static-clipping": {"clipping_radius": LIMIT},
}
SLACK = 1e-6
"""Relative: rounding, and what tolerances let pass."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is tried.

    Attributes
    ----------
    strategic : int
        k, of ``USERS`` in all.
    directions : int
        In which rho is pushed, each to both sides.
    rounds : int
        After which rho counts as at rest.
    trials : int
        Of each round's search.
    """

    strategic: int
    directions: int
    rounds: int
    trials: int


FULL, QUICK = (1, 40, 48), (1, 20, 24)
"""Directions, rounds and trials. Of rules with a bound forty rounds and sixty come to the same."""


def settings(rule: str, regularizer: str, size: Size, rounds: int, seed: int) -> dict[str, Any]:
    """Return the keys of a run without its attack."""
    chosen: dict[str, Any] = {
        "seed": seed,
        "users": USERS,
        "dataset": "synthetic-linear",
        "features": 5,
        "points_per_user": "40",
        "nu": 0.1,
        "lam": 1.0,
        "server_lr_factor": 3.0,
        "evaluate_every": 0,
        "regularizer": regularizer,
        "aggregation": rule,
        "rounds": rounds,
        **LIMITED.get(rule, {}),
    }
    if AGGREGATIONS.row(rule).bound and names_f(parse_config(_spelled(chosen))):
        chosen["aggregation_tolerance"] = size.strategic
    return chosen


def _spelled(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {kebab(key): value for key, value in keys.items()}


def quiet(rule: str, regularizer: str, size: Size, seed: int = 1) -> dict[str, Any]:
    """Return the keys of the run of the honest users by themselves."""
    alone = {"users": USERS - size.strategic, "strategic_users": "none"}
    return {**settings(rule, regularizer, size, size.rounds, seed), **alone}


def pushed(
    rule: str,
    regularizer: str,
    size: Size,
    *,
    rounds: int,
    direction: int,
    sign: int,
    seed: int = 1,
) -> dict[str, Any]:
    """Return the keys of a run in which k users push."""
    return {
        **settings(rule, regularizer, size, rounds, seed),
        "users": USERS,
        "strategic_users": f"{USERS - size.strategic}-{USERS - 1}",
        "attack": "experiments.influence.pushing:push",
        "attack_options": f'{{"direction": {direction}, "sign": {sign}, "trials": {size.trials}}}',
        "attack_knowledge": "omniscient",
    }


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found, and what bounds it: displacements of rho, Euclidean.

    Attributes
    ----------
    round_bound, round_found : float
        Of one round from rho_0, between two choices of what k users send.
    rest_bound, rest_found : float
        Of where rho rests, from where it rests without them.
    free : bool
        Whether rho went to where it was pushed, however far that was.
    seed : int
        Of the honest users' data.
    commit : str
        Of the code that measured it.
    """

    rule: str
    regularizer: str
    strategic: int
    directions: int
    rounds: int
    trials: int
    eta: float
    round_bound: float
    round_found: float
    rest_bound: float
    rest_found: float
    seed: int
    commit: str

    @property
    def free(self) -> bool:
        """Whether rho went most of the way to a target a thousand away."""
        return self.rest_found > FAR / 2

    @property
    def holds(self) -> bool:
        """Whether nothing found is beyond its bound."""
        pairs = (self.round_found, self.round_bound), (self.rest_found, self.rest_bound)
        return all(found <= bound * (1 + SLACK) for found, bound in pairs)

    def reached(self) -> dict[str, float]:
        """Return what part of the bound was found, in one round and at rest, where there is one."""
        pairs = {
            "round": (self.round_found, self.round_bound),
            "rest": (self.rest_found, self.rest_bound),
        }
        return {what: found / bound for what, (found, bound) in pairs.items() if bound < math.inf}

    def kept(self) -> dict[str, Any]:
        """Return the row of the CSV."""
        return asdict(self)


def measure(rule: str, regularizer: str, size: Size, seed: int = 1) -> Row:
    """Return a rule's row under a regulariser: four runs, more of several directions."""
    alone = pfl.run(**quiet(rule, regularizer, size, seed))
    rest = torch.as_tensor(alone.rho)
    once, ended, eta = [], [], 0.0
    for direction in range(1, size.directions + 1):
        sides = []
        for sign in (1, -1):
            keys = {"direction": direction, "sign": sign, "seed": seed}
            first = pfl.run(**pushed(rule, regularizer, size, rounds=1, **keys))
            sides.append(torch.as_tensor(first.rho))
            eta = float(first.rounds["eta"][-1])
            if sign == 1 or size.directions > 1:
                last = pfl.run(**pushed(rule, regularizer, size, rounds=size.rounds, **keys))
                ended.append(_norm(torch.as_tensor(last.rho) - rest))
        once.append(_norm(sides[0] - sides[1]))
    keys = quiet(rule, regularizer, size, seed)
    problem = build_problem(parse_config(_spelled(keys)))
    limit = LIMIT if rule in LIMITED else None
    radius, k = problem.regularizer.radius, size.strategic
    most = one_round(rule, users=USERS, strategic=k, radius=radius, limit=limit).most
    resting = at_rest(
        rule,
        honest=seen_from(problem, rest),
        regularizer=problem.regularizer,
        strategic=k,
        limit=limit,
    )
    return Row(
        rule=rule,
        regularizer=regularizer,
        eta=eta,
        round_bound=eta * most,
        round_found=max(once),
        rest_bound=resting.most,
        rest_found=max(ended),
        seed=seed,
        commit=commit(),
        **asdict(size),
    )


def seen_from(problem: Problem, point: Tensor) -> Honest:
    """Return the honest users' minimisers' distances from a point, and their curvatures."""
    users = tuple(range(problem.config.users))
    population, zero = problem.population(users), torch.zeros_like(problem.initial)
    found = problem.alone(users).solve(zero, zero.repeat(len(users), 1))
    curved = [torch.linalg.eigvalsh(population.hessian(row, zero)) for row in range(len(users))]
    return Honest(
        away=torch.linalg.vector_norm(found.theta - point, dim=1),
        least=torch.stack([values[0] for values in curved]),
        most=torch.stack([values[-1] for values in curved]),
    )


def _norm(vector: Tensor) -> float:
    length = float(torch.linalg.vector_norm(vector))
    return length if math.isfinite(length) else math.inf
