"""One torch.optim step on the local problem, with a state per user (the paper's experiments)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

OptimizerName = Literal["adam", "sgd"]


@dataclass(frozen=True)
class StepState:
    """State of each user's optimiser: steps taken ``(k,)`` and Adam's two moments ``(k, d)``."""

    steps: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def init(cls, theta: Tensor) -> StepState:
        """Return the state before the first step of users ``theta (k, d)``."""
        zeros = torch.zeros_like(theta)
        return cls(torch.zeros(len(theta), dtype=torch.float32), zeros, zeros.clone())


def optimizer_step(
    name: OptimizerName, theta: Tensor, gradient: Tensor, state: StepState, lr: float
) -> tuple[Tensor, StepState]:
    """Return ``theta (k, d)`` after one step along ``gradient (k, d)``, and the new state.

    Users that have taken equally many steps move together: Adam is elementwise but for its step
    count.
    """
    moved, first, second = theta.clone(), state.first.clone(), state.second.clone()
    for count in torch.unique(state.steps):
        users = state.steps == count
        parameter = torch.nn.Parameter(theta[users])
        parameter.grad = gradient[users]
        optimizer: torch.optim.Optimizer
        if name == "sgd":
            optimizer = torch.optim.SGD([parameter], lr=lr)
        else:
            optimizer = torch.optim.Adam([parameter], lr=lr)
            optimizer.state[parameter] = {
                "step": count.clone(),
                "exp_avg": state.first[users],
                "exp_avg_sq": state.second[users],
            }
        optimizer.step()
        moved[users] = parameter.detach()
        if name == "adam":
            first[users] = optimizer.state[parameter]["exp_avg"]
            second[users] = optimizer.state[parameter]["exp_avg_sq"]
    return moved, StepState(state.steps + 1, first, second)
