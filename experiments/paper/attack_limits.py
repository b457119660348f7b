"""Where attacks end: what a model attack is made of, and what is left when rho rests."""

from __future__ import annotations

import hashlib
import json

import torch

from experiments.studies.study import Setting
from experiments.studies.variants import Keys, configured, run_variant, shared
from pfl_flower.run.at_equilibrium import with_poison
from pfl_flower.run.attack_plans import honest_users, plan, reach
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.problem import build_problem
from pfl_flower.run.results import LIMIT_FILE, write_limit
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.solvers.equilibrium_lbfgs import joint_minimum

WORTH = ("accuracy_true", "accuracy_target", "distance_to_target")
"""What is said of a rho."""


def cga_limit(setting: Setting, label: str, keys: Keys) -> str:
    """Return the folder of a CGA run, whose last gradient makes a theta_spade (Proposition 3)."""
    return str(run_variant(shared(setting), label, keys).folder())


def exact_limit(setting: Setting, keys: Keys) -> str:
    """Return a folder with the limit of an exact attack, worked out once for all studies.

    It stands for the run that ``attack-model`` can name: rho and the gradient that holds it there,
    from the honest users' exact responses.
    """
    setting = shared(setting)
    config = configured(setting, "exact", {**keys, "attack": "cga"})
    # The form of the file as well: one that was kept by an older version is not read.
    asked = {**config.flat(), "rounds": 0, "output-dir": "", "form": "users and rounds"}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    folder = setting.folder / f"exact-{digest}"
    if not (folder / LIMIT_FILE).exists():
        setting.say("the honest users' exact responses at the target")
        problem = build_problem(config)
        user = min(config.strategic())
        limit = reach(problem, user)
        write_limit(folder / LIMIT_FILE, limit.rho, limit.gradient, {user: 0})
    return str(folder)


def beyond_steps(setting: Setting, label: str, keys: Keys) -> float:
    """Return how far from the target Adam on the server must leave rho in so many rounds.

    A step of Adam moves no coordinate by much more than eta_t, so that T rounds take it about
    ``B = sum_t eta_t`` at most, and ``||max(|target - rho_1| - B, 0)||`` of the way is left.
    """
    problem = build_problem(configured(setting, label, keys))
    sizes = server_step_sizes(problem)
    reach = sum(sizes.at(round) for round in range(1, problem.config.rounds + 1))
    away = (problem.target - problem.initial).abs()
    return float(torch.linalg.vector_norm((away - reach).clamp(min=0)))


def at_rest(setting: Setting, label: str, keys: Keys, steps: int) -> dict[str, float]:
    """Return what the minimiser of LOSS under a model or data attack is worth, by name.

    It is sought by L-BFGS from a cold start, in float64. ``residual`` is the first-order residual
    where the search ended: the norm of LOSS's gradient in rho, or in a theta_n if that is larger.
    """
    config = configured(setting, label, keys)
    problem = build_problem(config).in_double
    user = min(config.strategic())
    model = config.attack == "model"
    found = joint_minimum(
        problem.population(honest_users(problem)) if model else with_poison(problem),
        attack_models=plan(problem, user).attack_model[None] if model else None,
        max_iterations=steps,
        watch=lambda step, norm: setting.say(
            f"{label}, minimising: step {step}/{steps}, gradient {norm:.2g}"
        ),
    )
    measured = Evaluation.of(problem)(found.rho)
    ended = {key: measured[key] for key in WORTH}
    ended["residual"] = max(found.residual, found.local_residual)
    return {f"{label}, equilibrium: {key}": value for key, value in ended.items()}
