"""The second yardstick of an attack: the exact equilibrium, reached from a cold start.

A run measures the transient: where rho is after T rounds from the stated start. What the honest
users' data and the attack come to in the end is the minimiser of LOSS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.attack_plans import fabricate, honest_users, plan, reach
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.problem import Problem
from pfl_flower.solvers.equilibrium import Equilibrium, equilibrium
from pfl_flower.solvers.population import Population


def attacked_equilibrium(problem: Problem) -> Equilibrium:
    """Return the minimiser of LOSS with all strategic users of the run.

    Honest users alone without an attack; with a model attack theta_spade is held (Equation 38);
    with poisoned data the strategic users are users like any other; of CGA it is the reachable
    limit (``pfl_flower.attacks.reachable``), for one target.
    """
    problem, config = problem.in_double, problem.config
    honest, chosen = honest_users(problem), sorted(config.strategic())
    if not chosen:
        return equilibrium(problem.population(honest))
    rest = ATTACKS.row(config.attack).rest
    if rest == "model":
        models = torch.stack([plan(problem, user).attack_model for user in chosen])
        return equilibrium(problem.population(honest), attack_models=models)
    if rest == "data":
        return equilibrium(with_poison(problem))
    limit = reach(problem, chosen[0])
    rows = problem.initial.expand(len(honest), -1)
    solution = problem.population(honest).solve(limit.rho, rows)
    return Equilibrium(
        limit.rho, solution.theta, limit.residual, limit.local_residual, 0, limit.converged
    )


def with_poison(problem: Problem) -> Population:
    """Return all users of a run with data poisoning, strategic ones last, in float64."""
    problem, config = problem.in_double, problem.config
    seed = config.seed
    honest = [problem.source.draw(user, problem.size(user), seed) for user in honest_users(problem)]
    poisoned = [fabricate(problem, user).user() for user in sorted(config.strategic())]
    return problem.population_of([*honest, *poisoned])


def measure_equilibrium(problem: Problem, rho: Tensor) -> dict[str, float]:
    """Return the metrics of the equilibrium, and how far ``rho (d,)``, where the run ended, is."""
    found = attacked_equilibrium(problem)
    at_rest = Evaluation.of(problem)(found.rho.to(rho))
    wanted = ("accuracy_true", "accuracy_target", "distance_to_target", "norm_rho")
    return {
        **{f"equilibrium_{key}": at_rest[key] for key in wanted if key in at_rest},
        "equilibrium_gap": float(torch.linalg.vector_norm(found.rho.to(rho) - rho)),
        "equilibrium_residual": found.residual,
        "equilibrium_converged": float(found.converged),
    }
