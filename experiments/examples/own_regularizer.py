"""A regulariser of one's own: between l2, which withstands one attacker, and squared l2.

The Huber coupling is a square up to ``||rho - theta|| = delta`` and a length beyond: reports are in
a ball of radius ``lam delta``. At 10 CGA changes next to nothing, at 100 it has its way with most
digits, and at 1,000 the ball is wide enough to outweigh ten honest users: rho is at the target.

    python -m experiments.examples.own_regularizer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pfl_flower as pfl
from pfl_flower.objective.regularizers import Regularizer


@dataclass(frozen=True)
class Huber(Regularizer):
    """``R = lam ||z||^2 / 2`` up to ``||z|| = delta``, then ``lam delta (||z|| - delta/2)``."""

    delta: float = 1.0

    @property
    def radius(self) -> float:
        """``lam delta``: how long a report may be."""
        return self.lam * self.delta

    def profile(self, r: Tensor) -> Tensor:
        """``phi(r)``, of which ``R = phi(||z||)``."""
        return self.lam * torch.where(r < self.delta, r**2 / 2, self.delta * (r - self.delta / 2))

    def weight(self, r: Tensor) -> Tensor:
        """``phi'(r)/r``."""
        return self.lam * self.delta / r.clamp(min=self.delta)

    def second(self, r: Tensor) -> Tensor:
        """``phi''(r)``."""
        return torch.where(r < self.delta, self.lam, torch.zeros_like(r))

    def inverse_slope(self, slope: Tensor) -> Tensor:
        """Return the least r with ``phi'(r) = slope``."""
        return slope / self.lam

    def envelope_smoothness(self, num_users: int) -> float:
        """Return the largest curvature of the users' summed envelopes: the automatic step size."""
        return self.lam * num_users


SMALL: dict[str, Any] = {"rounds": 25, "points_per_user": 100, "evaluate_every": 0}
"""Some seconds; without it the preset's own sizes."""


def main(**keys: Any) -> pfl.Sweep:
    """Run CGA against balls of several radii, and print what it makes of the global model."""
    options = [f'{{"delta": {delta}}}' for delta in (0.1, 10, 100, 1000)]
    grid = pfl.sweep(
        "digits-l2", {"regularizer": [Huber], "regularizer_options": options}, **{**SMALL, **keys}
    )
    print(grid.table("accuracy_true", "distance_to_target"))
    return grid


if __name__ == "__main__":
    main()
