"""One poisoned user against N honest ones: what weight of the paper's data moves rho*."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy.optimize import brentq
from torch import Tensor

from experiments.theory.fast_equilibrium import settle, stacked
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.indifference import indifference
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.support.seeding import generator

POINTS = 100
SHARE = 0.1
"""Of a distance, that a model may miss what it should be."""
LEAST, MOST, STRIDE = 1.0, 1e8, 10.0
"""Weights that are tried, and the factor between them before the bisection."""


@dataclass(frozen=True, kw_only=True)
class WeightSearch:
    """The least weight of indifferent data that moves N honest users, or the poisoned one.

    Attributes
    ----------
    scenario : Scenario
        The N honest users, and a target far from their optimum.
    aim : Aim
        Of theta_spade, which holds rho at the target.
    noise, unit : float
        Of the data, and what one label counts.
    seen : dict
        By the weight's logarithm, misses in units of what each criterion allows (logarithms), and
        the equilibrium, ``(N + 2, d)``.
    """

    scenario: Scenario
    aim: Aim
    noise: float
    unit: float = 1.0
    seen: dict[float, tuple[list[float], Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: Scenario, noise: float) -> WeightSearch:
        """Place theta_spade by Proposition 3."""
        return cls(scenario=scenario, aim=scenario.holding(scenario.target), noise=noise)

    @property
    def reach(self) -> float:
        """``||theta_spade - target||``."""
        return float(torch.linalg.vector_norm(self.aim.attack_model - self.scenario.target))

    def data(self, weight: float) -> PoisonedData:
        """Return the paper's data, from the same draws for every N and weight."""
        draw = generator(self.scenario.seed, "alpha", "indifference")
        queries = gaussian_queries(self.aim, POINTS, generator=draw)
        return indifference(
            self.aim, queries, generator=draw, noise=self.noise, weight=self.unit * weight
        )

    def misses(self, rho: Tensor, theta: Tensor) -> list[float]:
        """Return how far rho and theta_s are off, in units of what each criterion allows."""
        off = float(torch.linalg.vector_norm(theta - self.aim.attack_model))
        missed = float(torch.linalg.vector_norm(rho - self.scenario.target))
        allowed = SHARE * self.scenario.away
        return [missed / allowed, off / (SHARE * self.reach), off / allowed]

    def at(self, logarithm: float) -> list[float]:
        """Return the misses' logarithms at weight ``exp(logarithm)``, at the equilibrium."""
        if logarithm not in self.seen:
            near = min(self.seen, key=lambda known: abs(known - logarithm), default=None)
            users = (*self.scenario.users, self.data(math.exp(logarithm)).user())
            start = self.scenario.target.expand(len(users) + 1, -1)
            start = start if near is None else self.seen[near][1]
            models = settle(self.scenario, users, start)
            missed = [math.log(miss) for miss in self.misses(models[0], models[-1])]
            self.seen[logarithm] = missed, models
        return self.seen[logarithm][0]

    def least(self, criterion: int) -> float | None:
        """Return the least weight that meets a criterion, to 0.1 %, or None within the limits."""
        low, most = math.log(LEAST), math.log(MOST)
        while self.at(low)[criterion] > 0:
            high = low + math.log(STRIDE)
            if high > most + 1e-9:
                return None
            if self.at(high)[criterion] <= 0:
                found = brentq(lambda x: self.at(x)[criterion], low, high, xtol=1e-3, rtol=1e-9)
                return math.exp(found)
            low = high
        return math.exp(low)

    def exact(self, weight: float) -> list[float]:
        """Return the misses by ``pfl_flower.solvers.equilibrium`` from a cold start."""
        found = equilibrium(self.scenario.population(self.data(weight).user()))
        return self.misses(found.rho, found.theta[-1])

    def curvature(self) -> float:
        """Return the curvature of the data at weight 1 along theta_spade, at theta_spade."""
        spade = self.aim.attack_model[None]
        local = stacked(self.scenario, [self.data(1.0).user()], nu=0.0)
        product = local.hessian_product(spade, spade)
        return float((product * spade).sum() / (spade * spade).sum())
