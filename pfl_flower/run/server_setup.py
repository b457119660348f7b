"""What the server knows when the run's aggregation is made, and a user of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return random draws that are a function of the run's seed and of the words."""
        return generator(self.settings.seed, "aggregation", *purpose)

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        """Return the report ``(d,)`` and the model of an honest user with the server's own points.

        With exact local solves it solves its own; else it takes ``local-steps`` plain steps of the
        local learning rate on all its points, whatever the users' optimiser is.
        """
        population, config = root_population(self.problem, points), self.settings
        if config.local_solver == "exact":
            held = population.solve(rho, theta[None]).theta
            return population.report(rho, held)[0], held[0]
        held = theta[None]
        for _ in range(config.local_steps):
            pull = self.problem.regularizer.grad_rho(rho, held)
            step = local_step_sizes(config).at(round)
            held = sgd_step(held, population.gradient(held) - pull, step)
        return population.report(rho, held)[0], held[0]


@remembered
def root_population(problem: Problem, points: int) -> Population:
    """Return the server's own user: a draw that no user and no attacker of the run holds."""
    config = problem.config
    data = problem.source.draw(config.users + config.attack_draws, points, config.seed)
    return problem.population_of([data])
