"""What an honest client remembers when its node acts for other users than before."""

from __future__ import annotations

import pytest
import torch
from flwr.app import RecordDict

from clients.honest import HonestClient
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.transport.broadcasts import Broadcast
from tests.support.runs import configure


def step(problem: Problem, users: tuple[int, ...], state: RecordDict, round: int) -> torch.Tensor:
    """Let a client take a local step and return its local models ``(k, d)``."""
    broadcast = Broadcast(
        round=round,
        users=users,
        last_accepted=(0,) * len(users),
        rho=problem.initial,
        eta=0.01,
        eta_sum=0.0,
    )
    HonestClient(problem, users, state).report(broadcast)
    return torch.from_numpy(state.array_records["honest"]["theta"].numpy())


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize(("round", "lr"), [(1, 0.08), (2, 0.04), (3, 0.02), (4, 0.015), (9, 0.015)])
def test_the_step_of_a_round_is_local_lr_decayed_from_round_1(
    solver: str, round: int, lr: float
) -> None:
    schedule = {"local_lr": 0.08, "local_lr_decay": 0.5, "local_lr_floor": 0.015}
    problem = build_problem(configure(local_solver=solver, points_per_user="50", **schedule))
    theta = problem.local_start((2,))
    gradient = problem.population((2,)).gradient(theta)
    gradient = gradient - problem.regularizer.grad_rho(problem.initial, theta)
    # The first step of Adam is a sign, up to its epsilon of 1e-8 in the gradient.
    direction = gradient.sign() if solver == "adam" else gradient
    moved = step(problem, (2,), RecordDict(), round) - theta
    torch.testing.assert_close(moved, -lr * direction, rtol=1e-5, atol=0)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("others", [(1, 2), (0, 1, 2), (1, 3), (2, 3), (3,)])
def test_users_keep_their_models_and_new_ones_start_anew(
    solver: str, others: tuple[int, ...]
) -> None:
    problem = build_problem(configure(local_solver=solver, points_per_user="50"))
    alone = {}
    for user in others:
        state = RecordDict()
        if user in (1, 2):
            step(problem, (user,), state, 1)
        alone[user] = step(problem, (user,), state, 2)[0]
    state = RecordDict()
    step(problem, (1, 2), state, 1)
    found = step(problem, others, state, 2)
    torch.testing.assert_close(
        found, torch.stack([alone[user] for user in others]), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("lam", [0.5, 5.0, 500.0])
def test_the_residual_before_a_step_counts_the_ball_at_l2s_kink(lam: float) -> None:
    """theta_n starts at rho: what lam of the loss's gradient can be taken up is no residual."""
    problem = build_problem(configure(local_solver="sgd", regularizer="l2", lam=lam))
    population, start = problem.population((2,)), problem.local_start((2,))
    for rho, left in ((problem.initial, lam), (problem.initial + 1, 0.0)):
        told = Broadcast(round=1, users=(2,), last_accepted=(0,), rho=rho, eta=0.01, eta_sum=0.0)
        answer = HonestClient(problem, (2,), RecordDict()).report(told)
        gradient = population.gradient(start) - problem.regularizer.grad_rho(rho, start)
        expected = max(0.0, float(torch.linalg.vector_norm(gradient)) - left)
        assert answer.metrics.worst_residual == pytest.approx(expected, rel=1e-12, abs=1e-12)
