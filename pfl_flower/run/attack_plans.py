"""What a strategic user works out before the first round: theta_spade, and data that hold it.

    where rho can be held  ->  the gradient that holds it  ->  theta_spade  ->  data

(Sections 3.2 and 5). A user who prepares ``exact`` attacks knows the honest users' data, which only
a laboratory can grant; one who starts from a CGA run knows what that run's attacker saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfl_flower.attacks.equivalence import model_from_gradient, nearest_gradient
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.indifference import indifference
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.attacks.reachable import Limit, reachable_limit
from pfl_flower.objective.models import augment
from pfl_flower.run.problem import Problem
from pfl_flower.run.results import LIMIT_FILE
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.newton import DENSE_LIMIT
from pfl_flower.solvers.population import Population
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.extensions import resolve
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
    problem = problem.in_double
    key = "plan", problem.config.shift(user)
    if key not in problem.prepared:
        problem.prepared[key] = _make_plan(problem, user)
    found: Plan = problem.prepared[key]
    return found


def fabricate(problem: Problem, user: int) -> PoisonedData:
    """Return the fabricated data of a strategic user, made once per process.

    Raises
    ------
    ConfigError
        If ``poisoning`` names a plug-in that cannot be imported, or ``attack-model`` a folder
        without a run.
    """
    problem = problem.in_double
    key = "data", user
    if key not in problem.prepared:
        recipe = Recipe(problem, user, generator(problem.config.seed, "poison", user))
        name = problem.config.poisoning
        if name == "auto":
            name = "single-point" if problem.source.loss == "least-squares" else "matching"
        method: Method = resolve("poisoning", name, POISONINGS)
        problem.prepared[key] = method(_aim(problem, user), recipe)
    found: PoisonedData = problem.prepared[key]
    return found


def poisoned_population(problem: Problem, users: tuple[int, ...]) -> Population:
    """Return strategic users with their fabricated data, in the run's precision."""
    key = "poisoned", users
    if key not in problem.prepared:
        data = [fabricate(problem, user) for user in users]
        soft = all(one.labels.ndim == 2 for one in data)
        problem.prepared[key] = problem.population_of([one.user(soft=soft) for one in data])
    found: Population = problem.prepared[key]
    return found


def honest_users(problem: Problem) -> tuple[int, ...]:
    """Return the ids of the users who are not strategic by the run's configuration."""
    chosen = problem.config.strategic()
    return tuple(user for user in range(problem.config.users) if user not in chosen)


def reach(problem: Problem, user: int) -> Limit:
    """Return where a strategic user and its allies can hold rho against the honest users."""
    problem = problem.in_double
    target = problem.targets[problem.config.shift(user)]
    users = honest_users(problem)
    radius = problem.config.allies(user) * problem.regularizer.radius
    start = None
    if problem.model.dim > DENSE_LIMIT:
        # Users draw from the same data: each begins where the first one ended, not far away at rho.
        first = problem.population(users[:1]).solve(target, target[None]).theta
        start = first.repeat(len(users), 1)
    return reachable_limit(problem.population(users), target, radius=radius, start=start)


def _make_plan(problem: Problem, user: int) -> Plan:
    allies, coupling = problem.config.allies(user), problem.regularizer
    if problem.config.attack_model == "exact":
        limit = reach(problem, user)
        rho, gradient = limit.rho, limit.gradient
    else:
        rho, gradient = _from_run(problem, user)
    converted = model_from_gradient(coupling, rho, coupling.project(gradient / allies))
    model = converted.value
    unattained = coupling.kink == 0 and converted.residual > 1e-9
    if unattained and problem.config.attack_model == "exact":
        # Lemma 15's model only comes close. Its data are made for where it holds rho itself.
        population = problem.population(honest_users(problem))
        near = equilibrium(population, attack_models=model.repeat(allies, 1), start=rho)
        rho = near.rho
        gradient = allies * coupling.grad_rho(rho, model)
    reported = nearest_gradient(coupling, rho, model, gradient / allies)
    return Plan(rho, model, reported, converted.residual)


def _from_run(problem: Problem, user: int) -> tuple[Tensor, Tensor]:
    """Return where a CGA run held rho and the gradient that it ended with (Proposition 3)."""
    named = problem.config.attack_model
    path = Path(named).expanduser() / LIMIT_FILE
    try:
        with np.load(path, allow_pickle=False) as kept:
            rho, gradient = (torch.from_numpy(kept[key]) for key in ("rho", "gradient"))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"attack-model = {named}: expected exact, or the folder of a CGA run with a "
            f"{LIMIT_FILE} ({type(error).__name__})"
        ) from None
    if rho.shape != (problem.model.dim,) or gradient.shape != rho.shape:
        raise ConfigError(
            f"attack-model = {named}: expected a run of {problem.model.dim} parameters, "
            f"and it has {len(rho)}"
        )
    rho, gradient = (value.to(problem.device, torch.float64) for value in (rho, gradient))
    # Without a bound on GRAD the target can be held, and Proposition 3 speaks of the target.
    if problem.regularizer.radius == float("inf"):
        rho = problem.targets[problem.config.shift(user)]
    return rho, gradient


def _aim(problem: Problem, user: int) -> Aim:
    made = plan(problem, user)
    return Aim(
        model=problem.model,
        loss=problem.loss,
        attack_model=made.attack_model,
        gradient=made.gradient,
        nu=problem.config.nu,
        bias=problem.source.bias,
    )


@dataclass(frozen=True)
class Recipe:
    """What a poisoning method may use besides its aim.

    Attributes
    ----------
    problem : Problem
        Its ``config`` holds the ``poisoning-*`` keys.
    user : int
        The strategic user's id.
    generator : torch.Generator
        Source of all randomness, on the CPU.
    """

    problem: Problem
    user: int
    generator: torch.Generator

    def queries(self, aim: Aim) -> Tensor:
        """Return ``poisoning-points`` queries of the kind that ``poisoning-queries`` names."""
        config = self.problem.config
        if config.poisoning_queries == "gaussian":
            return gaussian_queries(aim, config.poisoning_points, generator=self.generator)
        if config.poisoning_queries == "images":
            images = self.images(aim)
            order = torch.randperm(len(images), generator=self.generator)
            return images[order[: config.poisoning_points].to(images.device)]
        free = aim.model.inputs - int(aim.bias)
        shape = (config.poisoning_points, free)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        uniform = uniform.to(aim.attack_model)
        return augment(uniform) if aim.bias else uniform

    def images(self, aim: Aim) -> Tensor:
        """Return the training images, the constant feature included."""
        return self.problem.source.training_set()[0].to(aim.attack_model)

    @property
    def box(self) -> tuple[float, float] | None:
        """[0, 1] if ``poisoning-box``."""
        return (0.0, 1.0) if self.problem.config.poisoning_box else None


Method = Callable[[Aim, Recipe], PoisonedData]


def _single_point(aim: Aim, recipe: Recipe) -> PoisonedData:
    return single_point(aim)


def _repeated(aim: Aim, recipe: Recipe) -> PoisonedData:
    return repeated(aim)


def _sampling(aim: Aim, recipe: Recipe) -> PoisonedData:
    noise = recipe.problem.config.poisoning_noise
    return sampling(aim, recipe.queries(aim), generator=recipe.generator, noise=noise)


def _indifference(aim: Aim, recipe: Recipe) -> PoisonedData:
    config = recipe.problem.config
    return indifference(
        aim,
        recipe.queries(aim),
        generator=recipe.generator,
        noise=config.poisoning_noise,
        labels=config.poisoning_labels,
        draws=config.poisoning_draws,
        weight=config.poisoning_weight,
        box=recipe.box,
    )


def _matching(aim: Aim, recipe: Recipe) -> PoisonedData:
    config = recipe.problem.config
    given = config.poisoning_queries == "images"
    return matching(
        aim,
        generator=recipe.generator,
        candidates=recipe.images(aim) if given else None,
        box=recipe.box,
        integer=config.poisoning_integer,
    )


POISONINGS: Mapping[str, Method] = {
    "single-point": _single_point,
    "sampling": _sampling,
    "indifference": _indifference,
    "matching": _matching,
    "repeated": _repeated,
}
