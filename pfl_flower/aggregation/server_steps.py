"""Step sizes eta_t and the server's optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import finite

L2_DECAY_ROUNDS = 20.0
"""Time constant, in rounds, of the ``auto`` step sizes for l2."""


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Step sizes ``eta_t = max(first * decay^(t-1) / sqrt(1 + (t-1)/slowing), floor)``, t >= 1.

    The floor is a limit on the decay, so ``floor <= first``.

    >>> sizes = StepSizes(first=0.02, decay=0.99, floor=0.005)
    >>> sizes.at(1), round(sizes.at(2), 6), sizes.at(1000)
    (0.02, 0.0198, 0.005)
    """

    first: float
    decay: float = 1.0
    floor: float = 0.0
    slowing: float = math.inf

    def __post_init__(self) -> None:
        """Refuse a floor that would raise the first step."""
        if self.floor > self.first:
            raise ValueError(f"floor = {self.floor}: expected at most {self.first}, the first step")

    def at(self, round: int) -> float:
        """Return eta_t of round t >= 1."""
        past = round - 1
        return max(self.first * self.decay**past / math.sqrt(1 + past / self.slowing), self.floor)

    @classmethod
    def auto(cls, regularizer: Regularizer, num_users: int, factor: float = 1.0) -> StepSizes:
        """Return the step sizes that Theorem 4's proof covers, known without seeing any data.

        ``1/(3 L)`` with L the smoothness of the envelope of ``num_users`` users (Appendix F). For
        l2 no L holds for all local losses: the step starts at ``1/(3 lam N)`` and decays like
        ``1/sqrt(t)``, so that it passes below the unknown ``1/L`` while its sum diverges and rho
        does not stop short of the equilibrium.
        """
        smoothness = regularizer.envelope_smoothness(num_users)
        if math.isfinite(smoothness):
            return cls(first=factor / (3 * smoothness))
        first = factor / (3 * regularizer.radius * num_users)
        return cls(first=first, slowing=L2_DECAY_ROUNDS)


class ServerOptimizer:
    """``rho <- rho - eta * direction``, or torch.optim.Adam with learning rate eta.

    Parameters
    ----------
    name : {"sgd", "adam"}
        The paper's theory, or the optimiser of its experiments.
    """

    def __init__(self, name: Literal["sgd", "adam"] = "sgd") -> None:
        self.name = name
        self._parameter: torch.nn.Parameter | None = None
        self._adam: torch.optim.Adam | None = None
        self._tried: tuple[Tensor, Tensor, float, Tensor] | None = None

    def takes(self, rho: Tensor, direction: Tensor, eta: float) -> bool:
        """Whether rho, and the moments that later steps are made from, stay finite.

        With an infinite second moment every step is 0, with one next to it so for thousands of
        rounds: one row of 1e155 in double, or 1e20 in single precision, would hold rho where it is.
        """
        if self.name == "sgd":
            moved = rho - eta * direction
            self._tried = rho, direction, eta, moved
            return bool(finite(moved))
        return bool(finite(direction.square()))

    def step(self, rho: Tensor, direction: Tensor, eta: float) -> Tensor:
        """Return rho_{t+1}, ``(d,)``."""
        if self.name == "sgd":
            tried, self._tried = self._tried, None
            # What was looked at before it is taken need not be worked out again.
            if tried and tried[0] is rho and tried[1] is direction and tried[2] == eta:
                return tried[3]
            return rho - eta * direction
        if self._parameter is None or self._adam is None:
            self._parameter = torch.nn.Parameter(rho.clone())
            self._adam = torch.optim.Adam([self._parameter], lr=eta)
        self._parameter.grad = direction.clone()
        self._adam.param_groups[0]["lr"] = eta
        self._adam.step()
        return self._parameter.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step count by name; nothing under SGD."""
        if self._parameter is None or self._adam is None:
            return {}
        return {name: value.clone() for name, value in self._adam.state[self._parameter].items()}

    def restore(self, rho: Tensor, state: Mapping[str, Tensor]) -> None:
        """Go on from ``rho (d,)`` with what ``state`` returned."""
        if state:
            self._parameter = torch.nn.Parameter(rho.clone())
            self._adam = torch.optim.Adam([self._parameter])
            self._adam.state[self._parameter] = {
                # torch keeps the step count on the CPU, whatever the parameter's device.
                name: value.cpu() if name == "step" else value.clone()
                for name, value in state.items()
            }
