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
