"""What the server knows when the run's aggregation is made, and a user of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.aggregation.combination import Aggregation, RunningRule, configured_rule
from pfl_flower.aggregation.rounds import OfRound, sees_rounds
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.data.users import Partitioned
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem
from pfl_flower.run.step_sizes import local_step_sizes
from pfl_flower.solvers.optimizer_steps import sgd_step
from pfl_flower.solvers.population import Population
from pfl_flower.support.memo import remembered
from pfl_flower.support.seeding import generator


@dataclass(frozen=True)
class ServerSetup:
    """The ``RuleSetup`` of a run.

    Attributes
    ----------
    problem : Problem
        Regulariser, model, data and run configuration.
    """

    problem: Problem

    @property
    def settings(self) -> RunConfig:
        """The run's configuration."""
        return self.problem.config

    word = "aggregation"
    own_user = 0
    """What the server's own user holds: of the draws that nobody has the first."""

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return random draws that are a function of the run's seed and of the words."""
        return generator(self.settings.seed, self.word, *purpose)

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        """Return the report ``(d,)`` and the model of an honest user with the server's own points.

        With exact local solves it solves its own; else it takes ``local-steps`` plain steps of the
        local learning rate on all its points, whatever the users' optimiser is. Where reports are
        gradients of L_n it solves nothing.
        """
        config = self.settings
        population = root_population(self.problem, points, self.own_user)
        if not config.way.coupled:
            return population.gradient(rho[None])[0], theta
        if config.local_solver == "exact":
            held = population.solve(rho, theta[None]).theta
            return population.report(rho, held)[0], held[0]
        held = theta[None]
        for _ in range(config.local_steps):
            pull = self.problem.regularizer.grad_rho(rho, held)
            step = local_step_sizes(config).at(round)
            held = sgd_step(held, population.gradient(held) - pull, step)
        return population.report(rho, held)[0], held[0]


class AttackersSetup(ServerSetup):
    """What an attacker who knows the rule makes it of: draws and points of its own for theirs."""

    word = "attacker's aggregation"
    own_user = 1


def public_rule(problem: Problem) -> Aggregation:
    """Return the run's rule as an attacker can work it out, from rows ``(k, d)`` to a direction.

    One that sees rounds as in a first round at rho_0, with draws and points of the attacker's own:
    what it draws, remembers or keeps to itself is not public.
    """
    config = problem.config
    if not sees_rounds(AGGREGATIONS.load(config.aggregation)):
        return configured_rule(config)
    running = RunningRule(config, AttackersSetup(problem), problem.initial)
    rule = running.at(1, problem.initial)
    assert isinstance(rule, OfRound)

    def first(rows: Tensor) -> Tensor:
        return rule.direction(Rows(torch.arange(len(rows)), rows))

    return first


@remembered
def root_population(problem: Problem, points: int, number: int) -> Population:
    """Return the server's own user, and that of an attacker who has to guess at it.

    It holds a draw that no user and no attacker of the run holds; where all points are dealt, some
    of those that users train on, as Cao et al. have it.
    """
    config, source = problem.config, problem.source
    if isinstance(source, Partitioned):
        data = source.shared(points, generator(config.seed, "root", number))
    else:
        data = source.draw(config.users + config.attack_draws + number, points, config.seed)
    return problem.population_of([data])
