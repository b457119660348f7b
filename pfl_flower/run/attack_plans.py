"""What a strategic user works out before the first round: theta_spade, and data that hold it.

    where rho can be held  ->  the gradient that holds it  ->  theta_spade  ->  data

(Sections 3.2 and 5). A user who prepares ``exact`` attacks knows the honest users' data, which only
a laboratory can grant; one who starts from a CGA run knows what that run's attacker saw.

Where reports are gradients of L_n rho is held at the target by ``-sum_n grad L_n(target)``, and no
model stands between the gradient and the data: these are to have it at the target itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.equivalence import model_from_gradient, nearest_gradient
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.form import check_form
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.reachable import Limit, reachable_limit
from pfl_flower.run.problem import Problem
from pfl_flower.run.results import LIMIT_FILE, OldLimitError, read_limit
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.newton import DENSE_LIMIT
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path
from pfl_flower.support.memo import remembered
from pfl_flower.support.seeding import generator


@dataclass(frozen=True)
class Plan:
    """A model attack and where it means to hold rho.

    Attributes
    ----------
    rho : Tensor
        The target or, where it is out of reach, the reachable limit, ``(d,)``.
    attack_model : Tensor
        theta_spade, ``(d,)``.
    gradient : Tensor
        What theta_spade's user reports at rho, ``(d,)``.
    residual : float
        By how much that misses the gradient that was wanted.
    """

    rho: Tensor
    attack_model: Tensor
    gradient: Tensor
    residual: float


def plan(problem: Problem, user: int) -> Plan:
    """Return the plan of a strategic user, worked out once per process and target.

    Raises
    ------
    ConfigError
        If ``attack-model`` names a folder without what a CGA run leaves behind.
    """
    config = problem.config
    return _plan(problem.in_double, config.shift(user), config.allies(user))


def fabricate(problem: Problem, user: int) -> PoisonedData:
    """Return the fabricated data of a strategic user, made once per process.

    Raises
    ------
    ConfigError
        If ``poisoning`` names a plug-in that cannot be imported, or ``attack-model`` a folder
        without a run.
    """
    return _fabricated(problem.in_double, user)


@remembered
def _fabricated(problem: Problem, user: int) -> PoisonedData:
    config = problem.config
    recipe = Recipe(config, problem.source, user, generator(config.seed, "poison", user))
    aim = _aim(problem, user)
    made = POISONINGS.make(config.poisoning, config.poisoning_options, aim, recipe)
    return check_form(config.poisoning, aim, made)


def honest_users(problem: Problem) -> tuple[int, ...]:
    """Return the ids of the users who are not strategic by the run's configuration."""
    chosen = problem.config.strategic()
    return tuple(user for user in range(problem.config.users) if user not in chosen)


def reach(problem: Problem, user: int) -> Limit:
    """Return where a strategic user and its allies can hold rho against the honest users."""
    config = problem.config
    return _reach(problem.in_double, config.shift(user), config.allies(user))


def _reach(problem: Problem, shift: int, allies: int) -> Limit:
    target, users = problem.targets[shift], honest_users(problem)
    if not problem.config.way.coupled:
        there = target.expand(len(users), -1)
        total = problem.population(users).gradient(there).sum(dim=0)
        return Limit(target, -total, True, 0.0, 0.0, True)
    radius = allies * problem.regularizer.radius
    start = None
    if problem.model.dim > DENSE_LIMIT:
        # Users draw from the same data: each begins where the first one ended, not far away at rho.
        first = problem.population(users[:1]).solve(target, target[None]).theta
        start = first.repeat(len(users), 1)
    return reachable_limit(problem.population(users), target, radius=radius, start=start)


@remembered
def _plan(problem: Problem, shift: int, allies: int) -> Plan:
    coupling = problem.pretended
    if problem.config.attack_model == "exact":
        limit = _reach(problem, shift, allies)
        rho, gradient = limit.rho, limit.gradient
    else:
        rho, gradient = _from_run(problem, shift)
    converted = model_from_gradient(coupling, rho, coupling.project(gradient / allies))
    model = converted.value
    unattained = coupling.kink == 0 and converted.residual > 1e-9
    if unattained and problem.config.attack_model == "exact":
        # Lemma 15's model only comes close. Its data are made for where it holds rho itself.
        population = problem.population(honest_users(problem))
        rho = equilibrium(population, attack_models=model.repeat(allies, 1), start=rho).rho
    reported = nearest_gradient(coupling, rho, model, gradient / allies)
    return Plan(rho, model, reported, converted.residual)


def check_attack_model(problem: Problem) -> None:
    """Refuse an ``attack-model`` that is neither ``exact`` nor a run of as many parameters.

    Raises
    ------
    ConfigError
        If it is.
    """
    if problem.config.attack_model != "exact":
        _limit_of_run(problem)


def _from_run(problem: Problem, shift: int) -> tuple[Tensor, Tensor]:
    """Return where a CGA run held rho and the gradient that it ended with (Proposition 3).

    The gradient is the sum of what each strategic user of that run reported when it was last asked
    and not rejected; users of this run share it.
    """
    rho, gradient = _limit_of_run(problem)
    # Without a bound on GRAD the target can be held, and Proposition 3 speaks of the target.
    if problem.pretended.radius == float("inf"):
        rho = problem.targets[shift]
    return rho, gradient


def _limit_of_run(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the rho and the gradient that a run left, ``(d,)``."""
    named = problem.config.attack_model
    path = own_path("attack-model", named) / LIMIT_FILE
    try:
        kept = read_limit(path)
        rho, gradient = (torch.from_numpy(value) for value in (kept.rho, kept.gradient))
    except OldLimitError as error:
        raise ConfigError(
            f"attack-model = {named}: expected {error}: run that CGA run again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"attack-model = {named}: expected exact, or the folder of a CGA run with a "
            f"{LIMIT_FILE} ({type(error).__name__})"
        ) from None
    if not kept.reported:
        raise ConfigError(
            f"attack-model = {named}: expected a run with a strategic user's report that counted, "
            "and there was none"
        )
    if rho.shape != (problem.model.dim,) or gradient.shape != rho.shape:
        raise ConfigError(
            f"attack-model = {named}: expected a run of {problem.model.dim} parameters, "
            f"and it has {rho.numel()}"
        )
    if not bool(rho.isfinite().all() & gradient.isfinite().all()):
        raise ConfigError(f"attack-model = {named}: expected a run that ended in finite numbers")
    rho, gradient = (value.to(problem.device, torch.float64) for value in (rho, gradient))
    return rho, gradient


def _aim(problem: Problem, user: int) -> Aim:
    made = plan(problem, user)
    return Aim(
        model=problem.model,
        loss=problem.loss,
        attack_model=made.attack_model if problem.config.way.coupled else made.rho,
        gradient=made.gradient,
        nu=problem.config.nu,
        bias=problem.source.bias,
    )
