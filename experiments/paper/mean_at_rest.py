"""Sums and means of losses where LOSS is least: the linear model of Figures 4 to 13, by L-BFGS.

Without label noise's and Adam's accidents this tells what the reduction itself does: with ``nu =
0`` the active user alone has no ridge, a scaled sum adds a 600th of what it weighs, and a mean ten
times as much as it weighs, on a hundred points that are mostly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from experiments.paper import sums_and_means
from experiments.studies.study import Setting
from experiments.studies.variants import Keys, configured
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers.equilibrium_lbfgs import joint_minimum

IDLE = 10
SUM: Keys = {"reduction": "scaled-sum"}
MEAN: Keys = {"reduction": "mean"}
RIDGE = IDLE / (IDLE + 1)
"""Times lam, the ridge that ten idle users who stay at 0 come to: with the best rho
``lam ||rho - theta||^2 + 10 lam ||rho||^2`` is ``10/11 lam ||theta||^2``."""
ALONE = (0,)
"""The active user without the others, whom rho follows at no cost."""
EVERYBODY = tuple(range(IDLE + 1))
RIDGED = "alone, ridge"
REST: Mapping[str, tuple[Keys, Sequence[int]]] = {
    "sum": (SUM, EVERYBODY),
    "mean": (MEAN, EVERYBODY),
    "alone": (MEAN, ALONE),
    RIDGED: (MEAN, ALONE),
}
REST_STEPS = 200


def linear_at_rest(setting: Setting, lam: float) -> dict[str, float]:
    """Minimise LOSS of the linear model at full size, with everybody and for the active user alone.

    ``gradient left`` is the norm of LOSS's gradient, in rho or a theta_n if that is larger, over
    that of the active user at 0.
    """
    metrics: dict[str, float] = {}
    for label, (keys, users) in REST.items():
        asked: Keys = {
            **sums_and_means.BASE,
            "model": "linear",
            "lam": lam,
            "label-noise": 0.6,
            **keys,
            "nu": lam * RIDGE if label == RIDGED else 0.0,
        }
        problem = build_problem(configured(setting, f"rest {label}", asked)).in_double
        population = problem.population(tuple(users))
        found = joint_minimum(
            population,
            max_iterations=REST_STEPS,
            watch=lambda step, norm, label=label: setting.say(  # type: ignore[misc]
                f"{label} at rest: step {step}/{REST_STEPS}, gradient {norm:.2g}"
            ),
        )
        active, tests = found.theta[:1], problem.test_set
        first = torch.linalg.vector_norm(population.gradient(torch.zeros_like(found.theta))[0])
        left = max(found.residual, found.local_residual) / float(first)
        metrics |= {
            f"active at rest: {label}": float(tests.accuracy_of_each(problem.model, active)[0]),
            f"norm at rest: {label}": float(torch.linalg.vector_norm(active)),
            f"gradient left: {label}": left,
        }
    metrics["rest, mean ahead of sum"] = (
        metrics["active at rest: mean"] - metrics["active at rest: sum"]
    )
    metrics["rest, sum ahead of alone"] = (
        metrics["active at rest: sum"] - metrics["active at rest: alone"]
    )
    metrics["rest, ridge over mean"] = (
        metrics["norm at rest: alone, ridge"] / metrics["norm at rest: mean"]
    )
    return metrics
