"""One torch.optim step on the local problem, with a state per user (the paper's experiments)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from pfl_flower.objective.vectors import finite

SETTINGS: dict[str, Any] = {
    "amsgrad": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "maximize": False,
}
"""The defaults of torch.optim.Adam, and so of the paper's code."""


@dataclass(frozen=True)
class StepState:
    """State of each user's Adam: steps taken ``(k,)`` and the two moments ``(k, d)``."""

    steps: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def init(cls, theta: Tensor) -> StepState:
        """Return the state before the first step of users ``theta (k, d)``."""
        zeros = torch.zeros_like(theta)
        # torch keeps step counts in single precision, exact up to 2^24 steps.
        return cls(torch.zeros(len(theta), dtype=torch.float32), zeros, zeros.clone())


def sgd_step(theta: Tensor, gradient: Tensor, lr: float) -> Tensor:
    """Return ``theta - lr gradient``, ``(k, d)``."""
    return torch.add(theta, gradient, alpha=-lr)


def adam_step(
    theta: Tensor, gradient: Tensor, state: StepState, lr: float
) -> tuple[Tensor, StepState]:
    """Return ``theta (k, d)`` after one step along ``gradient (k, d)``, and the new state.

    Users that have taken equally many steps move together: Adam is elementwise but for its step
    count. A gradient whose square is infinite has no step: it would be 0, and so would all later
    ones. Its user's theta is no number from there on, which whoever reads its report sees.
    """
    # One copy of three: on a card each call is dear.
    moved, first, second = torch.stack([theta, state.first, state.second]).unbind()
    counts = torch.unique(state.steps)
    for count in counts:
        if len(counts) == 1:
            _adam(moved, gradient, first, second, count, lr)
            continue
        users = (state.steps == count).to(theta.device)
        part = moved[users], gradient[users], first[users], second[users]
        _adam(*part, count, lr)
        moved[users], first[users], second[users] = part[0], part[2], part[3]
    if not second.is_cpu:
        # A card is not waited for to see whether there is such a user: 0 times infinity is no
        # number, and 0 times all else nothing.
        moved.add_(torch.linalg.vector_norm(second, torch.inf, dim=1, keepdim=True), alpha=0)
    elif not math.isfinite(float(second.amax())):
        moved = torch.where(finite(second)[:, None], moved, torch.nan)
    return moved, StepState(state.steps + 1, first, second)


def _adam(
    theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, count: Tensor, lr: float
) -> None:
    """Step in place; torch's functional form, since an Optimizer costs more than a small step."""
    if not theta.is_cpu:
        _fused(theta, gradient, first, second, float(count) + 1, lr)
        return
    adam(
        [theta],
        [gradient],
        [first],
        [second],
        [],
        [count.clone()],
        foreach=False,
        lr=lr,
        **SETTINGS,
    )


def _fused(
    theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: float, lr: float
) -> None:
    """Step in place by one kernel; the functional form would add to the steps, and sort tensors.

    On the CPU its last digits are others.
    """
    counted = [torch.full((), steps, device=theta.device)]
    torch._fused_adam_([theta], [gradient], [first], [second], [], counted, lr=lr, **SETTINGS)
