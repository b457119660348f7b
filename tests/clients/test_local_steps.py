"""Several local steps a round: torch's own optimisers take them as well, one user at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from clients.honest import HonestClient
from clients.poisoned import PoisonedClient
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import uniform_rows
from pfl_flower.transport.broadcasts import Broadcast
from tests.support.reference import coupling
from tests.support.runs import configure, play, trajectory

ROUNDS, STEPS, USER = 3, 4, 2
KEYS: dict[str, Any] = {
    "local_steps": STEPS,
    "local_lr": 0.05,
    "local_lr_decay": 0.5,
    "local_lr_floor": 0.001,
    "regularizer": "smooth-l2",
}


def rho_of(problem: Problem, round: int) -> Tensor:
    return problem.initial + 0.1 * round


def broadcast(problem: Problem, round: int, user: int = USER) -> Broadcast:
    return Broadcast(
        round=round,
        users=(user,),
        last_accepted=(0,),
        rho=rho_of(problem, round),
        eta=0.01,
        eta_sum=0.0,
    )


def batch(problem: Problem, round: int, step: int, points: int) -> Tensor:
    """Which points a step uses: all, or what the generator of (user, round, step) draws."""
    size, seed = problem.config.batch_size, problem.config.seed
    if not size:
        return torch.arange(points)
    purpose = ("batch", round, step) if step else ("batch", round)
    return (uniform_rows(torch.tensor([USER]), size, seed, *purpose)[0] * points).long()


def by_torch(problem: Problem) -> list[Tensor]:
    """theta_0 .. theta_T of a user by torch.optim and autograd."""
    (data,) = problem.datasets((USER,))
    theta = problem.local_start((USER,))[0].clone().requires_grad_()
    kind = torch.optim.Adam if problem.config.local_solver == "adam" else torch.optim.SGD
    optimizer = kind([theta], lr=1.0)
    kept = [theta.detach().clone()]
    for round in range(1, ROUNDS + 1):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 ** (round - 1)
        for step in range(STEPS):
            chosen = batch(problem, round, step, len(data.labels))
            scores = data.features[chosen] @ theta
            each = -torch.nn.functional.logsigmoid(data.labels[chosen] * scores)
            loss = each.sum() * len(data.labels) / len(chosen) + 0.1 * theta @ theta
            optimizer.zero_grad()
            (loss + coupling("smooth-l2", 1.0, rho_of(problem, round), theta)).backward()
            optimizer.step()
        kept.append(theta.detach().clone())
    return kept


@pytest.mark.parametrize("order", ["local-first", "simultaneous"])
@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_torchs_optimisers_take_the_same_steps(solver: str, size: int, order: str) -> None:
    keys = {**KEYS, "local_solver": solver, "batch_size": size, "update_order": order}
    problem = build_problem(configure(**keys, points_per_user="50"))
    expected, state = by_torch(problem), RecordDict()
    for round in range(1, ROUNDS + 1):
        answer = HonestClient(problem, (USER,), state).report(broadcast(problem, round))
        theta = torch.from_numpy(state.array_records["honest"]["theta"].numpy())[0]
        torch.testing.assert_close(theta, expected[round], rtol=1e-9, atol=1e-11)
        used = expected[round - 1] if order == "simultaneous" else expected[round]
        report = problem.regularizer.grad_rho(rho_of(problem, round), used)
        torch.testing.assert_close(answer.gradients[USER], report, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ["local-first", "simultaneous"])
def test_at_a_kink_a_step_goes_along_the_loss_whatever_is_reported(order: str) -> None:
    keys = {"local_solver": "sgd", "local_lr": 0.01, "regularizer": "l2", "update_order": order}
    problem, state = build_problem(configure(**keys, points_per_user="50")), RecordDict()
    (start,) = problem.local_start((USER,))
    told = replace(broadcast(problem, 1), rho=start)
    answer = HonestClient(problem, (USER,), state).report(told)
    slope = problem.population((USER,)).gradient(start[None])[0]
    theta = torch.from_numpy(state.array_records["honest"]["theta"].numpy())[0]
    torch.testing.assert_close(theta, start - 0.01 * slope)
    reported = problem.regularizer.project(slope)
    if order == "local-first":
        reported = problem.regularizer.grad_rho(start, theta)
    torch.testing.assert_close(answer.gradients[USER], reported)


def test_every_step_has_a_batch_of_its_own() -> None:
    keys = {**KEYS, "local_solver": "sgd", "batch_size": 3}
    problem = build_problem(configure(**keys, points_per_user="50"))
    drawn = {tuple(batch(problem, 1, step, 50).tolist()) for step in range(STEPS)}
    assert len(drawn) == STEPS


def test_poisoned_users_take_them_too() -> None:
    keys = {**KEYS, "local_solver": "sgd", "local_lr": 1e-3, "attack": "data"}
    thetas = []
    for steps, rounds in ((1, STEPS), (STEPS, 1)):
        problem, state = build_problem(configure(**{**keys, "local_steps": steps})), RecordDict()
        for _ in range(rounds):
            PoisonedClient(problem, (4,), state).report(broadcast(problem, 1, 4))
        thetas.append(torch.from_numpy(state.array_records["poisoned"]["theta"].numpy()))
    # The same rho and the same rate: four rounds of one step are one round of four.
    assert torch.equal(thetas[0], thetas[1])
    assert not torch.equal(thetas[0], problem.local_start((4,)))


@pytest.mark.parametrize(
    "changes",
    [
        {"local_solver": "adam", "batch_size": 5},
        {"local_solver": "sgd", "attack": "label-flip"},
        {"local_solver": "adam", "attack": "sign-flip", "batch_size": 4},
        {"local_solver": "sgd", "participation": 0.5, "chunk_users": 1},
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())),
)
def test_the_same_trajectory_whatever_the_nodes(changes: dict[str, Any]) -> None:
    config = configure(**{**KEYS, **changes})
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 2, 5)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    single = trajectory(play(configure(**{**KEYS, **changes, "local_steps": 1})))
    assert not torch.equal(runs[0], single)


def test_exact_solves_take_no_steps() -> None:
    with pytest.raises(ConfigError) as caught:
        configure(local_steps=2)
    assert str(caught.value) == "local-steps = 2: expected 1, for exact solves"
