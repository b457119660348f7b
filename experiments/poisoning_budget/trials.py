"""What a poisoned dataset costs, and what it is worth by two measures.

*Equilibrium*: the exact minimiser of LOSS with the poisoned user, which depends on its data alone.
*Transient*: rho after T rounds of the paper's protocol, in which local models take one Adam step a
round and the poisoned user's starts at theta_spade plus noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from experiments.poisoning_budget.scenarios import poisoned_user
from experiments.poisoning_budget.short_runs import rho_after
from experiments.theory.scenario import Scenario, relative
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.indifference import indifference
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import least_weight, repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.proximal import DEFAULT_TOLERANCE
from pfl_flower.support.seeding import generator

ROUNDS = 250
QUERIES, NOISE = 2000, 0.01
"""The paper's number of indifferent queries, and the deviation of the noise on them."""
NOTHING = 1e-12
"""Weight of a label that says nothing."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A scenario in which poisoning methods are tried.

    Attributes
    ----------
    scenario : Scenario
        The honest users, and the target.
    optimum : Tensor
        rho*_honest, ``(d,)``.
    honest : Tensor
        rho after ``ROUNDS`` rounds without the strategic user, ``(d,)``.
    warm : bool
        Whether equilibria start at the aim rather than at 0, which is only a matter of speed.
    gap : float
        See ``matching``.
    """

    scenario: Scenario
    optimum: Tensor
    honest: Tensor
    warm: bool = False
    gap: float = 0.02

    @classmethod
    def of(cls, scenario: Scenario, *, warm: bool = False, gap: float = 0.02) -> Trial:
        """Run the honest users alone."""
        # Where labels weigh millions, rounding alone leaves more than a scenario's own residual.
        tried = replace(scenario, chosen=scenario.target, tolerance=DEFAULT_TOLERANCE)
        return cls(
            scenario=tried,
            optimum=scenario.honest_optimum,
            honest=rho_after(ROUNDS, tried),
            warm=warm,
            gap=gap,
        )

    def aim(self, share: float) -> Aim:
        """Return the aim of holding ``rho*_honest + share (target - rho*_honest)``."""
        return self.goal if share == 1 else self._holding(share)

    @cached_property
    def goal(self) -> Aim:
        """The aim of holding the target."""
        return self._holding(1)

    def _holding(self, share: float) -> Aim:
        way = self.scenario.target - self.optimum
        return self.scenario.holding(self.optimum + share * way)

    def draw(self, method: str) -> torch.Generator:
        """Return the source of a method's draws."""
        return generator(self.scenario.seed, "budget", self.scenario.name, method)

    def settle(self, data: PoisonedData, start: Tensor | None = None) -> tuple[Tensor, float]:
        """Return rho* of the exact equilibrium, from 0 if no start is given, and its residual."""
        scenario = self.scenario
        population = scenario.population(*poisoned_user(scenario, data))
        found = equilibrium(population, start=self.optimum if scenario.idle else start)
        return found.rho, max(found.residual, found.local_residual)

    def settled(self, rho: Tensor) -> float:
        """``1 - ||rho - target|| / ||rho*_honest - target||``."""
        return self._share(rho, self.optimum)

    def moved(self, data: PoisonedData, *, attack_model: Tensor | None = None) -> float:
        """``1 - ||rho_T - target|| / ||honest rho_T - target||``, the same rounds without s."""
        rho = rho_after(ROUNDS, self.scenario, data, attack_model=attack_model)
        return self._share(rho, self.honest)

    def _share(self, rho: Tensor, honest: Tensor) -> float:
        target = self.scenario.target
        missed = torch.linalg.vector_norm(rho - target) / torch.linalg.vector_norm(honest - target)
        return 1 - float(missed)

    def play(self, method: str, amount: float) -> dict[str, float]:
        """Return what one dataset costs and what it achieves."""
        aim, data = METHODS[method](self, amount)
        wanted = held(aim, self.scenario.regularizer.lam)
        cold = not self.warm or (method in EXACT and amount == 1)
        rho, residual = self.settle(data, None if cold else wanted)
        return {
            "labels": data.total_weight,
            "bound": least_weight(aim),
            "feasible": float(data.feasible),
            "residual": residual,
            "miss": relative(rho, wanted),
            "equilibrium": self.settled(rho),
            "transient": self.moved(data, attack_model=aim.attack_model),
        }

    def starts(self) -> dict[str, float]:
        """Return the transient of theta_spade's start without labels, and of labels without it."""
        aim, data = METHODS["indifference"](self, QUERIES)
        return {
            "start alone": self.moved(
                replace(data, weights=NOTHING * data.weights), attack_model=aim.attack_model
            ),
            "labels alone": self.moved(data),
        }

    def left(self, rounds: int) -> float:
        """Return what many rounds leave of the transient's excess over the equilibrium."""
        aim, data = METHODS["indifference"](self, QUERIES)
        end = self.settled(self.settle(data)[0])
        ends = (
            rho_after(count, self.scenario, data, attack_model=aim.attack_model)
            for count in (rounds, ROUNDS)
        )
        after, before = (self.settled(rho) - end for rho in ends)
        return after / before


def held(aim: Aim, lam: float) -> Tensor:
    """Return where an aim holds rho under squared l2, ``(d,)``: ``theta_spade + g/(2 lam)``."""
    return aim.attack_model + aim.gradient / (2 * lam)


def _sampled(trial: Trial, labels: float) -> tuple[Aim, PoisonedData]:
    aim, draw = trial.goal, trial.draw("sampling")
    queries = gaussian_queries(aim, int(labels), generator=draw)
    return aim, sampling(aim, queries, generator=draw)


def _indifferent(trial: Trial, labels: float) -> tuple[Aim, PoisonedData]:
    """Ask 2,000 queries at most, with soft labels of the weight that makes up the budget."""
    aim, draw = trial.goal, trial.draw("indifference")
    count = min(int(labels), QUERIES)
    queries = gaussian_queries(aim, count, generator=draw)
    weight = labels / count
    return aim, indifference(aim, queries, generator=draw, noise=NOISE, weight=weight)


def _matched(trial: Trial, share: float) -> tuple[Aim, PoisonedData]:
    aim = trial.aim(share)
    return aim, matching(aim, generator=trial.draw("matching"), gap=trial.gap)


def _repeated(trial: Trial, share: float) -> tuple[Aim, PoisonedData]:
    aim = trial.aim(share)
    return aim, repeated(aim)


EXACT = "matching", "repeated"
METHODS: Mapping[str, Callable[[Trial, float], tuple[Aim, PoisonedData]]] = {
    "sampling": _sampled,
    "indifference": _indifferent,
    "matching": _matched,
    "repeated": _repeated,
}
"""From a number of labels, or for ``EXACT`` methods from the share of the way, to aim and data."""


def bound_by_hand(trial: Trial) -> float:
    """Return the binary bound from its formula, with ``max_t t sigma(-t)`` found on a grid."""
    scenario, spade = trial.scenario, trial.goal.attack_model
    pull = 2 * scenario.regularizer.lam * (spade - scenario.target) @ spade
    grid = torch.linspace(0, 5, 500_001, dtype=torch.float64)
    best = (grid * torch.sigmoid(-grid)).max()
    return float((pull + 2 * scenario.nu * spade @ spade) / best)


def compare(points: Mapping[str, Mapping[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the metrics of a scenario's points, by method and amount."""
    every = [point for curve in points.values() for point in curve.values()]
    cheap = [point for point in every if point["labels"] < point["bound"] * (1 - 1e-9)]
    random, paper = points["sampling"][QUERIES], points["indifference"][QUERIES]
    found = {
        "bound": points["matching"][1]["bound"],
        "below bound": len(cheap),
        "below bound feasible": sum(point["feasible"] for point in cheap),
        "residual": max(point["residual"] for point in every),
        "excess": paper["transient"] - paper["equilibrium"],
        "random over indifferent": random["equilibrium"] - paper["equilibrium"],
    }
    for method, amount in (("sampling", QUERIES), ("indifference", QUERIES), ("matching", 1)):
        for when in ("equilibrium", "transient"):
            found[f"{method} {when}"] = points[method][amount][when]
    for method in EXACT:
        if method in points:
            found[f"{method} miss"] = points[method][1]["miss"]
            found[f"{method} over bound"] = points[method][1]["labels"] / found["bound"] - 1
    return found
