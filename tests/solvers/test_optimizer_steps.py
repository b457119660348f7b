from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.solvers.optimizer_steps import StepState, adam_step, sgd_step
from tests.support import problems


class Separate:
    """One torch optimiser per user, which never hears of the others."""

    def __init__(
        self, theta: Tensor, lr: float, kind: type[torch.optim.Optimizer] = torch.optim.Adam
    ) -> None:
        self.parameters = [torch.nn.Parameter(row.clone()) for row in theta]
        make: Any = kind
        self.optimizers = [make([row], lr=lr) for row in self.parameters]

    def step(self, users: list[int], gradient: Tensor) -> None:
        for user in users:
            self.parameters[user].grad = gradient[user].clone()
            self.optimizers[user].step()

    @property
    def theta(self) -> Tensor:
        return torch.stack([row.detach() for row in self.parameters])


def bowl(theta: Tensor) -> Tensor:
    """Gradient of a badly scaled quadratic, another one for each user."""
    scale = torch.tensor([[100.0, 1.0, 0.01], [3.0, -2.0, 1.0], [0.0, 5.0, 1e-6]])
    return scale.to(theta.dtype) * (theta - 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestAdamStep:
    def test_equals_separate_optimisers(self, dtype: torch.dtype) -> None:
        theta = problems.normal(3, 3, seed=problems.generator(1)).to(dtype)
        separate, state = Separate(theta, 0.01), StepState.init(theta)
        for _ in range(6):
            gradient = bowl(theta)
            separate.step([0, 1, 2], gradient)
            theta, state = adam_step(theta, gradient, state, 0.01)
            assert theta.dtype == dtype
            torch.testing.assert_close(theta, separate.theta, rtol=1e-6, atol=0)
        assert state.steps.tolist() == [6, 6, 6]

    def test_users_with_other_numbers_of_steps(self, dtype: torch.dtype) -> None:
        """Rounds that some users miss; then all step together with 3, 1 and 5 steps behind them."""
        theta = problems.normal(3, 3, seed=problems.generator(2)).to(dtype)
        separate, state = Separate(theta, 0.05), StepState.init(theta)
        for users in ([0, 2], [2], [0, 1, 2], [2], [0, 2], [0, 1, 2]):
            gradient = bowl(theta)
            separate.step(users, gradient)
            part = StepState(state.steps[users], state.first[users], state.second[users])
            moved, part = adam_step(theta[users], gradient[users], part, 0.05)
            theta = theta.clone()
            theta[users] = moved
            state.steps[users] = part.steps
            state.first[users], state.second[users] = part.first, part.second
            torch.testing.assert_close(theta, separate.theta, rtol=1e-6, atol=0)
        assert state.steps.tolist() == [4, 2, 6]

    def test_arguments_are_left_alone(self, dtype: torch.dtype) -> None:
        theta = problems.normal(2, 3, seed=problems.generator(3)).to(dtype)
        gradient, state = torch.ones_like(theta), StepState.init(theta)
        kept = theta.clone()
        moved, after = adam_step(theta, gradient, state, 0.1)
        adam_step(moved, gradient, after, 0.1)
        assert torch.equal(theta, kept)
        assert torch.equal(gradient, torch.ones_like(theta))
        assert torch.count_nonzero(state.first) + torch.count_nonzero(state.second) == 0
        assert state.steps.tolist() == [0, 0]
        assert after.steps.tolist() == [1, 1]
        assert not moved.requires_grad


def test_sgd_by_hand() -> None:
    theta, gradient = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -10.0]])
    assert sgd_step(theta, gradient, 0.5).tolist() == [[-4.0, 7.0]]
    assert theta.tolist() == [[1.0, 2.0]]


def test_sgd_equals_separate_optimisers() -> None:
    theta = problems.normal(3, 3, seed=problems.generator(1))
    separate = Separate(theta, 0.01, torch.optim.SGD)
    for _ in range(6):
        gradient = bowl(theta)
        separate.step([0, 1, 2], gradient)
        theta = sgd_step(theta, gradient, 0.01)
        torch.testing.assert_close(theta, separate.theta, rtol=1e-12, atol=0)


def test_first_adam_step_is_a_sign() -> None:
    theta, gradient = torch.zeros(1, 3), torch.tensor([[1e-3, -50.0, 0.0]])
    moved, _ = adam_step(theta, gradient, StepState.init(theta), 0.1)
    torch.testing.assert_close(moved, torch.tensor([[-0.1, 0.1, 0.0]]), rtol=1e-4, atol=0)
