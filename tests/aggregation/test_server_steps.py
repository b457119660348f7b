from __future__ import annotations

import math

import pytest
import torch

from pfl_flower.aggregation.server_steps import ServerOptimizer, StepSizes
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population


def descend(population: Population, sizes: StepSizes, rounds: int) -> torch.Tensor:
    rho = torch.zeros(population.model.dim, dtype=torch.float64)
    theta = rho.repeat(population.size, 1)
    for t in range(1, rounds + 1):
        theta = population.solve(rho, theta).theta
        rho = rho - sizes.at(t) * population.report(rho, theta).sum(dim=0)
    return rho


def stiff_users(regularizer: Regularizer) -> Population:
    """Return users of whom some sit at l2's kink and whose losses are stiffer than R is."""
    draw = torch.Generator().manual_seed(5)
    users = []
    for shift in (0.0, 0.002, -0.002, 3.0, -2.0):
        queries = torch.randn(200, 3, generator=draw, dtype=torch.float64)
        noise = 0.1 * torch.randn(200, generator=draw, dtype=torch.float64)
        users.append(UserData(queries, queries @ torch.full((3,), 1 + shift).double() + noise))
    return Population(
        users, model=Linear(3, 1), loss=LeastSquares(), regularizer=regularizer, nu=0.1
    )


@pytest.mark.parametrize(
    ("regularizer", "rounds"),
    [
        (SquaredL2(lam=5.0), 100),
        pytest.param(L2(lam=5.0), 600, marks=pytest.mark.slow),
        (SmoothL2(lam=5.0), 200),
    ],
)
def test_automatic_step_sizes_reach_the_equilibrium(regularizer: Regularizer, rounds: int) -> None:
    population = stiff_users(regularizer)
    exact = equilibrium(population)
    assert exact.converged
    rho = descend(population, StepSizes.auto(regularizer, population.size), rounds)
    assert torch.linalg.vector_norm(rho - exact.rho) < 1e-6


def test_a_constant_step_stalls_away_from_the_equilibrium_of_l2() -> None:
    population = stiff_users(L2(lam=5.0))
    exact = equilibrium(population)
    kinked = (exact.theta == exact.rho).all(dim=1)
    assert 0 < int(kinked.sum()) < population.size
    rho = descend(population, StepSizes(first=1 / (3 * 5.0 * 5)), 150)
    assert torch.linalg.vector_norm(rho - exact.rho) > 1e-3


def test_auto_is_one_third_of_one_over_the_smoothness() -> None:
    assert StepSizes.auto(SquaredL2(lam=2.0), 11).at(7) == pytest.approx(1 / (3 * 2 * 2 * 11))
    assert StepSizes.auto(SmoothL2(lam=2.0), 11).at(7) == pytest.approx(1 / (3 * 2 * 11))
    decaying = StepSizes.auto(L2(lam=2.0), 11)
    assert decaying.at(1) == pytest.approx(1 / (3 * 2 * 11))
    assert decaying.at(61) == pytest.approx(decaying.at(1) / math.sqrt(4))
    assert StepSizes.auto(SquaredL2(lam=1.0), 11, 2.0).at(1) == pytest.approx(2 / 66)


def test_sgd_is_the_plain_step_and_adam_is_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    rho = torch.randn(5, generator=draw, dtype=torch.float64)
    directions = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    assert torch.equal(
        ServerOptimizer("sgd").step(rho, directions[0], 0.3), rho - 0.3 * directions[0]
    )
    parameter = torch.nn.Parameter(rho.clone())
    reference = torch.optim.Adam([parameter], lr=1.0)
    ours = ServerOptimizer("adam")
    for t, direction in enumerate(directions):
        reference.param_groups[0]["lr"] = 0.1 / (t + 1)
        parameter.grad = direction.clone()
        reference.step()
        rho = ours.step(rho, direction, 0.1 / (t + 1))
    assert torch.equal(rho, parameter.detach())


@pytest.mark.parametrize("other", [2.0, 3.0])
def test_a_step_that_was_tried_is_taken_for_no_other(other: float) -> None:
    rho, tried, taken = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([other])
    optimizer = ServerOptimizer("sgd")
    assert optimizer.takes(rho, tried, 0.5)
    assert optimizer.step(rho, taken, 0.5).tolist() == [1 - 0.5 * other]
    assert optimizer.takes(rho, tried, 0.5)
    assert optimizer.step(rho, tried, 0.25).tolist() == [0.5]
    assert optimizer.takes(rho, tried, 0.5)
    assert optimizer.step(rho + 1, tried, 0.5).tolist() == [1.0]
    assert optimizer.takes(rho, tried, 0.5) and optimizer.step(rho, tried, 0.5).tolist() == [0.0]
