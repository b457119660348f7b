"""What a user does in a round that it does not solve exactly: some steps of an optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem
from pfl_flower.run.step_sizes import local_step_sizes
from pfl_flower.solvers.optimizer_steps import StepState, adam_step, sgd_step
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import uniform_rows
from pfl_flower.support.users import ids


def begun(config: RunConfig, theta: Tensor) -> dict[str, Tensor]:
    """Return models ``(k, d)`` from which no step was taken, with their optimiser's state."""
    if config.local_solver != "adam":
        return {"theta": theta}
    fresh = StepState.init(theta)
    state = {"steps": fresh.steps, "first": fresh.first, "second": fresh.second}
    return {"theta": theta, **state}


def local_steps(
    problem: Problem,
    population: Population,
    users: tuple[int, ...],
    round: int,
    memory: dict[str, Tensor],
    rho: Tensor | None,
    pull: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what is remembered of a round's steps, and the largest residual before the last.

    The latter is a scalar where the run computes: to read it is to wait for all that was begun.

    Every step goes along ``grad L_n(theta) + grad_theta R(rho, theta)`` where theta then is;
    without rho, along ``grad L_n`` alone. ``pull`` is ``grad_rho R`` where the models stand, if it
    is known.
    """
    config = problem.config
    lr = local_step_sizes(config).at(round)
    for step in range(config.local_steps):
        theta = memory["theta"]
        # The first step's draws are those of a run with one step a round.
        purpose = ("batch", round, step) if step else ("batch", round)
        gradient = loss_gradient(config, population, users, theta, purpose)
        if rho is not None:
            known = None if step else pull
            gradient = gradient - (
                problem.regularizer.grad_rho(rho, theta) if known is None else known
            )
        residual = _residuals(problem, gradient, theta, rho).max()
        if config.local_solver == "sgd":
            memory = {"theta": sgd_step(theta, gradient, lr)}
            continue
        state = StepState(memory["steps"], memory["first"], memory["second"])
        after, state = adam_step(theta, gradient, state, lr)
        kept = {"steps": state.steps, "first": state.first, "second": state.second}
        memory = {"theta": after, **kept}
    return memory, residual


def _residuals(problem: Problem, gradient: Tensor, theta: Tensor, rho: Tensor | None) -> Tensor:
    """Return first-order residuals ``(k,)``: a gradient's norm, at a kink what its ball leaves."""
    norms = torch.linalg.vector_norm(gradient, dim=1)
    if rho is None or problem.regularizer.kink == 0:
        return norms
    at_kink = (theta == rho).all(dim=-1)
    return torch.where(at_kink, (norms - problem.regularizer.kink).clamp(min=0), norms)


def loss_gradient(
    config: RunConfig,
    population: Population,
    users: tuple[int, ...],
    theta: Tensor,
    purpose: tuple[str | int, ...],
) -> Tensor:
    """Return ``grad L_n(theta_n)``, ``(k, d)``, or its estimate from batches for one purpose."""
    if not config.batch_size:
        return population.gradient(theta)
    draws = uniform_rows(ids(users), config.batch_size, config.seed, *purpose)
    return population.minibatch_gradient(theta, draws)
