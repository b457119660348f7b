"""The minimiser of LOSS by L-BFGS: that of the exact search, whatever the scale of the features."""

from __future__ import annotations

import pytest
import torch

from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.regularizers import L2, Regularizer, SquaredL2
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.at_equilibrium import attacked_equilibrium, with_poison
from pfl_flower.run.attack_plans import plan
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers import equilibrium_lbfgs
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.equilibrium_lbfgs import joint_minimum
from pfl_flower.solvers.population import Population
from tests.support import problems
from tests.support.runs import configure


@pytest.mark.parametrize("regularizer", ["squared-l2", "smooth-l2"])
@pytest.mark.parametrize("models", [0, 1, 2], ids=["data", "a model", "two models"])
def test_the_joint_minimum_is_the_equilibrium(models: int, regularizer: str) -> None:
    attack = "model" if models else "data"
    problem = build_problem(configure(attack=attack, regularizer=regularizer))
    options = {"tolerance": 1e-7, "max_iterations": 5000}
    if models:
        honest = problem.population((0, 1, 2, 3))
        held = plan(problem, 4).attack_model
        held = torch.stack([held, held.flip(0)])[:models]
        exact = equilibrium(honest, attack_models=held)
        found = joint_minimum(honest, attack_models=held, **options)
    else:
        exact = attacked_equilibrium(problem)
        found = joint_minimum(with_poison(problem), **options)
    assert exact.converged
    assert found.converged
    gap = float((found.rho - exact.rho).norm()) / (1 + float(exact.rho.norm()))
    assert gap < 1e-5


def users() -> list[UserData]:
    """Four users whose features vary together and by factors of 1,000."""
    seed = problems.generator(3)
    mix = problems.normal(12, 12, seed=seed) * torch.logspace(0, 3, 12, dtype=torch.float64)
    return [
        UserData(
            problems.normal(60, 12, seed=seed) @ mix / 100,
            torch.randint(3, (60,), generator=seed),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize(
    ("model", "regularizer", "expected"),
    [
        (Linear(inputs=12, outputs=3), L2(), "differentiable"),
        (TwoLayer(inputs=12, outputs=3, hidden=2), SquaredL2(), "linear"),
    ],
)
def test_the_joint_minimum_wants_a_smooth_convex_problem(
    model: Model, regularizer: Regularizer, expected: str
) -> None:
    population = Population(users(), model=model, loss=Softmax(), regularizer=regularizer)
    with pytest.raises(ValueError, match=expected):
        joint_minimum(population)


def test_the_joint_minimum_does_not_mind_the_scale_of_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L-BFGS in the coordinates of rho and theta misses this goal in 4,000 steps."""
    population = Population(
        users(), model=Linear(inputs=12, outputs=3), loss=Softmax(), regularizer=SquaredL2(lam=0.5)
    )
    steps = {}
    for name, limit in (("factors", 2000), ("widths", 0)):
        monkeypatch.setattr(equilibrium_lbfgs, "FACTOR_LIMIT", limit)
        seen: list[int] = []
        found = joint_minimum(
            population, tolerance=1e-7, watch=lambda step, _, seen=seen: seen.append(step)
        )
        assert found.converged
        assert max(found.residual, found.local_residual) < 1e-3
        assert seen == list(range(1, found.iterations + 1))
        steps[name] = found.iterations
    # Processors differ by a fifth in what L-BFGS needs; factors halve it, widths take a tenth.
    assert steps["widths"] < 1000
    assert steps["factors"] < 0.75 * steps["widths"]
