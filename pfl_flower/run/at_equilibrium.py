"""The second yardstick of an attack: where the run's configuration leads in the end.

A run measures the transient: where rho is after T rounds from the stated start. What the honest
users' data and the attack come to in the end is, under the server's plain sum, a minimiser of LOSS:

============================ ===================================================================
strategic users              rho* minimises
============================ ===================================================================
none; on other data          LOSS with all users (Equation 1)
model attacks                LOSS with theta_spade held fixed (Equation 38)
CGA, GRAD a ball             ``F(rho) + sum_s lam ||rho - target_s||``, F the honest users' LOSS
CGA, GRAD = R^d              nothing: ``rho* = mean of the targets``, one for each of the users
============================ ===================================================================

Under CGA every user s adds what it takes to be missing to what it reported last: at rest ``g_s`` is
the projection of ``g_s + (rho - target_s)/(k eta)`` on the ball, hence in the subdifferential of
``lam ||rho - target_s||``. Where GRAD is all of R^d the sum of the corrections alone settles, and
single reports of users with several targets drift apart for ever.

Under l2 these are limits of steps that fade: longer ones circle about a kink, as wide as they are.

What else a configuration can say is refused before the first round: ``pfl_flower.run.rest_rules``,
``pfl_flower.run.rest_limits``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.objective.regularizers import L2
from pfl_flower.run.attack_plans import honest_users, plan, reach
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.outcome import Course
from pfl_flower.run.problem import Problem
from pfl_flower.run.strategic_user import other_data
from pfl_flower.solvers.equilibrium import Equilibrium, minimise
from pfl_flower.solvers.minimisers import examined
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.shared_loss import SharedLoss


def attacked_equilibrium(problem: Problem, near: Tensor | None = None) -> Equilibrium:
    """Return where the run leads; of many minimisers the one nearest to ``near (d,)``."""
    problem, config = problem.in_double, problem.config
    honest, chosen = honest_users(problem), sorted(config.strategic())
    rest = ATTACKS.row(config.attack).rest if chosen else None
    near = None if near is None else near.to(problem.device, torch.float64)
    if rest == "limit":
        return _limit(problem, chosen, near)
    if rest == "data":
        shared = SharedLoss(with_poison(problem))
    elif rest == "model":
        models = torch.stack([plan(problem, user).attack_model for user in chosen])
        shared = SharedLoss(problem.population(honest), models)
    else:
        shared = SharedLoss(problem.population(honest))
    return examined(shared, minimise(shared), near=near)


def _limit(problem: Problem, chosen: list[int], near: Tensor | None) -> Equilibrium:
    """Return where CGA rests; of one target it is ``pfl_flower.attacks.reachable``'s."""
    config, radius = problem.config, problem.regularizer.radius
    honest = problem.population(honest_users(problem))
    targets = torch.stack([problem.targets[config.shift(user)] for user in chosen])
    if math.isinf(radius):
        rho = targets.mean(dim=0)
        solution = honest.solve(rho, problem.initial.expand(honest.size, -1))
        worst = float(solution.residual.max())
        return Equilibrium(rho, solution.theta, 0.0, worst, 0, worst <= honest.tolerance)
    if len(problem.targets) > 1:
        shared = SharedLoss(honest, targets, L2(lam=radius))
        found = minimise(shared)
        return examined(
            shared, found if found.converged else minimise(shared, targets[0]), near=near
        )
    limit = reach(problem, chosen[0])
    shared = SharedLoss(honest, targets[:1], L2(lam=radius * len(chosen)))
    theta = honest.solve(limit.rho, problem.initial.expand(honest.size, -1)).theta
    found = Equilibrium(limit.rho, theta, limit.residual, limit.local_residual, 0, limit.converged)
    return examined(shared, found, near=near)


def with_poison(problem: Problem) -> Population:
    """Return all users of a run whose strategic users are honest on other data, those last."""
    problem = problem.in_double
    other = [other_data(problem, user).data for user in sorted(problem.config.strategic())]
    held = [one.user() if isinstance(one, PoisonedData) else one for one in other]
    return problem.population_of([*problem.datasets(honest_users(problem)), *held])


def measure_equilibrium(problem: Problem, course: Course) -> dict[str, float]:
    """Return the metrics of where the run leads, and how far from there it ended.

    ``equilibrium_converged`` is 1 if that is one point, up to shifts that no user's points see;
    ``equilibrium_length`` is how far a set of several extends, and rho* then that point of it which
    is nearest to where the run ended. ``equilibrium_approach`` is the gap relative to that of the
    start, ``equilibrium_others`` the number of users who were strategic and not named so, or were
    named and had no report that counted.
    """
    ended = course.rho
    found = attacked_equilibrium(problem, ended)
    at_rest = Evaluation.of(problem)(found.rho.to(ended))
    gap, first = (_norm(found.rho.to(rho) - rho) for rho in (ended, problem.initial))
    wanted = ("accuracy_true", "accuracy_target", "distance_to_target", "norm_rho")
    others = problem.config.strategic() ^ course.reported.keys()
    return {
        **{f"equilibrium_{key}": at_rest[key] for key in wanted if key in at_rest},
        "equilibrium_gap": gap,
        "equilibrium_approach": gap / first if first > 0 else 0.0,
        "equilibrium_residual": found.residual,
        "equilibrium_converged": float(found.converged),
        "equilibrium_length": found.length,
        "equilibrium_shifts": found.shifts,
        "equilibrium_others": len(others),
    }


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
